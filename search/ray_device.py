"""The latency device of a cluster: one actor that holds its resource and times one file at a
time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray

NAMESPACE = "paretune"
_PATIENCE_S = 3600.0  # a queue of many workers is no fault


@ray.remote(max_restarts=-1, max_task_retries=1)
class Device:
    """Times exported files on the node that it runs on. job: the resolved job."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        from ..objectives.problem import parse_targets
        from ..tasks.job import load_job

        self._targets = {target.name: target for target in parse_targets(load_job(job))}
        self._folder = Path(tempfile.mkdtemp(prefix="paretune-device-"))
        self._baselines: dict[str, Path] = {}

    def node(self) -> str:
        """The id of the node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def time(
        self, target: str, suffix: str, candidate: bytes, baseline: bytes, inputs: np.ndarray
    ) -> dict[str, Any]:
        """``{"timing": ...}``, or ``{"error": ...}`` where the file cannot be timed.

        Timings of several searches on one machine exclude each other.
        """
        from ..errors import ParetuneError

        path = self._folder / f"candidate{suffix}"
        path.write_bytes(candidate)
        lock = Path(tempfile.gettempdir()) / f"paretune-device-{os.getuid()}.lock"
        try:
            with lock.open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                timing = self._targets[target].time(path, self._kept(baseline, suffix), inputs)
        except ParetuneError as error:
            return {"error": str(error)}
        finally:
            path.unlink(missing_ok=True)
        notes = {**timing.notes, "host": platform.node()}
        return {"timing": {**asdict(timing), "notes": notes}}

    def _kept(self, baseline: bytes, suffix: str) -> Path:
        """The baseline under a name that stays, so that it is loaded once."""
        digest = hashlib.sha256(baseline).hexdigest()
        if digest not in self._baselines:
            self._baselines[digest] = self._folder / f"{digest}{suffix}"
            self._baselines[digest].write_bytes(baseline)
        return self._baselines[digest]


def start_device(name: str, job: Mapping[str, Any], resources: Mapping[str, float]) -> Any:
    """The named actor; it holds ``resources`` (Ray's names) until the search ends."""
    own = {key: n for key, n in resources.items() if key not in ("CPU", "GPU")}
    return Device.options(  # type: ignore[attr-defined]
        name=name,
        namespace=NAMESPACE,
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        resources=own,
    ).remote(job)


def ask_device(device: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the device answers to :meth:`.on_device.OnDevice.time`; ``error`` where the file killed
    it twice, ``fault`` where it is out of reach."""
    path = Path(asked["path"])
    try:
        answer: dict[str, Any] = ray.get(
            device.time.remote(
                asked["target"],
                path.suffix,
                path.read_bytes(),
                Path(asked["baseline"]).read_bytes(),
                np.load(asked["inputs"]),
            ),
            timeout=_PATIENCE_S,
        )
    except OSError as error:
        return {"error": f"{path.name}: cannot be read ({error.strerror})"}
    except ray.exceptions.ActorDiedError as error:
        return {"fault": f"the latency device is gone: {_brief(error)}"}
    except ray.exceptions.RayError as error:
        return {"error": f"{path.name}: the latency device failed on it: {_brief(error)}"}
    return answer


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
