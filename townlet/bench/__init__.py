"""Measuring: what ``townlet bench`` and the scripts in ``benchmarks/`` share.

- `machine` pins the process, describes the machine and measures its peaks.
- `timing` times candidates in turns.
- `gpu` times on a GPU, and knows the least that an update has to do there.
- `problem` draws random updates, counts their FLOPs and checks results against the twin.
- `peers` holds what a user of plain PyTorch would write.
- `town` times the simulator and the acting loop.
- `results` collects figures, and writes them as JSON, text or Markdown.
- `short` is the command.

Training imports nothing of this.
"""
