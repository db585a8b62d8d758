"""``townlet export``: the acting network of one member as a file that runs without Townlet."""

from __future__ import annotations

from typing import Any

from .common import natural


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    export = commands.add_parser(
        "export",
        help="write the network of one member as TorchScript (.pt) or ONNX (.onnx)",
        description="Write the greedy step of one member, (obs, reset, h, c[, legal]) -> (q, action, h, c), into a "
        "file that runs without Townlet. The file also holds what its numbers mean; docs/guides/export.md explains "
        "it.",
    )
    export.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint")
    export.add_argument(
        "file",
        metavar="FILE",
        help="file to write; its name ends in .pt (TorchScript) or .onnx (needs onnx and onnxscript)",
    )
    export.add_argument("--member", type=natural, default=0, metavar="P", help="member to export (default: 0)")
    export.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..evaluation.agent import Agent
    from ..export import export, metadata

    agent = Agent.load(arguments.run_folder)
    export(agent, arguments.file, arguments.member)
    facts = metadata(agent, arguments.member)
    print(f"{arguments.file}: {facts['env']} after {facts['env_steps']:,} steps, member {facts['member']}")
    print(f"in: {facts['inputs']}; obs_size {facts['obs_size']}, hidden_size {facts['hidden_size']}")
    print(f"out: {facts['outputs']}; actions {', '.join(facts['actions'])}")
    return 0
