"""One board: the conversation with the device agent that runs there."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import CandidateError, InputError, ParetuneError
from .wire import DEFAULT_PORT, PROTOCOL, WireError, unpack

CONNECT_S, ANSWER_S = 10.0, 400.0
MOST_ANSWER = 1 << 29  # bytes
_PIN = re.compile(r"(?:sha-?256[:=/ ]?)?([0-9a-f]{64})")


class Unreachable(ParetuneError):
    """Nobody answers at an address; perhaps later."""


class Vanished(Unreachable):
    """The connection broke while the board was at work."""


class BusyBoard(ParetuneError):
    """The board does another job."""


class UnknownModel(ParetuneError):
    """The board has not, or no longer, the model that was named."""


class Board:
    """An agent's address and what is needed to trust it and be trusted.

    address: ``https://board:8765``, or ``http://`` on loopback only (an SSH tunnel). pin: SHA-256
    of its certificate, as the agent prints it; ca: a PEM file of authorities; neither: the
    system's authorities. Raises InputError on an address that cannot be, or no safe one.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        pin: str | None = None,
        ca: Path | None = None,
        where: str = "target",
    ) -> None:
        self.where, self._token = where, token
        self.host, self.port, self._secure = _split(address, where)
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.address = f"http{'s' * self._secure}://{shown}:{self.port}"
        self._pin = None if pin is None else _digest(pin, f"{where}.fingerprint")
        self._ca = ca
        self._context: ssl.SSLContext | None = None
        self.models: set[str] = set()

    def status(self) -> dict[str, Any]:
        """The agent's status. Raises InputError where it speaks another protocol."""
        said, _ = self._message(self.request("GET", "/v1/status", timeout_s=30.0))
        cpu = said.get("cpu")
        texts = [said.get("onnxruntime"), said.get("system"), said.get("version")]
        known = isinstance(cpu, dict) and {"architecture", "model", "flags"} <= set(cpu)
        limits = said.get("limits")
        bounds = [limits.get(k) for k in ("threads", "wall_s")] if isinstance(limits, dict) else []
        known &= len(bounds) == 2 and all(type(bound) in (int, float) for bound in bounds)
        protocol, version = said.get("protocol"), str(said.get("version"))[:40]
        if protocol != PROTOCOL:
            old = not isinstance(protocol, int) or protocol < PROTOCOL
            raise InputError(
                self.where,
                f"{self.address} runs version {version!r} of the agent, which is too "
                f"{'old' if old else 'new'} (protocol {protocol!r:.20}, here {PROTOCOL})",
                f"upgrade {'paretune-agent on the board' if old else 'paretune here'}",
            )
        if not known or not all(isinstance(text, str) for text in texts):
            raise InputError(self.where, f"{self.address}: no agent of paretune answers there", "")
        return said

    def send_model(self, digest: str, data: bytes) -> None:
        """Have the board keep a model, unless it was sent before."""
        if digest not in self.models:
            self.request("PUT", f"/v1/models/{digest}", data)
            self.models.add(digest)

    def ask(self, verb: str, message: bytes) -> tuple[dict[str, Any], Any]:
        """The answer to ``measure`` or ``predict``."""
        return self._message(self.request("POST", f"/v1/{verb}", message))

    def request(
        self, method: str, path: str, body: bytes = b"", timeout_s: float = ANSWER_S
    ) -> bytes:
        """The body of a successful answer.

        Raises Unreachable, Vanished, BusyBoard, UnknownModel; CandidateError where the board
        refuses the model; InputError where it refuses us.
        """
        connection = self._connected()
        deadline = threading.Timer(timeout_s, _cut, (connection,))
        deadline.daemon = True
        deadline.start()
        headers = {"Content-Type": "application/octet-stream"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            # refused before it was all sent: the answer says why
            with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read(MOST_ANSWER)
            if answer.length:  # of what was announced; a read of a given size does not complain
                raise http.client.IncompleteRead(data, answer.length)
            status = answer.status
        except (OSError, http.client.HTTPException) as error:
            raise Vanished(f"{self.address}: the connection broke ({_reason(error)})") from error
        finally:
            deadline.cancel()
            connection.close()
        if status == 200:
            return data
        raise self._refusal(status, data)

    def _refusal(self, status: int, data: bytes) -> ParetuneError:
        try:
            text = str(unpack(data)[0].get("error"))
        except WireError:
            text = "no agent of paretune answers there"
        text = "".join(c if c.isprintable() else " " for c in text)[:300]
        if status == 423:
            return BusyBoard(f"{self.address} is busy")
        if status == 404 and "unknown model" in text:
            self.models.clear()
            return UnknownModel(text)
        if status in (413, 422):
            return CandidateError(f"{self.address}: {text}")
        if status == 401:
            return InputError(
                self.where,
                f"{self.address} refuses the token",
                "copy the agent's token file and name it in target.remote.token_file",
            )
        if status >= 500:
            return Vanished(f"{self.address}: {text} ({status})")
        return InputError(self.where, f"{self.address} refuses the request: {text} ({status})", "")

    def _message(self, data: bytes) -> tuple[dict[str, Any], Any]:
        try:
            return unpack(data)
        except WireError as error:
            raise InputError(
                self.where, f"{self.address}: no agent of paretune answers there ({error})", ""
            ) from error

    def _connected(self) -> http.client.HTTPConnection:
        """An open connection to the board that was meant."""
        if not self._secure:
            plain = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_S)
            return self._open(plain)
        if self._context is None:
            self._context = self._trust()
        secure = http.client.HTTPSConnection(
            self.host, self.port, timeout=CONNECT_S, context=self._context
        )
        return self._open(secure)

    def _open(self, connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            self._context = None  # a pin is compared anew next time
            raise InputError(
                self.where,
                f"{self.address}: its certificate is not to be trusted ({error.verify_message})",
                "remove the agent's certificate and key and start it again for new ones"
                if "expired" in error.verify_message
                else "give target.remote.fingerprint as the agent prints it, or target.remote.ca",
            ) from error
        except OSError as error:
            raise self._no_answer(error) from error
        connection.sock.settimeout(ANSWER_S)
        return connection

    def _trust(self) -> ssl.SSLContext:
        """A context that accepts the pinned certificate only, or those of the authorities."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._pin is None:
            try:
                if self._ca is not None:
                    context.load_verify_locations(cafile=str(self._ca))
                else:
                    context.load_default_certs()
            except (OSError, ssl.SSLError) as error:
                raise InputError(
                    f"{self.where}.ca", f"{str(self._ca)!r} holds no certificates ({error})", ""
                ) from error
            return context
        shown = self._shown_certificate()
        if hashlib.sha256(shown).hexdigest() != self._pin:
            raise InputError(
                self.where,
                f"{self.address} shows another certificate than the fingerprint pins "
                f"(it shows sha256:{hashlib.sha256(shown).hexdigest()})",
                "if the agent made a new one, correct target.remote.fingerprint",
            )
        context.check_hostname = False  # this very certificate is expected, whatever its names
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=shown)
        return context

    def _shown_certificate(self) -> bytes:
        """What the server presents; nothing is sent to it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                socket.create_connection((self.host, self.port), CONNECT_S) as plain,
                context.wrap_socket(plain, server_hostname=self.host) as secure,
            ):
                return secure.getpeercert(binary_form=True) or b""
        except OSError as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: OSError) -> ParetuneError:
        if isinstance(error, ssl.SSLError) and "WRONG_VERSION" in str(error):
            return InputError(self.where, f"{self.address}: what listens there speaks no TLS", "")
        if isinstance(error, socket.gaierror):
            return InputError(self.where, f"{self.host!r} is no known host name", "")
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(f"{self.address}: nothing listens there; start paretune-agent")
        return Unreachable(f"{self.address}: no answer ({_reason(error)})")


def _split(address: str, where: str) -> tuple[str, int, bool]:
    """Host, port and whether it is TLS."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    whole = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not host or not whole or "@" in parts.netloc:
        raise InputError(
            where,
            f"{address.rpartition('@')[2]!r:.100} is no agent's address",
            "write https://HOST:PORT, without name or password",
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise InputError(
            where,
            f"{address!r:.100} would send models and token in the clear",
            "use https://, or an SSH tunnel and http://127.0.0.1:PORT",
        )
    return host, port, parts.scheme == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(pin: str, where: str) -> str:
    found = _PIN.fullmatch(pin.strip().lower().replace(":", "").replace("fingerprint=", ""))
    found = found or _PIN.fullmatch(pin.strip().lower())
    if found is None:
        raise InputError(
            where, f"{pin!r:.80} is no SHA-256 fingerprint", "copy the one that the agent prints"
        )
    return found[1]


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:120]


def _cut(connection: http.client.HTTPConnection) -> None:
    with suppress(OSError):
        if connection.sock is not None:
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
