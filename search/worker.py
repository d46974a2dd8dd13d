"""What runs in a worker process: load the evaluator once, then answer one plan after another.

Started by the pool as ``python -P -m paretune.search.worker SOCKET LIFELINE``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import os
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import paretune

from ..errors import CandidateError, EnvironmentFault, InputError, ParetuneError
from ..objectives.evaluation import Artifact, Evaluation
from ..spaces.plan import CompressionPlan
from .channel import Channel, ChannelError

_DETAIL = 20_000  # characters of a traceback that are kept
_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "failed to allocate", "allocation failed")


def main() -> None:
    """Serve the driver until it closes the channel or dies."""
    connection, lifeline = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_driver(lifeline)
    channel = Channel(socket.socket(fileno=connection))
    hello = channel.wait()
    if hello is None:
        return
    try:
        evaluator = _load(hello)
    except BaseException as error:  # whatever happens, the driver is told
        channel.send({"fatal": described(error)})
        return
    at: dict[str, Any] = {"job": None}  # what it works on
    if hasattr(evaluator, "connect"):
        evaluator.connect(lambda asked: _ask(channel, at["job"], asked))
    cap_gb = _cap_memory(hello["memory_bytes"])
    channel.send({"ready": os.getpid()})
    while (request := channel.wait()) is not None:
        at["job"] = request["job"]
        reply = _answer(evaluator, request, cap_gb, channel)
        try:
            channel.send(reply)
        except ChannelError:
            return
        except (ValueError, TypeError) as error:
            plan = CompressionPlan.from_json(request["plan"])
            failed = Evaluation.failure(
                plan, f"the evaluation cannot be sent: {error}", request["rung"]
            )
            channel.send({"job": request["job"], "evaluation": failed.to_json()})


def _answer(
    evaluator: Any, request: dict[str, Any], cap_gb: float | None, channel: Channel
) -> dict[str, Any]:
    """Evaluate one plan; whatever goes wrong with it becomes a failed evaluation.

    At the rung ``recover`` it is trained first, which tells of its progress on the channel.
    """

    def tell(progress: dict[str, Any]) -> None:
        channel.send({"job": request["job"], "progress": progress})

    plan, rung = CompressionPlan.from_json(request["plan"]), request["rung"]
    baseline = Evaluation.from_json(request["baseline"]) if request["baseline"] else None
    artifact = Artifact.from_json(request["artifact"]) if request["artifact"] else None
    try:
        evaluation: Evaluation
        if rung == "recover":
            evaluation = evaluator.recover(plan, request["job"], baseline, tell)
        else:
            evaluation = evaluator.evaluate(plan, rung=rung, baseline=baseline, artifact=artifact)
    except EnvironmentFault as error:
        return {"job": request["job"], "fault": str(error)}
    except ParetuneError as error:
        evaluation = _failure(plan, rung, str(error))
    except MemoryError as error:
        evaluation = _failure(plan, rung, f"out of memory {error}")
    except SystemExit as error:
        evaluation = _failure(plan, rung, f"the evaluation called sys.exit({error.code!r})")
    except Exception as error:
        evaluation = _failure(plan, rung, f"{type(error).__name__}: {error}")
    words = f"{evaluation.cause} {evaluation.detail}".lower()
    if evaluation.failed and os.strerror(errno.ENOSPC).lower() in words:
        return {"job": request["job"], "fault": f"{evaluation.cause}; free space and go on"}
    full = evaluation.failed and (
        "out of memory" in words or any(w in words for w in _OUT_OF_MEMORY)
    )
    if full:
        cap = "" if cap_gb is None else f" (cap {cap_gb:.1f} GB)"
        evaluation = replace(evaluation, cause=f"out of memory{cap}")
    return {"job": request["job"], "evaluation": evaluation.to_json(), "worn": full}


def _ask(channel: Channel, job: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What the pool answers to a question of the evaluator that is at work on ``job``."""
    channel.send({"job": job, "call": asked})
    message = channel.wait()
    if message is None:
        sys.exit(0)
    return dict(message["reply"])


def _failure(plan: CompressionPlan, rung: str, cause: str) -> Evaluation:
    return Evaluation.failure(plan, cause, rung, traceback.format_exc()[-_DETAIL:])


def _load(hello: dict[str, Any]) -> Any:
    """The evaluator that the factory makes; threads and the module search path are set first."""
    here = Path(paretune.__file__).resolve().parent
    for folder in hello["path"]:
        if folder not in sys.path:
            sys.path.append(folder)
    # The folder of the package itself must not be searched: `import search` would find a twin of
    # paretune.search there.
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != here]
    evaluator = _named(hello["factory"])(**hello["kwargs"])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        with contextlib.suppress(RuntimeError):  # fixed already by the first parallel work
            sys.modules["torch"].set_num_interop_threads(1)
    return evaluator


def _named(spec: str) -> Any:
    """``package.module:name.attribute`` or ``/path/file.py:name``."""
    source, _, name = spec.rpartition(":")
    if source.endswith(".py"):
        found = importlib.util.spec_from_file_location(f"paretune_{Path(source).stem}", source)
        if found is None or found.loader is None:
            raise InputError("factory", f"{source!r} is no Python file", "")
        item: Any = importlib.util.module_from_spec(found)
        sys.modules[found.name] = item
        found.loader.exec_module(item)
    else:
        item = importlib.import_module(source)
    for part in name.split("."):
        item = getattr(item, part)
    return item


def described(error: BaseException) -> dict[str, Any]:
    """An error as JSON, for :func:`rebuilt`."""
    out: dict[str, Any] = {"type": type(error).__name__, "message": f"{error}"}
    if isinstance(error, InputError):
        out["parts"] = [error.where, error.problem, error.remedy]
    out["detail"] = "".join(traceback.format_exception(error))[-_DETAIL:]
    return out


def rebuilt(data: dict[str, Any]) -> ParetuneError:
    """The error that a worker met while loading, as the driver raises it."""
    if data["type"] == "InputError":
        return InputError(*data["parts"])
    if data["type"] in ("EnvironmentFault", "CandidateError", "ParetuneError"):
        kind = EnvironmentFault if data["type"] == "EnvironmentFault" else CandidateError
        return kind(data["message"])
    fault = EnvironmentFault(f"a worker could not load: {data['type']}: {data['message']}")
    fault.add_note(data["detail"])
    return fault


def _cap_memory(cap_bytes: int | None) -> float | None:
    """Limit what this process may take on top of what it holds now; returns the cap in GB."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    if cap_bytes is None or on_gpu or not os.path.exists("/proc/self/statm"):
        return None
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    cap = held + cap_bytes if hard == resource.RLIM_INFINITY else min(held + cap_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (cap, hard))
    return cap_bytes / 1e9


def _die_with_driver(lifeline: int) -> None:
    """Have this whole process group killed when the driver's end of the pipe closes, for whatever
    reason; on Linux by the kernel itself, so that no hang in C code can prevent it."""
    import fcntl

    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            if os.read(lifeline, 1) == b"":  # it closed before the kernel was asked to watch
                os.killpg(0, signal.SIGKILL)
        return
    import threading

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
