"""The latency device of a cluster: one actor with a reservation of its own that times one file at
a time."""

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
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

NAMESPACE = "paretune"
MOST_DEATHS = 2  # of the device's process while it timed one file
_PATIENCE_S = 3600.0  # a queue of many workers is no fault


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Device:
    """Times exported files on the node that it runs on, also after its process or its node died.

    job: the resolved job.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        from ..objectives.problem import parse_targets
        from ..tasks.job import load_job

        self._targets = {target.name: target for target in parse_targets(load_job(job))}
        identity = f"device-{ray.get_runtime_context().get_actor_id()}"
        self._folder = Path(tempfile.gettempdir()) / f"paretune-{os.getuid()}" / identity
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def ready(self) -> bool:
        """That it has started."""
        return True

    def time(
        self, target: str, suffix: str, candidate: bytes, baseline: bytes, inputs: np.ndarray
    ) -> dict[str, Any]:
        """``{"timing": ...}``, or ``{"error": ...}`` where the file cannot be timed.

        Timings of several searches on one machine exclude each other. A file that was being timed
        when the process died, twice, is not timed again.
        """
        from ..errors import ParetuneError

        path = self._folder / f"candidate{suffix}"
        begun = self._folder / f"{hashlib.sha256(candidate).hexdigest()}.begun"
        if begun.exists() and begun.stat().st_size >= MOST_DEATHS:
            return {"error": f"the file killed the latency device {MOST_DEATHS} times"}
        lock = Path(tempfile.gettempdir()) / f"paretune-device-{os.getuid()}.lock"
        try:
            path.write_bytes(candidate)
            with lock.open("a") as held, begun.open("ab", buffering=0) as mark:
                fcntl.flock(held, fcntl.LOCK_EX)
                mark.write(b".")
                timing = self._targets[target].time(path, self._kept(baseline, suffix), inputs)
        except ParetuneError as error:
            return {"error": str(error)}
        finally:
            path.unlink(missing_ok=True)
            begun.unlink(missing_ok=True)
        notes = {**timing.notes, "host": platform.node()}
        return {"timing": {**asdict(timing), "notes": notes}}

    def _kept(self, baseline: bytes, suffix: str) -> Path:
        """The baseline under a name that stays, so that it is loaded once."""
        path = self._folder / f"{hashlib.sha256(baseline).hexdigest()}{suffix}"
        if not path.exists():
            draft = path.with_suffix(".part")
            draft.write_bytes(baseline)
            os.replace(draft, path)
        return path


class Reservation:
    """What the latency device holds on one node, whatever becomes of its process; when that node is
    lost, on the next one that has it free. resources: Ray's names."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self.resources = dict(resources)
        self.group = placement_group([self.resources])

    def placed(self, within_s: float = 0.0) -> bool:
        """Whether a living node holds it, ``within_s`` at the latest."""
        if within_s and not self.group.wait(within_s):
            return False
        return str(placement_group_table(self.group)["state"]) == "CREATED"

    @property
    def node(self) -> str:
        """The id of the node that it is placed on."""
        return str(placement_group_table(self.group)["bundles_to_node_id"][0])


def start_device(name: str, job: Mapping[str, Any], reservation: Reservation) -> Any:
    """The named actor; it runs where ``reservation`` is, until the search ends."""
    held = reservation.resources
    return Device.options(  # type: ignore[attr-defined]
        name=name,
        namespace=NAMESPACE,
        num_cpus=held.get("CPU", 0),
        num_gpus=held.get("GPU", 0),
        resources={key: n for key, n in held.items() if key not in ("CPU", "GPU")},
        scheduling_strategy=PlacementGroupSchedulingStrategy(reservation.group, 0),
    ).remote(job)


def ask_device(device: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the device answers to :meth:`.on_device.OnDevice.time`; ``fault`` where it is out of
    reach. While it is restarted, or moved to another node, this waits."""
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
