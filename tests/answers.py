"""A server that answers as a test says, in place of a store or of what stands before it."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with each status of `statuses` in turn, then with 404."""

    statuses: list[int]
    body = b""
    kind = "application/xml"
    bytes_per_second = float("inf")
    """At which it reads what it is sent."""

    def do_GET(self) -> None:
        status = self.statuses.pop(0) if self.statuses else 404
        body = self.body or b"<Error><Code>NoSuchKey</Code></Error>"
        left = int(self.headers.get("Content-Length", "0"))
        while left:
            time.sleep(min(left, 2**18) / self.bytes_per_second)
            left -= len(self.rfile.read(min(left, 2**18)))
        self.send_response(status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", "some")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *arguments: object) -> None: ...


@contextmanager
def answering_server() -> Iterator[tuple[str, type[Answers]]]:
    """Give an endpoint and the handler that decides what it answers."""

    class Handler(Answers):
        statuses: list[int] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    thread.join()
    server.server_close()
