"""A server of the tests' own on the loopback, which answers as it is told and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Answer = tuple[int, object]  # the status, and what the body is: an object as JSON, text and bytes as they are


class Asked(NamedTuple):
    path: str
    body: Any
    key: str


class StandIn:
    """answer: (path, body) -> Answer; asked: all that came."""

    def __init__(self, url: str, answer: Callable[[str, Any], Answer]) -> None:
        self.url, self.answer, self.asked = url, answer, list[Asked]()

    def bodies(self, path: str) -> list[Any]:
        return [asked.body for asked in self.asked if asked.path == path]


@contextmanager
def serving(answer: Callable[[str, Any], Answer]) -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            stand_in.asked.append(Asked(self.path, body, self.headers.get("Authorization", "")))
            status, value = stand_in.answer(self.path, body)
            data = (
                value
                if isinstance(value, bytes)
                else value.encode()
                if isinstance(value, str)
                else json.dumps(value).encode()
            )
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", str(len(data) + (status == 299) * 10))  # 299: less than it promises
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Say nothing of a client that did not wait."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in = StandIn(f"http://127.0.0.1:{server.server_address[1]}", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
