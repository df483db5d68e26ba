"""A real OTLP/HTTP collector, well or ill: what it was sent, decoded with the protocol's own types."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Behaviour = Literal["answers", "is silent", "is slow", "fails", "is busy"]
STATUS = {"answers": 200, "is slow": 200, "fails": 500, "is busy": 429}


class Collector:
    """Keeps every request; `bodies` are unpacked bytes by path, `headers` the latest ones.

    `asked` counts the requests that have come, `answered` those that are over.
    """

    def __init__(self, port: int, behaviour: Behaviour, scheme: str) -> None:
        self.behaviour = behaviour
        self.bodies: list[tuple[str, bytes]] = []
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.answered = 0
        self.is_over = threading.Event()
        self.url = f"{scheme}://127.0.0.1:{port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int | None:
        """Do with a request as the `behaviour` is, and return the status to answer with; None for no answer."""
        self.asked += 1
        self.headers = headers
        if self.behaviour == "is silent":
            self.is_over.wait(60)
            self.answered += 1
            return None
        if self.behaviour == "is slow":
            self.is_over.wait(0.7)
        if self.behaviour in ("answers", "is slow"):
            is_packed = headers.get("Content-Encoding") == "gzip"
            self.bodies.append((path, gzip.decompress(body) if is_packed else body))
        self.answered += 1
        return STATUS[self.behaviour]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for path, body in self.bodies
            if path.endswith("traces")
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def span_names(self) -> list[str]:
        return [span.name for span in self.spans]

    @property
    def metric_names(self) -> set[str]:
        return {
            metric.name
            for path, body in self.bodies
            if path.endswith("metrics")
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@contextmanager
def collecting(
    behaviour: Behaviour = "answers", certificate: Path | None = None
) -> Iterator[Collector]:
    """Listen on a free port until the block ends, with TLS if a file with a `certificate` and its key is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if (status := collector.take(self.path, dict(self.headers), body)) is not None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    collector = Collector(server.server_address[1], behaviour, scheme)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        collector.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()
