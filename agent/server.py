"""The agent's HTTP server: four routes, one job at a time, patience for nobody.

    GET  /v1/status           versions, processor, limits, whether a job is being done
    PUT  /v1/models/SHA256    an ONNX file, kept under its hash
    POST /v1/measure          {candidate, baseline, nonce, threads, seconds, states} + a batch
    POST /v1/predict          {model, nonce, threads} + inputs -> outputs

Bodies are messages of targets/wire.py (a model: its bytes). An error is ``{"error": …}`` with 4xx.
"""

from __future__ import annotations

import hmac
import platform
import socket
import socketserver
import ssl
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from importlib import metadata
from typing import Any

from ..errors import EnvironmentFault, ParetuneError
from ..targets.cpu import cpu_features
from ..targets.onnx_session import require_runtime
from ..targets.wire import PROTOCOL, WireError, is_digest, pack, unpack
from .bench import Bench, Busy, Unknown
from .request import Fields, Refusal

BINARY = "application/octet-stream"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
LINGER_S = 2.0  # a refused client may go on sending for so long, so that it reads why
RETRY_AFTER_S = 1


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listens at once; ``serve_forever`` answers. context: TLS; token: that requests must carry."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(
        self,
        address: tuple[str, int],
        bench: Bench,
        token: str | None = None,
        context: ssl.SSLContext | None = None,
        log: bool = True,
    ) -> None:
        self.bench, self.limits, self.token, self.log = bench, bench.limits, token, log
        self.context = context
        self._free = threading.BoundedSemaphore(self.limits.connections)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    @property
    def port(self) -> int:
        """The port that is listened at."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection in a thread of its own, or close it where too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, from its handshake to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no event; anything else is one line, and we go on."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError) and self.log:
            print(f"{client_address[0]}: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "paretune-agent", ""
    unread = False

    def setup(self) -> None:
        """Handshake. From now until the body is read a silent or endless client is cut off."""
        limits = self.server.limits
        self.request.settimeout(limits.idle_s)
        self._deadline = threading.Timer(limits.receive_s, lambda: _cut(self.request))
        self._deadline.daemon = True
        self._deadline.start()
        try:
            if self.server.context is not None:
                self.request = self.server.context.wrap_socket(
                    self.request, server_side=True, do_handshake_on_connect=False
                )
                self.request.do_handshake()
            super().setup()
        except BaseException:
            self._deadline.cancel()
            self.request.close()
            raise

    def finish(self) -> None:
        """Close the connection; whoever was refused before the body was read may send on a bit."""
        try:
            super().finish()
            if self.unread:
                _drain(self.request)
        finally:
            self._deadline.cancel()
            _cut(self.request)
            self.request.close()

    def _serve(self) -> None:
        begin, status = time.monotonic(), 500
        self.unread = self.command != "GET"
        try:
            self._admit()
            status, body = 200, self._route()
        except Refusal as refusal:
            status, body = refusal.status, pack({"error": str(refusal)})
        except Busy:
            status, body = 423, pack({"error": "another job is being done"})
        except Unknown:
            status, body = 404, pack({"error": "unknown model; send it"})
        except EnvironmentFault as error:
            status, body = 507, pack({"error": str(error)})
        except ParetuneError as error:
            status, body = 422, pack({"error": str(error)})
        except WireError as error:
            status, body = 400, pack({"error": str(error)})
        except OSError:
            raise
        except Exception as error:
            body = pack({"error": f"the agent failed ({type(error).__name__})"})
        self._reply(status, body)
        took = 1000 * (time.monotonic() - begin)
        self.log_message("%s %r %d %.0f ms", self.command, self.path[:90], status, took)

    do_GET = do_PUT = do_POST = _serve

    def log_message(self, format: str, *arguments: Any) -> None:
        """A line on stderr; never what a body holds."""
        if self.server.log:
            line = f"{self.client_address[0]} {format % arguments}"
            print(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)

    def _reply(self, status: int, body: bytes) -> None:
        self.connection.settimeout(self.server.limits.receive_s)
        self.request_version = self.protocol_version  # HTTP/0.9 would get no head
        self.send_response_only(status)
        self.send_header("Content-Type", BINARY)
        self.send_header("Content-Length", str(len(body)))
        if status == 423:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the request line or the headers have wrong, as one line of JSON."""
        self.unread = True
        self.close_connection = True
        self._reply(code, pack({"error": "the request is not HTTP that this agent speaks"}))

    def _admit(self) -> None:
        """Whether this client may ask at all. Nothing of the body was read yet."""
        if self.headers.get("Origin") is not None:
            raise Refusal(403, "no web pages")
        token = self.server.token
        if token is None:
            host = self.headers.get("Host", "")
            if host.rpartition(":")[0] not in LOCAL_NAMES and host not in LOCAL_NAMES:
                raise Refusal(403, "without a token only this machine may ask")
            return
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            time.sleep(0.3)
            raise Refusal(401, "wrong token")

    def _route(self) -> bytes:
        if self.command == "GET":
            if self.path != "/v1/status":
                raise Refusal(404, "no such page")
            return pack(self._status())
        if self.headers.get("Content-Type") != BINARY:
            raise Refusal(415, f"send {BINARY}")
        if self.command == "PUT":
            digest = self.path.removeprefix("/v1/models/")
            if not is_digest(digest):
                raise Refusal(404, "a model is sent to /v1/models/SHA256")
            with self.server.bench.turn():
                self.server.bench.store(digest, self._body())
            return pack({"model": digest})
        work = {"/v1/measure": self._measure, "/v1/predict": self._predict}.get(self.path)
        if work is None:
            raise Refusal(404, "no such page")
        with self.server.bench.turn():
            fields, inputs = unpack(self._body())
            if inputs is None or not inputs.ndim:
                raise Refusal(400, "no inputs")
            return work(Fields(fields, self.server.limits), inputs)

    def _body(self) -> bytes:
        """The whole body, its length announced and within the limit, or Refusal."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise Refusal(411, "say the length of the body")
        if len(length) > 15 or int(length) > self.server.limits.body_bytes:
            raise Refusal(413, f"more than {self.server.limits.body_bytes:,} bytes")
        data = self.rfile.read(int(length))
        self.unread = False
        self._deadline.cancel()
        if len(data) != int(length):
            raise Refusal(400, "the body is shorter than was said")
        return data

    def _status(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": version(),
            "busy": self.server.bench.busy,
            "onnxruntime": require_runtime().__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cpu": cpu_features(),
            "limits": self.server.limits.to_json(),
        }

    def _measure(self, ask: Fields, inputs: Any) -> bytes:
        candidate, baseline = ask.digest("candidate"), ask.digest("baseline")
        answer = self.server.bench.measure(
            *(candidate, baseline, inputs, ask.threads(), ask.seconds(), ask.states())
        )
        said = {"candidate": candidate, "baseline": baseline, "nonce": ask.nonce()}
        return pack({"timing": answer["timing"], "states": answer["states"], **said})

    def _predict(self, ask: Fields, inputs: Any) -> bytes:
        model = ask.digest("model")
        said = {"model": model, "nonce": ask.nonce()}
        return pack(said, self.server.bench.predict(model, inputs, ask.threads()))


def version() -> str:
    """The version of the distribution that this agent comes from."""
    name = __name__.partition(".")[0].replace("_", "-")
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _drain(connection: socket.socket) -> None:
    """Read on for a moment after a refusal: a client still sending would miss the answer."""
    end = time.monotonic() + LINGER_S
    with suppress(OSError):
        connection.settimeout(0.5)
        while time.monotonic() < end and connection.recv(1 << 16):
            pass


def _cut(connection: socket.socket) -> None:
    """Close both ways now, also under a thread that waits for it."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
