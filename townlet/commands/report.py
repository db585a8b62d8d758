"""``townlet report``: write report.html, which shows a run on one page."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    report = commands.add_parser(
        "report",
        help="write report.html, a page about one run, into its folder",
        description="Write report.html into a run folder: one page with the run's curves, yardsticks, settings and "
        "machine. The page is a single file that needs no other. A run writes it by itself at each checkpoint and at "
        "its end.",
    )
    report.add_argument("run_folder", metavar="RUN", help="run folder")
    report.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..reports.html.run import write_report

    print(write_report(arguments.run_folder))
    return 0
