"""The remote target against real agents on loopback: conformance, queues, losses, refusals."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import Agent
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import nn

from paretune.errors import CandidateError, EnvironmentFault, InputError, ParetuneError
from paretune.objectives.problem import parse_target
from paretune.targets import wire
from paretune.targets.board import Board
from paretune.targets.catalogue import make_target
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.remote import Remote
from paretune.targets.target import Target
from paretune.tasks.job import load_job

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with Agent(tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture()
def files(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A small network, one of half its width, and a batch."""
    torch.manual_seed(0)
    for name, width in (("base", 16), ("half", 8)):
        layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten()]
        network = nn.Sequential(*layers, nn.Linear(width * 144, 4)).eval()
        OnnxRuntimeCpu().export(network, torch.zeros(1, 3, 16, 16), {}, [], tmp_path / f"{name}")
    inputs = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    return tmp_path / "base", tmp_path / "half", inputs


class TestRemote(_suite.TargetConformance):
    @pytest.fixture()
    def target(self, agent: Agent) -> Target:
        return make_target(agent.name, {**agent.options, "seconds": 0.3})


def test_times_and_predicts_what_the_local_runtime_does(
    agent: Agent, files: tuple[Path, Path, np.ndarray]
) -> None:
    base, half, inputs = files
    target, local = Remote(agent.name, **agent.options, seconds=0.3), OnnxRuntimeCpu(seconds=0.3)
    given = target.load(half).predict(np.tile(inputs, (50, 1, 1, 1)))
    expected = local.load(half).predict(np.tile(inputs, (50, 1, 1, 1)))
    np.testing.assert_array_equal(given, expected)
    timing = target.time(half, base, inputs)
    assert timing.unstable or 0.1 < timing.ratio < 1
    assert target.states is not None and timing.notes["board"] == agent.address
    again = target.time(half, base, inputs)  # with the states of the first
    assert again.unstable or target.states.of.endswith("1x3x16x16 threads=1")
    description = target.description
    assert json.loads(json.dumps(description)) == description
    assert description["cpu"] == local.description["cpu"]
    assert description["onnxruntime"] == local.description["onnxruntime"]


def test_a_job_names_a_board(agent: Agent, tmp_path: Path) -> None:
    job = {
        "name": "there",
        "folder": str(agent.folder),
        "task": {"model": "m:f", "data": {"kind": "digits"}},
        "objectives": ["accuracy", {"latency_ms": {"target": agent.name, "batch": 2}}],
        "target": {
            "format": "qdq",
            "remote": {"token_file": "token", "fingerprint": agent.fingerprint},
        },
    }
    loaded = load_job(job)
    assert loaded.target.remote is not None
    assert loaded.target.remote.token_file == str(agent.token_file)
    assert load_job(loaded.to_json()) == loaded
    target = parse_target(loaded)
    assert isinstance(target, Remote) and target.batch == 2
    assert target.description["quantized_format"] == "qdq"
    job["target"]["remote"]["token_fil"] = "x"
    with pytest.raises(InputError, match="did you mean 'token_file'"):
        load_job(job)


def one_line(error: ParetuneError) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 400, text
    return text


def refusal(name: str, **options: object) -> str:
    with pytest.raises((InputError, EnvironmentFault)) as caught:
        make_target(name, {"patience": 0.2, **options}, where="job.yaml:3: target.name")
    return one_line(caught.value)


def test_wrong_secrets_and_addresses_are_one_clear_line(agent: Agent, tmp_path: Path) -> None:
    good = agent.options
    wrong = tmp_path / "wrong"
    wrong.write_text("x" * 43)
    wrong.chmod(0o600)
    assert "refuses the token" in refusal(agent.name, **{**good, "token_file": str(wrong)})
    assert "refuses the token" in refusal(agent.name, fingerprint=agent.fingerprint)
    wrong.chmod(0o644)
    assert "chmod 600" in refusal(agent.name, **{**good, "token_file": str(wrong)})
    assert "cannot be read" in refusal(agent.name, **{**good, "token_file": str(tmp_path / "no")})
    other = "sha256:" + "0" * 64
    assert agent.fingerprint in refusal(agent.name, **{**good, "fingerprint": other})
    assert "no SHA-256" in refusal(agent.name, **{**good, "fingerprint": "ab:cd"})
    assert "not to be trusted (self-signed" in refusal(agent.name, token_file=good["token_file"])
    assert "holds no certificates" in refusal(
        agent.name, token_file=good["token_file"], ca=good["token_file"]
    )
    assert "in the clear" in refusal("remote:http://board:8765")
    for bad in ("remote:board:8765", "remote:https://", "remote:https://b:99999", "remote:ftp://b"):
        assert "no agent's address" in refusal(bad)
    assert "no known host name" in refusal("remote:https://nowhere.invalid")
    assert "did you mean 'fingerprint'" in refusal(agent.name, fingerprin="x")
    assert "did you mean 'remote:https" in refusal("remot:https://HOST:8765")
    assert "2 fingerprints for 1 boards" in refusal(
        agent.name, **{**good, "fingerprint": ["a"] * 2}
    )
    assert "does not run on boards" in refusal(agent.name, **good, runtime="onnxruntime-cuda")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "nothing listens there" in refusal(f"remote:https://127.0.0.1:{port}", fingerprint=other)


