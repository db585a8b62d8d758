"""Measuring: what `townlet bench` and the scripts in `benchmarks/` share.

`machine` (pinning, description, peaks), `timing` (interleaved repeats), `problem` (random updates, their FLOPs and
their check against the twin), `peers` (what a user of plain PyTorch would write), `results` (rows, ratios, JSON,
tables), `short` (the command). Nothing in here is imported by training.
"""
