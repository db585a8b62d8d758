"""``townlet compare``: runs beside each other."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    compare = commands.add_parser(
        "compare",
        help="compare runs: their scores, the differences between them, and the settings that differ",
        description="Compare runs: their scores with 95% intervals, the difference of each later run from the first "
        "with Welch's 95% interval over members, and the settings that differ.",
    )
    compare.add_argument("run_folders", metavar="RUN", nargs="+", help="two or more run folders")
    compare.add_argument("--html", metavar="FILE", help="write a page with tables and curves into this file")
    compare.add_argument("--picture", metavar="FILE", help="draw the curves into this file (.png, .svg or .pdf)")
    compare.add_argument("--json", metavar="FILE", help="write the figures into this file")
    compare.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..reports.compare import compare_runs
    from ..reports.html.comparison import write_comparison
    from ..runs.folder import write_json

    found = compare_runs(arguments.run_folders)
    print(found.text())
    if arguments.json:
        write_json(arguments.json, found.to_dict())
    if arguments.html:
        write_comparison(found, arguments.html)
    if arguments.picture:
        from ..reports import plots

        plots.comparison(dict(zip(found.names, found.curves(), strict=True)), found.score_name, arguments.picture)
    return 0