def test_a_certificate_can_be_pinned_as_openssl_prints_it(agent: Agent) -> None:
    digits = agent.fingerprint.removeprefix("sha256:").upper()
    colons = ":".join(re.findall("..", digits))
    token = str(agent.token_file)
    assert Remote(agent.name, token_file=token, fingerprint=colons).name == agent.name
    ca = str(agent.folder / "cert.pem")
    assert Remote(agent.name, token_file=token, ca=ca).name == agent.name


def test_an_expired_certificate_is_named(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "board")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now - datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pem").chmod(0o600)
    with Agent(tmp_path) as expired:
        assert expired.fingerprint == "sha256:" + certificate.fingerprint(hashes.SHA256()).hex()
        assert "certificate has expired" in refusal(expired.name, **expired.options)


@pytest.mark.parametrize(("version", "word"), [(0, "too old"), (None, "too old"), (9, "too new")])
def test_another_version_is_named(
    version: int | None, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = wire.pack({"protocol": version, "version": "0.0.1"})
    monkeypatch.setattr(Board, "request", lambda *a, **k: status)
    assert word in refusal("remote:http://127.0.0.1:9") and "upgrade" in refusal(
        "remote:http://127.0.0.1:9"
    )


def test_what_the_board_refuses_is_a_candidate_error(
    agent: Agent, files: tuple[Path, Path, np.ndarray]
) -> None:
    base, _, inputs = files
    target = Remote(agent.name, **agent.options, seconds=0.3)
    with pytest.raises(CandidateError, match="base: it does not run on the board"):
        target.load(base).predict(inputs[:, :2])
    with pytest.raises(InputError, match="threads: 4096 on a board that allows"):
        Remote(agent.name, **agent.options, threads=4096)


def test_two_boards_work_at_once(
    agent: Agent,
    files: tuple[Path, Path, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four timings from four threads: spread over both boards, at the same time."""
    base, half, inputs = files
    spans: list[tuple[str, float, float]] = []
    asked = Board.ask

    def ask(board: Board, verb: str, message: bytes) -> tuple[dict[str, Any], Any]:
        begun = time.monotonic()
        answer = asked(board, verb, message)  # a busy board raises: its refusals are no spans
        spans.append((board.address, begun, time.monotonic()))
        return answer

    monkeypatch.setattr(Board, "ask", ask)
    with Agent(tmp_path / "second") as second:
        pins = [agent.fingerprint, second.fingerprint]
        second.kill()
        second.token_file.write_bytes(agent.token_file.read_bytes())
        second.start()
        targets = [
            Remote(
                agent.name,
                boards=[second.address],
                token_file=str(agent.token_file),
                fingerprint=pins,
                seconds=0.5,
            )
            for _ in range(4)
        ]
        threads = [threading.Thread(target=t.time, args=(half, base, inputs)) for t in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert {board for board, _, _ in spans} == {agent.address, second.address}
    assert len(spans) == 4
    overlaps = [
        (a[0], b[0]) for a in spans for b in spans if a[0] < b[0] and a[1] < b[2] and b[1] < a[2]
    ]
    assert overlaps


def test_a_board_that_vanishes_is_waited_for(
    files: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    """Killed in the middle of a timing and started again: the timing comes all the same. Gone for
    good: one line that says what to do."""
    base, half, inputs = files
    with Agent(tmp_path / "board") as board:
        target = Remote(board.name, **board.options, seconds=1.5, patience=30)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(target.time(half, base, inputs)))
        thread.start()
        time.sleep(1.5)
        board.kill()
        time.sleep(1)
        assert not answers
        board.start()
        thread.join(60)
        assert len(answers) == 1 and answers[0].ratio > 0
        board.kill()
        short = target._boards
        short._patience_s = 1.0
        with pytest.raises(EnvironmentFault, match="run the same command again") as caught:
            target.time(half, base, inputs)
        assert "nothing listens there" in one_line(caught.value)


def test_another_kind_of_board_is_refused(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Board.status

    def status(board: Board) -> dict[str, object]:
        said = real(board)
        if "localhost" in board.address:
            said["onnxruntime"] = "1.0.0"
        return said

    monkeypatch.setattr(Board, "status", status)
    other = agent.address.replace("127.0.0.1", "localhost")
    assert "another kind of board" in refusal(agent.name, boards=[other], **agent.options)
