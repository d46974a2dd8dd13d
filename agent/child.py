"""The process in which a model runs: it serves its agent over two pipes and is thrown away.

Started by :mod:`.bench` as ``python -m …agent.child LIFELINE``; one frame in is one job, one frame
out its answer. A frame is eight bytes of length and a message (see targets/wire.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import CandidateError
from ..targets.onnx_session import one_line, open_session, require_runtime
from ..targets.speed_states import SpeedStates, what_is_timed
from ..targets.timing import compare_in_states
from ..targets.timing_result import Timing
from ..targets.wire import pack, unpack

PREDICT_BATCH = 100


def main() -> None:
    """Answer jobs until the agent closes the pipe or dies."""
    _die_with_agent(int(sys.argv[1]))
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    limits, _ = unpack(read_frame(jobs) or b"{}\n")
    require_runtime()
    _confine(limits)
    sessions: dict[str, Any] = {}
    while (frame := read_frame(jobs)) is not None:
        write_frame(answers, _answer(frame, sessions, int(limits["body_bytes"])))


def read_frame(stream: IO[bytes], most_bytes: int = 1 << 40) -> bytes | None:
    """The next frame; None at the end of the stream, in the middle of a frame, or if too long."""
    head = stream.read(8)
    size = int.from_bytes(head, "big")
    if len(head) < 8 or size > most_bytes:
        return None
    data = stream.read(size)
    return data if len(data) == size else None


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Send one frame."""
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def _answer(frame: bytes, sessions: dict[str, Any], most_bytes: int) -> bytes:
    """The answer to one job; whatever the model does wrong is an answer too."""
    job, inputs = unpack(frame)
    try:
        if inputs is None or not inputs.ndim or not len(inputs):
            raise CandidateError("no inputs")
        if job["job"] == "predict":
            return pack({}, _predict(job, inputs, sessions, most_bytes))
        timing, states = measure(
            Path(job["candidate"]).read_bytes(),
            Path(job["baseline"]).read_bytes(),
            inputs,
            threads=job["threads"],
            seconds=job["seconds"],
            known=job["states"],
        )
        answer = {"timing": asdict(timing), "states": states.to_json()}
        return pack(answer)
    except MemoryError:
        return pack({"error": "out of memory"})
    except Exception as error:
        return pack({"error": one_line(error)})


def measure(
    candidate: bytes,
    baseline: bytes,
    batch: np.ndarray,
    *,
    threads: int = 1,
    seconds: float = 2.0,
    known: Mapping[str, Any] | None = None,
) -> tuple[Timing, SpeedStates]:
    """The latency of ``candidate`` beside ``baseline`` (ONNX files), and the speed states used.

    known: states learned before (JSON); they are used if they are those of this baseline, batch
    and thread count, else learned anew. Raises CandidateError naming the model that does not run.
    """
    base_call = _call(open_session(baseline, threads, where="baseline"), batch, "baseline")
    call = _call(open_session(candidate, threads, where="candidate"), batch, "candidate")
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    states = None if known is None else SpeedStates.from_json(known, "states")
    of = what_is_timed(baseline, batch.shape, threads)
    timing, states = compare_in_states(call, base_call, states, of=of, seconds=seconds, clock=clock)
    notes = {**timing.notes, "threads": threads, "batch": len(batch)}
    return replace(timing, notes=notes), states


def _predict(
    job: Mapping[str, Any], inputs: np.ndarray, sessions: dict[str, Any], most_bytes: int
) -> np.ndarray:
    path = str(job["model"])
    if path not in sessions:
        sessions[path] = open_session(Path(path).read_bytes(), job["threads"], where="model")
    rows = [
        _rows(sessions[path], inputs[i : i + PREDICT_BATCH])
        for i in range(0, len(inputs), PREDICT_BATCH)
    ]
    if not rows[0].size or sum(part.size for part in rows) * 4 > most_bytes:
        raise CandidateError(f"model: an output of shape {rows[0].shape[1:]} for each example")
    return np.concatenate(rows)


def _rows(session: Any, inputs: np.ndarray) -> np.ndarray:
    """The first output for these inputs, a row for each, as float32."""
    first = _run(session, inputs, "model")[0]
    if not isinstance(first, np.ndarray) or first.dtype.kind not in "fiub":
        raise CandidateError("model: its first output is no tensor of numbers")
    if first.shape[:1] != inputs.shape[:1]:
        raise CandidateError(f"model: {first.shape[:1]} rows of outputs for {len(inputs)} examples")
    return first.astype(np.float32)


def _call(session: Any, batch: np.ndarray, where: str) -> Callable[[], object]:
    """A call of a session without arguments, tried once."""
    _run(session, batch, where)
    outputs, feed = [session.get_outputs()[0].name], {session.get_inputs()[0].name: batch}
    run = session.run
    return lambda: run(outputs, feed)


def _run(session: Any, batch: np.ndarray, where: str) -> list[Any]:
    if len(session.get_inputs()) != 1:
        raise CandidateError(f"{where}: {len(session.get_inputs())} inputs where one is expected")
    try:
        outputs: list[Any] = session.run(
            [session.get_outputs()[0].name], {session.get_inputs()[0].name: batch}
        )
    except Exception as error:
        raise CandidateError(f"{where}: it does not run ({one_line(error)})") from error
    return outputs


def _confine(limits: Mapping[str, Any]) -> None:
    """No files written, few opened, no core dump, bounded memory and CPU time, from now on."""
    if os.name != "posix":
        return
    import resource

    def cap(kind: int, most: int) -> None:
        with contextlib.suppress(ValueError, OSError):  # stricter already, or unknown here
            resource.setrlimit(kind, (most, most))

    cap(resource.RLIMIT_CORE, 0)
    cap(resource.RLIMIT_FSIZE, 0)
    cap(resource.RLIMIT_NOFILE, 64)
    cap(resource.RLIMIT_CPU, int(limits["cpu_s"]))
    with contextlib.suppress(OSError):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        cap(resource.RLIMIT_AS, held + int(limits["memory_bytes"]))


def _die_with_agent(lifeline: int) -> None:
    """End this process, whatever it is doing, when the agent's end of the pipe closes."""

    def watch() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
