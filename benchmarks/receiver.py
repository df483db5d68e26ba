"""An OTLP receiver that throws everything away, in a process of its own. `python -m benchmarks.receiver`.

It reads what it is sent, answers and forgets it. Its CPU time counts for no server: it stands for another machine.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
# Where exporters send spans to, below the endpoint that they are given.
TRACES_PATH = "/v1/traces"
STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Receiver:
    """A running receiver; `url` is what `OTEL_EXPORTER_OTLP_ENDPOINT` takes."""

    url: str

    def exports_of_spans(self) -> int:
        """Return how many requests with spans have come so far."""
        with urllib.request.urlopen(self.url, timeout=STOP_S) as answer:
            return int(answer.read())


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """Run a receiver on a free port until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.receiver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield Receiver(f"http://{HOST}:{int(process.stdout.readline())}")
    finally:
        # It ends with its standard input.
        process.communicate(timeout=STOP_S)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    exports_of_spans = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        # One server exports, from one thread.
        if self.path == TRACES_PATH:
            _Handler.exports_of_spans += 1
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(str(self.exports_of_spans).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Listen, say on which port, and end when standard input does."""
    with ThreadingHTTPServer((HOST, 0), _Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
