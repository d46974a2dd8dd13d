"""A headless Chromium that a test can look through and click in, and that reaches only loopback.

Speaks the DevTools protocol over its web socket; nothing but the standard library is needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*", "--hide-scrollbars"),
)


class Chromium:
    """One page. Enter it; skips the test where there is no chromium.

    size: of the window. requests: every address that the page asked for. errors: what its scripts
    threw.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1360, 1400)) -> None:
        self._profile, self._size = profile, size
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._last, self._buffer = 0, b""
        self.requests: list[str] = []
        self.errors: list[str] = []

    def __enter__(self) -> Chromium:
        if PROGRAM is None:
            pytest.skip("chromium is not installed")
        self._profile.mkdir(parents=True, exist_ok=True)
        window = f"--window-size={self._size[0]},{self._size[1]}"
        self._process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={self._profile}", window, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def open(self, address: str, ready: str = "document.readyState === 'complete'") -> None:
        """Go there and wait until the expression ``ready`` is true."""
        self.call("Page.navigate", url=address)
        self.wait(ready)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; its error if it throws."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0) -> Any:
        """The first true value of an expression; fails with the page's text after ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # the page may not be there yet
                if value := self.evaluate(script):
                    return value
            time.sleep(0.1)
        raise TimeoutError(f"{script}: {self.evaluate('document.body.innerText')[:2000]}")

    def hover(self, x: float, y: float) -> None:
        """Move the mouse there."""
        for dx in (-3, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + dx, y=y)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button there, where the mouse may be already."""
        for kind in ("mousePressed", "mouseReleased"):
            press = {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **press)

    def type(self, text: str, enter: bool = True) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp") if enter else ():
            code = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self.call("Input.dispatchKeyEvent", type=kind, **code)

    def screenshot(self, path: Path) -> None:
        """What the window shows, as a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; its result."""
        self._last += 1
        self._send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._receive())
            if message.get("id") == self._last:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))

    def _connect(self) -> None:
        port_file = self._profile / "DevToolsActivePort"
        for _ in range(600):
            if port_file.exists() and len(port_file.read_text().split()) == 2:
                break
            time.sleep(0.1)
        port = int(port_file.read_text().split()[0])
        listed = urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30).read()
        pages = [target for target in json.loads(listed) if target["type"] == "page"]
        address = urlsplit(pages[0]["webSocketDebuggerUrl"])
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET {address.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(head.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._socket.recv(65536)
        self._buffer = self._buffer.split(b"\r\n\r\n", 1)[1]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def _send(self, text: str) -> None:
        """One masked text frame (RFC 6455, section 5.2)."""
        assert self._socket is not None
        data = text.encode()
        size = len(data)
        head = bytes([0x81])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
        self._socket.sendall(head + bytes(4) + data)  # a mask of zeros changes nothing

    def _receive(self) -> str:
        """The next whole text message."""
        parts = b""
        while True:
            first, second = self._read(2)
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._read(2 if size == 126 else 8), "big")
            parts += self._read(size)
            if first & 0x80:
                return parts.decode()

    def _read(self, count: int) -> bytes:
        assert self._socket is not None
        while len(self._buffer) < count:
            more = self._socket.recv(1 << 20)
            if not more:
                raise ConnectionError("chromium has gone")
            self._buffer += more
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found
