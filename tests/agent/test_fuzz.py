"""Mutated requests and mutated answers: no crash, no stray file, no wrong number accepted."""

from __future__ import annotations

import copy
import hashlib
import http.client
import io
import json
import os
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from agents import Agent
from torch import nn

from paretune.targets.board_answer import ImpossibleAnswer, check_echo, read_timing
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.timing_result import Timing
from paretune.targets.wire import WireError, pack, unpack

NONCE = "0123456789abcdef"
SIZES = [pytest.param(300, id="300"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with Agent(tmp_path_factory.mktemp("agent"), plain=True) as running:
        yield running


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "linear"
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    OnnxRuntimeCpu().export(network, torch.zeros(1, 3, 2, 2), {}, [], path)
    return path.read_bytes()


def http_request(method: str, path: str, body: bytes = b"", length: str | None = None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def mutated(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(out) + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del out[at : at + draw.choice([1, 2, 8, 200])]
        elif kind == 2:
            out[at:at] = out[at : at + draw.randrange(1, 60)]
        elif kind == 3:
            out[at:at] = draw.choice(
                [b"\r\n", b"\0", b"../" * 3, b"/etc/passwd", b"NaN", b"-1", b"1e999", b"9" * 50]
            )
        elif kind == 4:
            out[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            del out[at:]
    return bytes(out)


def exchange(port: int, sent: bytes) -> bytes:
    """What the agent answers when the client then closes its side; b'' where it just hangs up."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except ConnectionError:
            pass
    return received


def array_in(request: bytes) -> np.ndarray | None:
    """The inputs that a server reads from a request: so many bytes behind the head as it says."""
    stream = io.BytesIO(request)
    stream.readline()
    length = http.client.parse_headers(stream)["Content-Length"]
    return unpack(stream.read(int(length)))[1]


def files_below(folder: Path) -> set[str]:
    return {str(Path(where) / name) for where, _, names in os.walk(folder) for name in names}


def test_a_request_without_a_version_gets_an_answer_with_a_head(agent: Agent) -> None:
    """HTTP/0.9 knows no head; whoever speaks it is answered like all others."""
    head, _, body = exchange(agent.port, b"GET /v1/status\r\n\r\n").partition(b"\r\n\r\n")
    assert head.split()[:2] == [b"HTTP/1.0", b"403"]  # it names no host
    assert set(unpack(body)[0]) == {"error"}


@pytest.mark.parametrize("count", SIZES)
def test_mutated_requests_do_no_harm(
    agent: Agent, linear: bytes, tmp_path: Path, count: int
) -> None:
    """Every answer is a well-formed refusal, or the right one; the same process serves on; no file
    appears but models under their hash in the agent's own folder."""
    name = hashlib.sha256(linear).hexdigest()
    inputs = np.random.default_rng(0).standard_normal((2, 3, 2, 2)).astype(np.float32)
    session = onnxruntime.InferenceSession(linear)
    asked = {"model": name, "nonce": NONCE, "threads": 1}
    good = [
        http_request("PUT", f"/v1/models/{name}", linear),
        http_request("POST", "/v1/predict", pack(asked, inputs)),
        http_request(
            "POST",
            "/v1/measure",
            pack({"candidate": name, "baseline": name, "nonce": NONCE, "seconds": 0.01}, inputs),
        ),
        http_request("GET", "/v1/status"),
    ]
    weights = [8, 8, 0.3, 1]  # a measurement takes a process of its own
    assert b" 200 " in exchange(agent.port, good[0])[:20]
    right = 0
    process, draw = agent.process, random.Random(count)
    log = agent.folder / "log"
    before = files_below(agent.folder)
    statuses: dict[str, int] = {}
    for _ in range(count):
        request = mutated(draw.choices(good, weights)[0], draw)
        answer = exchange(agent.port, request)
        if not answer:
            statuses["closed"] = statuses.get("closed", 0) + 1
            continue
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split()[1].decode()
        statuses[status] = statuses.get(status, 0) + 1
        fields, given = unpack(body)
        if status != "200":
            assert set(fields) == {"error"} and "Traceback" not in fields["error"], request
        elif given is not None and fields == {"model": name, "nonce": NONCE}:
            read = array_in(request)
            assert read is not None, request
            (expected,) = session.run(None, {session.get_inputs()[0].name: read})
            np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6, err_msg=str(request))
            right += 1
    assert process is not None and process.poll() is None
    assert "500" not in statuses, statuses
    assert right > count / 100
    assert sum(n for s, n in statuses.items() if s != "200") > count / 3, statuses
    folders = list(agent.temporary.iterdir())
    assert len(folders) == 1
    for path in files_below(agent.folder) - before:
        model = Path(path)
        assert model.parent == folders[0] and model.suffix == ".onnx", path
        assert hashlib.sha256(model.read_bytes()).hexdigest() == model.stem
    assert "Traceback" not in log.read_text()
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=10)
    connection.request("GET", "/v1/status")
    assert unpack(connection.getresponse().read())[0]["busy"] is False


def honest_answer(draw: random.Random) -> tuple[dict[str, Any], float]:
    """A timing as an agent would send it, and the seconds it took."""
    level = draw.uniform(0.05, 20)
    states = {"version": 1, "levels_ms": [level, 1.3 * level], "shares": [0.7, 0.3], "loop_ms": 0.2}
    ratio, rounds = draw.uniform(0.1, 2), draw.randrange(9, 200)
    timing = Timing(ratio, 0.01 * ratio, level, rounds, 0, 0.8, False, 0.2, 1.0, {"clock": "cpu"})
    wall_s = 2 * rounds * (1 + ratio) * level / 1000
    return {"timing": asdict(timing), "states": {**states, "reference": 0, "of": "x"}}, wall_s


ODD: list[Any] = [
    *(
        0,
        -1,
        1,
        1e-9,
        1e9,
        1e300,
        2**70,
        10**400,
        float("nan"),
        float("inf"),
        -0.5,
        True,
        False,
        None,
    ),
    *("", "1.0", "nan", [], {}, [1.0], {"a": 1}),
]


def mutate_answer(answer: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    out = copy.deepcopy(answer)
    part = out[draw.choice(["timing", "states"])]
    key = draw.choice(list(part))
    kind = draw.randrange(4)
    if kind == 0:
        del part[key]
    elif kind == 1 and isinstance(part[key], float):
        part[key] *= draw.choice([-1, 1e-8, 1e8, 10.0])
    elif kind == 2:
        out[draw.choice(["timing", "states"])] = draw.choice(ODD)
    else:
        part[key] = draw.choice(ODD)
    return out


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_answers_give_no_wrong_number(count: int) -> None:
    """What is accepted is finite, in range, and possible in the time that passed; else refused."""
    draw, refused = random.Random(1), 0
    for _ in range(count):
        answer, wall_s = honest_answer(draw)
        read_timing(answer, wall_s)  # as it is, it is believed
        lie = mutate_answer(answer, draw)
        try:
            timing, states = read_timing(lie, wall_s)
        except ImpossibleAnswer as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        loops = timing.loop_ms, timing.loop_ratio, states.loop_ms
        for value in (timing.ratio, timing.baseline_ms, *states.levels_ms, *loops):
            assert type(value) is float and np.isfinite(value) and value > 0
        assert 0 <= timing.ratio_error <= 10 * timing.ratio and timing.rounds >= 1
        work_s = timing.rounds * (1 + timing.ratio) * timing.baseline_ms / 1000
        assert 0.95 * work_s <= wall_s
        away = abs(np.log(timing.baseline_ms / states.levels_ms[timing.state]))
        assert timing.unstable or away <= np.log(1.2)
    assert refused > count / 2


@pytest.mark.parametrize("seed", range(200))
def test_mutated_messages_are_messages_or_errors(seed: int) -> None:
    draw = random.Random(seed)
    message = pack({"nonce": NONCE, "deep": [{"a": [1, 2.5, None]}]}, np.ones((2, 3)))
    for _ in range(20):
        try:
            fields, array = unpack(mutated(message, draw))
        except WireError:
            continue
        json.dumps(fields, allow_nan=False)
        assert array is None or (array.dtype == np.float32 and array.size)


def test_an_answer_to_another_question_is_refused() -> None:
    asked = {"nonce": NONCE, "candidate": "a" * 64, "baseline": "b" * 64}
    check_echo({**asked, "more": 1}, asked)
    for name in asked:
        for other in ("", "c" * 64, None, 5):
            with pytest.raises(ImpossibleAnswer, match=name):
                check_echo({**asked, name: other}, asked)


def test_an_array_survives_to_the_bit() -> None:
    array = np.frombuffer(struct.pack("<4f", 1.0, -0.0, 1e-42, 3.4e38), dtype="<f4").reshape(2, 2)
    fields, back = unpack(pack({"a": [1]}, array))
    assert fields == {"a": [1]} and back is not None and back.tobytes() == array.tobytes()
