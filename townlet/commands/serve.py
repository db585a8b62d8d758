"""``townlet serve``: a local web page that shows runs while they train."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

from .common import natural, say


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    serve = commands.add_parser(
        "serve",
        help="show runs on a local web page while they train, with their agents at play",
        description="Show runs on a local web page while they train, with their agents at play. The page is bound to "
        "127.0.0.1, so only browsers on this machine reach it. Ctrl-C ends the server.",
    )
    serve.add_argument(
        "folder", metavar="RUN", nargs="?", default="runs", help="run folder, or a folder of runs (default: runs)"
    )
    serve.add_argument(
        "--port", type=natural, default=8000, metavar="N", help="port to use; 0 takes any free one (default: 8000)"
    )
    serve.add_argument("--open", action="store_true", help="open the page in the browser")
    serve.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code. Ctrl-C is the usual end of the command and gives 0."""
    import torch

    from ..serve.runs import Runs
    from ..serve.server import Server

    torch.set_num_threads(1)  # leaves the other cores to the training
    with Server(Runs(Path(arguments.folder)), arguments.port) as server:
        try:
            print(server.url, flush=True)
            say(f"shows {server.runs.root}; Ctrl-C ends it")
            if arguments.open:
                webbrowser.open(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
    return 0
