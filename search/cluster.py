"""A search's place on a Ray cluster: connected and checked first, then its files, its latency
device and its workers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault
from ..objectives.problem import Problem
from ..tasks.cluster_section import ray_names
from ..tasks.job import Job
from ..tasks.task import Task
from ..tasks.travel import pack_task
from ..trackers.study import Study
from .jobs import Workers
from .luggage import pack_code
from .on_device import needs_device, on_device
from .preflight import check_cluster
from .wheel import build_wheel

EVALUATOR = "paretune.search.on_device:ClusterEvaluator.from_job"
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray where a submitted job runs
_SMALL_BYTES = 1 << 20
_DEVICE_START_S = 120.0


class Cluster:
    """The Ray cluster that this process is connected to, for one search.

    address: ``auto`` or ``host:port``. job: what it asks for is checked against the nodes at once.
    Raises InputError in one line, within seconds, where nothing listens, the token is wrong, the
    versions differ, or no node has what one worker needs.
    """

    def __init__(self, address: str, job: Job) -> None:
        from .ray_connection import connect

        check_cluster(address, job)
        self._job, self._device = job, None
        self._reservation: Any = None
        with tempfile.TemporaryDirectory(prefix="paretune-cluster-") as scratch:
            self._code, runtime_env = _luggage(job, Path(scratch))
            connect(address, runtime_env)

    def begin(self, study: Study, problem: Problem) -> Problem:
        """Start what the workers share; the problem as the driver is to see it."""
        import ray

        from .ray_files import files_actor

        self._study, self._problem = study, problem
        self._files = files_actor(study.folder)
        self._shared = _shared(problem.task)
        if not needs_device(problem):
            return problem
        from .ray_connection import check_resources
        from .ray_device import Reservation, ask_device, start_device

        held = ray_names(self._job.cluster.device)
        check_resources("cluster.device", held, self._job.where)
        reservation = self._reservation = Reservation(held)
        name, why = f"paretune-device-{study.id}-{os.getpid()}", "its resources are taken"
        device = self._device = start_device(name, self._job.to_json(), reservation)
        try:
            if reservation.placed(_DEVICE_START_S):
                why = ""
                ray.get(device.ready.remote(), timeout=_DEVICE_START_S)
        except ray.exceptions.RayError as error:
            why = " ".join(str(error).split())[:300] or "its process says nothing"
        if why:
            raise EnvironmentFault(
                f"the latency device does not start within {_DEVICE_START_S:g} s: {why}"
            )
        worker = ray_names(self._job.cluster.resources)  # beside the device
        check_resources("cluster.resources", worker, self._job.where, (reservation.node, held))
        return on_device(problem, study.folder.resolve(), lambda asked: ask_device(device, asked))

    def workers(self, count: int, screening: bool) -> Workers:
        """Workers of this search."""
        from .ray_pool import RayPool
        from .ray_worker import Site

        search, held = self._job.search, self._job.cluster
        training = ray_names(held.training or held.resources)
        kwargs = {
            "job": self._job.to_json(),
            "screening": screening,
            "device": self._device is not None,
            "threads": max(1, int(training.get("CPU", 1))),
        }
        site = Site(
            EVALUATOR,
            kwargs,
            search.deadline,
            int(search.memory_gb * 1e9) if search.memory_gb else None,
            self._study.id,
            self._files,
            _small_files(self._study.folder),
            self._shared,
            self._device,
            self._code,
        )
        return RayPool(site, count, ray_names(held.resources), training, self._reservation)

    def close(self) -> None:
        """Leave the cluster; its actors of this search end."""
        import ray

        ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _luggage(job: Job, scratch: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(where the job's code is to be found in a worker's directory, Ray's runtime environment).

    In a job that was submitted with a working directory, as ``paretune submit`` does, both are
    there already; the entrypoint of a RayJob has none.
    """
    submitted = json.loads(os.environ.get(_SUBMITTED) or "{}").get("runtime_env") or {}
    if submitted.get("working_dir") and job.folder.is_relative_to(Path.cwd()):
        return {str(job.folder): str(job.folder.relative_to(Path.cwd()))}, {}
    for name in ("code", "wheel"):
        (scratch / name).mkdir()
    code = pack_code(job, scratch / "code")
    wheel = build_wheel(scratch / "wheel")
    return code, {"working_dir": str(scratch / "code"), "py_modules": [str(wheel)]}


def _shared(task: Task) -> Any:
    """The network and the decoded data in Ray's object store: one array of bytes."""
    import numpy as np
    import ray

    with tempfile.TemporaryDirectory(prefix="paretune-task-") as scratch:
        path = Path(scratch) / "task.safetensors"
        pack_task(task, path)
        return ray.put(np.asarray(np.memmap(path, dtype=np.uint8, mode="r")))


def _small_files(folder: Path) -> Mapping[str, bytes]:
    """What workers read of the study folder: the fitted latency model, speed states."""
    paths = [p for p in folder.glob(".*.json") if p.stat().st_size <= _SMALL_BYTES]
    return {path.name: path.read_bytes() for path in paths}
