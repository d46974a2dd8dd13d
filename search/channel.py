"""One line of JSON at a time between the driver and a worker; never a pickle, never a long wait."""

from __future__ import annotations

import json
import selectors
import socket
import time
from typing import Any

LARGEST_BYTES = 16 << 20  # of one message


class ChannelError(Exception):
    """The other side sent what is no message, or does not read."""


class Channel:
    """Messages (JSON mappings) over a connected socket.

    Only finite numbers pass; a message above 16 MB is refused on both sides.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.closed = False  # the other side is gone
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: dict[str, Any], timeout_s: float = 10.0) -> None:
        """Send one message. Raises ValueError (also TypeError) when it is no plain finite JSON or
        too large, ChannelError when the other side is gone or does not read for ``timeout_s``."""
        data = json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if len(data) > LARGEST_BYTES:
            raise ValueError(f"a message of {len(data):,} bytes is too large")
        end, view = time.monotonic() + timeout_s, memoryview(data)
        while view:
            try:
                view = view[self.connection.send(view) :]
            except BlockingIOError:
                left = end - time.monotonic()
                if left <= 0 or not _ready(self.connection, selectors.EVENT_WRITE, left):
                    raise ChannelError("does not read what it is sent") from None
            except OSError as error:
                raise ChannelError(f"is gone ({error.strerror})") from None

    def poll(self) -> dict[str, Any] | None:
        """The next message that has arrived completely, else None (then look at ``closed``).

        Raises ChannelError on anything that is no JSON mapping.
        """
        while b"\n" not in self._buffer and not self.closed:
            try:
                block = self.connection.recv(1 << 16)
            except BlockingIOError:
                return None
            except OSError:
                block = b""
            self.closed = not block
            self._buffer += block
            if len(self._buffer) > LARGEST_BYTES:
                raise ChannelError(f"sent a message above {LARGEST_BYTES:,} bytes")
        line, newline, rest = bytes(self._buffer).partition(b"\n")
        if not newline:
            return None
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ChannelError("sent something that is no JSON") from None
        if not isinstance(message, dict):
            raise ChannelError("sent something that is no mapping")
        return message

    def wait(self) -> dict[str, Any] | None:
        """The next message, however long it takes; None when the other side is gone."""
        while (message := self.poll()) is None and not self.closed:
            _ready(self.connection, selectors.EVENT_READ, None)
        return message

    def close(self) -> None:
        """Close this side; the other side sees that."""
        self.connection.close()


def _ready(connection: socket.socket, event: int, timeout_s: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, event)
        return bool(selector.select(timeout_s))
