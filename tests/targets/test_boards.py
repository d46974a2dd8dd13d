"""Boards that answer badly: nothing behind a tunnel, half an answer, limits that are none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from paretune.errors import EnvironmentFault, InputError
from paretune.targets.board import Board, Vanished
from paretune.targets.boards import Boards
from paretune.targets.remote import Remote
from paretune.targets.wire import PROTOCOL, WireError, pack, unpack

STATUS: dict[str, Any] = {
    **{"protocol": PROTOCOL, "version": "1", "onnxruntime": "1", "system": "x"},
    "cpu": {"architecture": "x86_64", "model": "x", "flags": []},
    "limits": {"threads": 1, "wall_s": 300.0},
}


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that does ``answer`` with each connection and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_board_that_is_gone_behind_its_tunnel_costs_no_candidate() -> None:
    """The near end of an SSH tunnel accepts and hangs up: that is waited for like a closed port."""
    with listening(lambda connection: None) as address:
        boards = Boards([Board(address)], patience_s=1.5)
        asked = []
        begin = time.monotonic()
        with pytest.raises(EnvironmentFault, match="run the same command again"):
            boards.do(lambda board: asked.append(board), "a.onnx")
        assert time.monotonic() - begin >= 1.5 and not asked


def test_half_an_answer_is_none() -> None:
    """A board that dies while it answers has vanished; it has not answered nonsense."""

    def half(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"a": 1}\n')

    with listening(half) as address, pytest.raises(Vanished, match="the connection broke"):
        Board(address).request("GET", "/v1/status")


@pytest.mark.parametrize(
    "limits", [None, [], {}, {"threads": "1", "wall_s": 300}, {"threads": 1, "wall_s": None}]
)
def test_limits_that_are_none_are_no_agents(
    limits: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Board, "request", lambda *a, **k: pack({**STATUS, "limits": limits}))
    with pytest.raises(InputError, match="no agent of paretune answers there"):
        Board("http://127.0.0.1:9").status()


def test_a_timing_longer_than_the_board_allows_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Board, "request", lambda *a, **k: pack(STATUS))
    assert Remote("remote:http://127.0.0.1:9", seconds=37).seconds == 37
    with pytest.raises(InputError, match="seconds: 38 on a board that allows 37.5"):
        Remote("remote:http://127.0.0.1:9", seconds=38)
    with pytest.raises(InputError, match="threads: 2 on a board that allows 1"):
        Remote("remote:http://127.0.0.1:9", threads=2)


@pytest.mark.parametrize("number", ["1" * 400, "-" + "1" * 30, "1" * 5000])
def test_a_number_beyond_any_machine_is_no_message(number: str) -> None:
    with pytest.raises(WireError):
        unpack(f'{{"rounds": {number}}}\n'.encode())
    assert unpack(b'{"rounds": 123456789012345678}\n')[0] == {"rounds": 123456789012345678}
