"""The agent as its callers meet it: who may ask, what a request may cost, what it leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import Agent
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from paretune.agent.bench import Bench, Unknown
from paretune.agent.limits import Limits
from paretune.agent.server import Server
from paretune.errors import CandidateError
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.wire import PROTOCOL, pack, unpack

BINARY = {"Content-Type": "application/octet-stream"}
NONCE = "0123456789abcdef"


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "linear"
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    OnnxRuntimeCpu().export(network, torch.zeros(1, 3, 2, 2), {}, [], path)
    return path.read_bytes()


def greedy(gigabytes: int) -> bytes:
    """A model of a few bytes that asks for much memory."""
    shape = numpy_helper.from_array(np.array([gigabytes, 1 << 28], dtype=np.int64), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [shape])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def slow(size: int = 3000, times: int = 400) -> bytes:
    """A model that works for minutes."""
    square = numpy_helper.from_array(np.array([size, size], dtype=np.int64), "s")
    nodes = [helper.make_node("RandomNormal", [], ["m0"], shape=[size, size], seed=1.0)]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(times)]
    nodes += [helper.make_node("ReduceMean", [f"m{times}"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("Add", ["x", "mean"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [square])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Local:
    """A server in this process (its jobs run in children all the same)."""

    def __init__(self, token: str | None = None, **limits: Any) -> None:
        self.bench = Bench(Limits(**limits))
        self.server = Server(("127.0.0.1", 0), self.bench, token, log=False)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] = BINARY
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, unpack(answer.read())[0]
        finally:
            connection.close()

    def send(self, data: bytes) -> str:
        status, said = self.ask("PUT", f"/v1/models/{digest(data)}", data)
        assert status == 200, said
        return digest(data)

    def predict(self, name: str, inputs: np.ndarray, **more: Any) -> tuple[int, dict[str, Any]]:
        fields = {"model": name, "nonce": NONCE, **more}
        return self.ask("POST", "/v1/predict", pack(fields, inputs))

    def raw(self, sent: bytes, wait_s: float = 5.0) -> bytes:
        with socket.create_connection(("127.0.0.1", self.server.port), wait_s) as connection:
            connection.sendall(sent)
            received = b""
            while part := connection.recv(1 << 16):
                received += part
            return received

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.bench.close()
        self.thread.join()


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with Local(body_bytes=1 << 20, idle_s=0.5, receive_s=1.5) as running:
        yield running


INPUTS = np.ones((2, 3, 2, 2), dtype=np.float32)
ROUTES = [
    ("GET", "/v1/status"),
    ("GET", "/"),
    ("PUT", "/v1/models/" + "0" * 64),
    ("POST", "/v1/measure"),
    ("POST", "/v1/predict"),
    ("POST", "/v1/none"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_wants_the_token(method: str, path: str) -> None:
    with Local(token="t" * 32) as guarded:
        for given in ({}, {"Authorization": "Bearer " + "u" * 32}, {"Authorization": "t" * 32}):
            assert guarded.ask(method, path, b"{}\n", {**BINARY, **given})[0] == 401
        right = {**BINARY, "Authorization": "Bearer " + "t" * 32}
        assert guarded.ask(method, path, b"{}\n", right)[0] != 401


def test_without_a_token_only_this_machine_and_no_web_page_may_ask(local: Local) -> None:
    assert local.ask("GET", "/v1/status")[0] == 200
    assert local.ask("GET", "/v1/status", headers={"Host": "[::1]:1"})[0] == 200
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""):
        assert local.ask("GET", "/v1/status", headers={"Host": host})[0] == 403
    assert local.ask("GET", "/v1/status", headers={"Origin": "http://localhost"})[0] == 403
    assert local.ask("POST", "/v1/predict", b"{}\n", {"Content-Type": "text/plain"})[0] == 415
    assert b"501" in local.raw(b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n")[:20]


def test_status_says_what_a_searcher_needs(local: Local) -> None:
    status, said = local.ask("GET", "/v1/status")
    assert status == 200 and json.loads(json.dumps(said)) == said
    assert said["protocol"] == PROTOCOL and said["busy"] is False
    assert said["limits"]["body_bytes"] == 1 << 20 and said["cpu"]["cores"] >= 1


def test_bad_requests_are_refused_with_a_line(local: Local, linear: bytes) -> None:
    name = local.send(linear)
    good = {"model": name, "nonce": NONCE}
    bodies = {
        "400": [
            *(b"", b"\n", b"[1]\n", b"{", b"{}\n", b'{"a": NaN}\n', b"[" * 9000 + b"\n"),
            *(
                b"x" * 70_000,
                b'{"shape": [1e9]}\n',
                b'{"shape": [-1]}\n',
                b'{"shape": [true]}\n1234',
            ),
            *(b'{"shape": [99999999999, 99999999999]}\n', pack(good), pack(good, np.float32(1))),
            pack({**good, "model": "../" + name[3:]}, INPUTS),
            pack({**good, "model": name.upper()}, INPUTS),
            *(pack({**good, "nonce": n}, INPUTS) for n in ("", "short", "x" * 200, 5, "é" * 20)),
            *(pack({**good, "threads": n}, INPUTS) for n in (0, 2, -1, "1", 1.0, True, None)),
        ]
    }
    for body in bodies["400"]:
        status, said = local.ask("POST", "/v1/predict", body)
        assert status == 400 and said["error"], body[:60]
    measure = {"candidate": name, "baseline": name, "nonce": NONCE}
    for wrong in ({"seconds": 0}, {"seconds": 1e9}, {"seconds": "2"}, {"states": []}):
        assert local.ask("POST", "/v1/measure", pack({**measure, **wrong}, INPUTS))[0] == 400
    status, said = local.ask("POST", "/v1/measure", pack({**measure, "states": {}}, INPUTS))
    assert status == 422 and "not speed states" in said["error"]
    assert local.ask("PUT", "/v1/models/" + "0" * 64, b"x")[0] == 422
    assert local.ask("PUT", "/v1/models/..%2f..%2fetc", b"x")[0] == 404
    assert local.predict("0" * 64, INPUTS)[0] == 404
    status, said = local.predict(name, INPUTS[:, :2])
    assert status == 422 and "does not run" in said["error"] and "\n" not in said["error"]
    assert local.predict(name, INPUTS)[0] == 200


def test_lengths_are_checked_before_a_byte_is_read(local: Local) -> None:
    head = "PUT /v1/models/" + "0" * 64 + " HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/octet-stream\r\n"
    for length, status in (("600000000", 413), ("9" * 400, 413), ("-1", 411), ("x", 411)):
        begin = time.monotonic()
        answer = local.raw(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert f" {status} ".encode() in answer[:20] and time.monotonic() - begin < 3
    assert b" 411 " in local.raw(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode())[:20]
    big = b"x" * (3 << 20)  # a client that sends all the same is told why
    assert local.ask("PUT", "/v1/models/" + "0" * 64, big)[0] == 413


def test_slow_and_silent_clients_are_cut_off_and_others_served(local: Local) -> None:
    """No byte at all, a header without an end, a body drop by drop: none lasts, all are bounded."""

    def drip(first: bytes) -> float:
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", local.server.port), 10) as connection:
            try:
                connection.sendall(first)
                while time.monotonic() - begin < 10:
                    connection.sendall(b"a")
                    time.sleep(0.1)
            except OSError:
                pass
        return time.monotonic() - begin

    begin = time.monotonic()
    assert local.raw(b"", 10) == b"" and time.monotonic() - begin < 2
    assert drip(b"GET /v1/status HTTP/1.1\r\nX: ") < 4
    head = "PUT /v1/models/" + "0" * 64 + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
    head += "Content-Type: application/octet-stream\r\n\r\n"
    assert drip(head.encode()) < 4
    silent = [socket.create_connection(("127.0.0.1", local.server.port)) for _ in range(40)]
    time.sleep(0.8)  # more than there are places for: closed, or cut off by now
    assert local.ask("GET", "/v1/status")[0] == 200
    for connection in silent:
        connection.close()


def test_one_job_at_a_time(local: Local, linear: bytes) -> None:
    name = local.send(linear)
    with local.bench.turn():
        assert local.ask("GET", "/v1/status")[1]["busy"] is True
        for method, path, body in (
            ("POST", "/v1/predict", pack({"model": name, "nonce": NONCE}, INPUTS)),
            ("POST", "/v1/measure", b"{}\n"),
            ("PUT", f"/v1/models/{name}", linear),
        ):
            assert local.ask(method, path, body)[0] == 423
    assert local.predict(name, INPUTS)[0] == 200


def test_a_model_that_hangs_dies_or_eats_memory_costs_only_itself(linear: bytes) -> None:
    with Local(wall_s=3.0, memory_bytes=256 << 20) as agent:
        name, x = agent.send(linear), np.ones((1, 3), dtype=np.float32)
        assert agent.predict(name, INPUTS)[0] == 200
        status, said = agent.predict(agent.send(greedy(4)), x)
        assert status == 422 and said["error"]
        begin = time.monotonic()
        status, said = agent.predict(agent.send(slow()), x)
        assert (status, said["error"]) == (422, "model: its process took longer than 3 s")
        assert time.monotonic() - begin < 6
        child = next(iter(agent.bench._predicting.values()))
        os.kill(child._process.pid, 11)
        status, said = agent.predict(name, INPUTS)
        assert (status, said["error"]) == (422, "model: its process died of SIGSEGV")
        status, said = agent.predict(name, INPUTS)
        assert status == 200
    assert not agent.bench.folder.exists()


def test_a_child_writes_no_file_and_opens_few(tmp_path: Path, linear: bytes) -> None:
    """The limits hold in the process itself: asked of the kernel."""
    bench = Bench(Limits(memory_bytes=1 << 30))
    try:
        bench.store(digest(linear), linear)
        bench.predict(digest(linear), INPUTS, 1)
        pid = next(iter(bench._predicting.values()))._process.pid
        limits = Path(f"/proc/{pid}/limits")
        if not limits.exists():
            pytest.skip("this system does not tell a process's limits")
        rows = {row[:26].strip(): row[26:].split()[:2] for row in limits.read_text().splitlines()}
        assert rows["Max file size"] == ["0", "0"] and rows["Max core file size"] == ["0", "0"]
        assert rows["Max open files"] == ["64", "64"]
        assert rows["Max address space"][0] != "unlimited"
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in loaded and "onnxruntime" in loaded
        assert stat.S_IMODE(bench.folder.stat().st_mode) == 0o700
        assert {p.name for p in bench.folder.iterdir()} == {f"{digest(linear)}.onnx"}
    finally:
        bench.close()


def test_the_store_is_bounded(linear: bytes) -> None:
    """The model used longest ago makes room."""
    bench = Bench(Limits(store_bytes=len(linear) * 2 + 10))
    try:
        others = []
        for number in range(3):
            data = linear + b"\x72\x01" + bytes([65 + number])  # an unknown field: harmless
            bench.store(digest(data), data)
            others.append(digest(data))
        assert len(list(bench.folder.iterdir())) == 2
        with pytest.raises(Unknown):
            bench.predict(others[0], INPUTS, 1)
        with pytest.raises(CandidateError, match="hash"):
            bench.store(others[0], linear)
    finally:
        bench.close()


def run_cli(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "paretune.agent.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def test_it_refuses_to_start_unsafely(tmp_path: Path) -> None:
    code, line = run_cli("--bind", "0.0.0.0", "--port", "0")
    assert code == 2 and "needs a token" in line and "--token-file" in line
    readable = tmp_path / "token"
    readable.write_text("x" * 43)
    readable.chmod(0o644)
    code, line = run_cli("--port", "0", "--token-file", str(readable))
    assert code == 2 and "chmod 600" in line
    short = tmp_path / "short"
    short.write_text("secret")
    short.chmod(0o600)
    assert run_cli("--port", "0", "--token-file", str(short))[0] == 2
    assert run_cli("--port", "0", "--cert", str(short))[0] == 2
    code, line = run_cli("--port", "0", "--cert", str(short), "--key", str(short))
    assert code == 2 and "no certificate and its key" in line
    assert run_cli("--bind", "no.such.host.invalid", "--port", "0")[0] == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, line = run_cli("--port", str(taken.getsockname()[1]))
    assert code == 5 and "in use" in line


def test_paretune_agent_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paretune.cli", "agent", "--bind", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("paretune: --bind: '0.0.0.0'")


def test_any_other_address_gets_a_token_and_tls(tmp_path: Path) -> None:
    """Started on every address with a token file only: token and certificate are made, private."""
    token = tmp_path / "token"
    command = [sys.executable, "-m", "paretune.agent.main", "--bind", "0.0.0.0", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--token-file", str(token)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert "https://0.0.0.0:" in first and second.startswith("fingerprint sha256:")
        for path in (token, Path(f"{token}.key")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(token.read_text().strip()) >= 43
        port = int(first.rpartition(":")[2])
        with pytest.raises((OSError, http.client.HTTPException)):  # no plain HTTP
            plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            plain.request("GET", "/v1/status")
            plain.getresponse()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(f"{token}.cert")
        with (
            socket.create_connection(("127.0.0.1", port)) as tcp,
            context.wrap_socket(tcp, server_hostname="localhost") as secure,
        ):
            shown = secure.getpeercert(binary_form=True) or b""
        assert second.strip() == "fingerprint sha256:" + hashlib.sha256(shown).hexdigest()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close() if process.stdout else None


def test_it_starts_again_on_its_port_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with Agent(tmp_path, plain=True) as agent:
        port = agent.port
        for _ in range(2):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/v1/status")
            assert connection.getresponse().status == 200
            connection.close()
            agent.stop()
            assert agent.process is not None and agent.process.returncode == 0
            assert list(agent.temporary.iterdir()) == []
            agent.start()
            assert agent.port == port


def test_it_ends_at_once_amid_requests(tmp_path: Path) -> None:
    """The interrupt is never lost in a connection, and no connection's thread spoils the end."""

    def ask(port: int) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/v1/status")
                connection.getresponse().read()
                connection.close()

    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Agent(folder, plain=True) as agent:
            clients = [threading.Thread(target=ask, args=(agent.port,)) for _ in range(4)]
            for client in clients:
                client.start()
            time.sleep(0.2)
            agent.stop()
            for client in clients:
                client.join()
            assert agent.process is not None
            assert agent.process.returncode == 0, (folder / "log").read_text()[-2000:]
