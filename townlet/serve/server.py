"""The web server of ``townlet serve``: fixed routes, GET only, for this machine's browsers.

It is bound to the loopback address. It answers only requests whose Host is localhost, 127.0.0.1 or [::1], because a
page from elsewhere that rebinds its own name to this machine sends its own name as the Host. It also answers only
requests that this page or the person at the browser made (Sec-Fetch-Site). Runs are named in the query and looked up in
the listing; no part of a request becomes a path.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import sys
import traceback
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..runs.metrics import MEANINGS
from .play import Gone, Player
from .runs import PAGES, Run, Runs

_STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "charts", "dom", "play", "town")
    },
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report contains its own style. In a sandbox it belongs to no site, runs nothing and reaches nothing.
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_MOST_POINTS = 1000


class Refused(Exception):
    """A request that is answered with an error page.

    Args:
        status: the HTTP status.
        text: what the page says.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Server(ThreadingHTTPServer):
    """Serves runs at 127.0.0.1.

    Args:
        runs: the runs to show.
        port: the port to listen on; 0 takes any free one.

    Raises:
        ValueError: the port is taken, not allowed, or no port number.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, runs: Runs, port: int) -> None:
        self.runs, self.player = runs, Player()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            with socket.create_server(("127.0.0.1", 0)) as free:
                other = free.getsockname()[1]
            raise ValueError(
                f"--port is {port} ({error.strerror}); expected a free one, such as --port {other}"
            ) from None
        except OverflowError:
            raise ValueError(f"--port is {port}; expected 0 (for a free one) to 65535") from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def server_close(self) -> None:
        """Free the port and end the episode."""
        super().server_close()
        self.player.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of a fault, unless a browser merely closed its connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "townlet", ""
    timeout = 60  # seconds that a connection may be idle

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        try:
            self._check_origin(url.path)
            if url.path in _STATIC:
                name, kind = _STATIC[url.path]
                self._send((resources.files(__package__) / "static" / name).read_bytes(), kind)
            elif url.path in _ROUTES:
                _ROUTES[url.path](self, {k: v[-1] for k, v in parse_qs(url.query, max_num_fields=20).items()})
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
        except Refused as error:
            self._refuse(url.path, error)
        except ConnectionError:
            raise
        except Gone as error:
            self._refuse(url.path, Refused(HTTPStatus.GONE, str(error)))
        except ValueError as error:
            self._refuse(url.path, Refused(HTTPStatus.BAD_REQUEST, str(error)))
        except Exception as error:  # a fault of a world or a file; the page that asked is told, and the server goes on
            traceback.print_exc()
            self._refuse(url.path, Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}"))

    def _check_origin(self, path: str) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _LOCAL.fullmatch(hosts[0].strip()):
            raise Refused(
                HTTPStatus.FORBIDDEN, "This page is for this machine: open it as http://localhost or 127.0.0.1."
            )
        if path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "This request came from another site.")

    # ---- what is asked for ------------------------------------------------------------------------------------------

    def _runs(self, query: dict[str, str]) -> None:
        runs = [run.overview() for run in self.server.runs.all()]
        runs.sort(key=lambda r: (r["state"] not in ("training", "evaluating"), -r["seen"], r["name"]))
        self._json({"folder": str(self.server.runs.root), "runs": runs})

    def _details(self, query: dict[str, str]) -> None:
        self._json(self._run(query).details())

    def _curves(self, query: dict[str, str]) -> None:
        run = self._run(query)
        points = min(max(_integer(query, "points", 400), 2), _MOST_POINTS)
        tag = _tag(f"{run.name} {run.curves_version()} {points}".encode())
        if self.headers.get("If-None-Match") == tag:
            self._not_modified(tag)
            return
        version, curves = run.curves(points)
        meanings = {c: MEANINGS[c] for c in curves if c in MEANINGS}
        self._json({"columns": curves, "meanings": meanings}, tag=_tag(f"{run.name} {version} {points}".encode()))

    def _page(self, query: dict[str, str]) -> None:
        name = query.get("page", "")
        path = self._run(query).page(name)
        if path is None:
            raise Refused(HTTPStatus.NOT_FOUND, "This run has no such page.")
        self._send(path.read_bytes(), PAGES[name], _REPORT_POLICY if name.endswith(".html") else _POLICY)

    def _start(self, query: dict[str, str]) -> None:
        run = self._run(query)
        seed = _integer(query, "seed", 0)
        if not 0 <= seed < 2**53:
            raise Refused(HTTPStatus.BAD_REQUEST, f"seed is {seed}; expected 0 to 2^53 - 1")
        member, memory = _integer(query, "member", 0), query.get("memory", "1") != "0"
        self._json(self.server.player.start(run, member=member, memory=memory, seed=seed))

    def _next(self, query: dict[str, str]) -> None:
        self._json({"frames": self.server.player.next(query.get("id", ""), _integer(query, "steps", 1))})

    def _run(self, query: dict[str, str]) -> Run:
        run = self.server.runs.get(query.get("run", ""))
        if run is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no run {query.get('run', '')!r} here.")
        return run

    # ---- answers ----------------------------------------------------------------------------------------------------

    def _json(self, value: Any, *, tag: str | None = None) -> None:
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        self._send(body, "application/json; charset=utf-8", tag=tag)

    def _send(
        self,
        body: bytes,
        kind: str,
        policy: str = _POLICY,
        *,
        tag: str | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        tag = tag or _tag(body)
        if status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag:
            self._not_modified(tag)
            return
        self.send_response(status)
        if len(body) > 2048 and not kind.startswith("image/png") and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", tag)
        self._guard(policy)
        self.end_headers()
        self.wfile.write(body)

    def _not_modified(self, tag: str) -> None:
        self.send_response(HTTPStatus.NOT_MODIFIED)
        self.send_header("ETag", tag)
        self._guard(_POLICY)
        self.end_headers()

    def _guard(self, policy: str) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Vary", "Accept-Encoding")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")

    def _refuse(self, path: str, error: Refused) -> None:
        if path.startswith("/api/"):
            body, kind = json.dumps({"error": error.text}).encode(), "application/json; charset=utf-8"
        else:
            title = f"{error.status.value} {error.status.phrase}"
            link = '<link rel="stylesheet" href="/style.css">'
            body = (
                f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>{link}'
                f'<body class="failure"><h1>{title}</h1><p>{escape(error.text)}</p><p><a href="/">All runs</a></p>'
            ).encode()
            kind = "text/html; charset=utf-8"
        self._send(body, kind, status=error.status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses (bad requests, methods other than GET) with a page of this server."""
        status = HTTPStatus(code)
        self.close_connection = True
        if not hasattr(self, "headers"):  # the request could not be read so far
            self.headers = self.MessageClass()
        if status == HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._refuse(
            "", Refused(status, "This server answers only GET requests." if status == 405 else status.description)
        )

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing: a page that asks every second would fill the terminal."""


_ROUTES: dict[str, Callable[[_Handler, dict[str, str]], None]] = {
    "/api/runs": _Handler._runs,
    "/api/run": _Handler._details,
    "/api/curves": _Handler._curves,
    "/api/play/start": _Handler._start,
    "/api/play/next": _Handler._next,
    "/page": _Handler._page,
}


def _integer(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is {text}; expected an integer")
    return int(text)


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:24]}"'
