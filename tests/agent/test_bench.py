"""The bench over a long life: full disks, cleaned folders, processes that have worked enough."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper

from paretune.agent import bench as module
from paretune.agent.bench import Bench, Unknown
from paretune.agent.limits import Limits
from paretune.agent.main import run_agent
from paretune.agent.server import Server
from paretune.errors import EnvironmentFault, InputError
from paretune.targets.board import Board, UnknownModel, Vanished
from paretune.targets.wire import pack

INPUTS = np.array([[-1.0, 2.0, 3.0]], dtype=np.float32)


def relu() -> tuple[str, bytes]:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    opset = [helper.make_opsetid("", 17)]
    data = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return hashlib.sha256(data).hexdigest(), data


@pytest.fixture()
def bench() -> Iterator[Bench]:
    made = Bench(Limits(wall_s=30.0))
    yield made
    made.close()


@pytest.fixture()
def board(bench: Bench) -> Iterator[Board]:
    """A searcher's end of a conversation with the bench."""
    server = Server(("127.0.0.1", 0), bench, log=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Board(f"http://127.0.0.1:{server.port}")
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_disk_that_is_full_is_said_and_leaves_no_part(
    bench: Bench, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, data = relu()

    class Full:
        def __init__(self, handle: int, mode: str) -> None:
            self.handle = handle

        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.handle)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fdopen", Full)
        with pytest.raises(EnvironmentFault, match="cannot store it .No space left on device"):
            bench.store(digest, data)
        assert list(bench.folder.iterdir()) == []
        with pytest.raises(Vanished, match="No space left on device"):  # tried again, then told
            board.send_model(digest, data)
    board.send_model(digest, data)
    np.testing.assert_array_equal(bench.predict(digest, INPUTS, 1), np.maximum(INPUTS, 0))


def test_a_board_without_processes_says_so(
    bench: Bench, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, data = relu()
    board.send_model(digest, data)

    def none(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module.subprocess, "Popen", none)
    with pytest.raises(Vanished, match="can start no process .Resource temporarily unavailable"):
        board.ask("predict", pack({"model": digest, "nonce": "0" * 16}, INPUTS))


def test_a_model_that_a_cleaner_removed_is_asked_for_again(bench: Bench, board: Board) -> None:
    digest, data = relu()
    board.send_model(digest, data)
    (bench.folder / f"{digest}.onnx").unlink()
    with pytest.raises(Unknown):
        bench.measure(digest, digest, INPUTS, 1, 0.1, None)
    board.send_model(digest, data)  # known to it: nothing is sent
    with pytest.raises(UnknownModel):
        board.ask("predict", pack({"model": digest, "nonce": "0" * 16}, INPUTS))
    board.send_model(digest, data)
    _, outputs = board.ask("predict", pack({"model": digest, "nonce": "0" * 16}, INPUTS))
    np.testing.assert_array_equal(outputs, np.maximum(INPUTS, 0))


def test_a_kept_process_ends_before_its_cpu_time_does(bench: Bench) -> None:
    """Its limit is of all jobs together: one that worked for ``wall_s`` is not given another."""
    digest, data = relu()
    bench.store(digest, data)

    def process() -> int:
        bench.predict(digest, INPUTS, 1)
        return next(iter(bench._predicting.values()))._process.pid

    first = process()
    assert process() == first
    (child,) = bench._predicting.values()
    assert 0 < child.worked_s < 30
    child.worked_s = 30.0
    np.testing.assert_array_equal(bench.predict(digest, INPUTS, 1), np.maximum(INPUTS, 0))
    assert not bench._predicting and child._process.poll() is not None
    assert process() != first


@pytest.mark.parametrize("memory_mb", [0, -5])
def test_no_memory_is_no_limit(memory_mb: int) -> None:
    with pytest.raises(InputError, match=f"--memory-mb: .* got {memory_mb}"):
        run_agent(port=0, memory_mb=memory_mb)
