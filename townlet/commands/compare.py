"""``townlet compare``: runs beside each other."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    compare = commands.add_parser(
        "compare",
        help="runs beside each other: scores with intervals, differences, settings that differ",
        description="Differences are of each later run to the first, with Welch's 95%% interval over members.",
    )
    compare.add_argument("run_folders", metavar="RUN", nargs="+", help="run folders, at least two")
    compare.add_argument("--html", metavar="FILE", help="write a page with tables and curves, one file")
    compare.add_argument("--picture", metavar="FILE", help="draw the curves there (.png, .svg or .pdf)")
    compare.add_argument("--json", metavar="FILE", help="write the figures there")
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
