"""Exported files on a cluster: they travel by sha256, through an actor beside the driver."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import EnvironmentFault
from ..objectives.evaluation import Artifact, Evaluation
from ..trackers.artifact_store import ArtifactStore, intact

_SHARED_BY_MACHINE = (".machine.lock", "recovery")  # what workers of one machine have in common


def files_of(evaluation: Evaluation | None) -> list[Artifact]:
    """Every file that an evaluation names."""
    if evaluation is None:
        return []
    found = [] if evaluation.artifact is None else list(evaluation.artifact.files)
    return found + ([] if evaluation.weights is None else [evaluation.weights])


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)
class StudyFiles:
    """The exported files of the study folder, for workers that see other disks."""

    def __init__(self, folder: str) -> None:
        self._store = ArtifactStore(Path(folder) / "artifacts")

    def give(self, artifact: dict[str, Any]) -> bytes | None:
        """A file's content; None when it is not there."""
        path = self._store.path(Artifact.from_json(artifact))
        return path.read_bytes() if path.is_file() else None

    def keep(self, artifact: dict[str, Any], data: bytes) -> str | None:
        """Write a file durably; why it could not be kept, or None."""
        expected = Artifact.from_json(artifact)
        with tempfile.TemporaryDirectory(prefix="paretune-") as scratch:
            draft = Path(scratch) / f"file.{expected.format}"
            try:
                draft.write_bytes(data)
                stored = self._store.store(draft)
            except (OSError, EnvironmentFault) as error:
                return str(error)
        return None if stored.sha256 == expected.sha256 else "it was damaged on its way"


def files_actor(folder: Path) -> Any:
    """The actor for the study in ``folder``, on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed = StudyFiles.options(scheduling_strategy=here)  # type: ignore[attr-defined]
    return placed.remote(str(folder.resolve()))


class WorkerFolder:
    """A worker's own study folder on its machine; files are fetched into it and handed back.

    study: the study's id. files: the :class:`StudyFiles` actor. small: name -> content of the small
    files of the study folder that workers read.
    """

    def __init__(self, study: str, files: Any, small: dict[str, bytes]) -> None:
        self._files = files
        self.machine = Path(tempfile.gettempdir()) / f"paretune-{os.getuid()}" / study
        self.machine.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        self.path = self.machine / f"worker-{os.getpid()}"
        (self.path / "artifacts").mkdir(parents=True, exist_ok=True)
        (self.machine / "recovery").mkdir(exist_ok=True)
        (self.machine / ".machine.lock").touch()
        for name in _SHARED_BY_MACHINE:
            if not (self.path / name).exists():
                (self.path / name).symlink_to(self.machine / name)
        for name, content in small.items():
            (self.path / name).write_bytes(content)

    def shared(self, content: Any) -> Path:
        """A file that all workers of this machine read: ``content`` (uint8) written once."""
        digest = hashlib.sha256(memoryview(content)).hexdigest()
        path = self.machine / f"{digest}.safetensors"
        if not path.exists():
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_bytes(memoryview(content))
            os.replace(draft, path)
        return path

    def fetch(self, artifacts: Iterable[Artifact]) -> None:
        """Have these files here, as far as the study has them."""
        for artifact in artifacts:
            path = self._path(artifact)
            if path.exists():
                continue
            data = ray.get(self._files.give.remote(artifact.to_json()))
            if data is not None:
                draft = path.with_suffix(".part")
                draft.write_bytes(data)
                os.replace(draft, path)

    def deliver(self, artifacts: Iterable[Artifact]) -> None:
        """Hand these files over to the study. Raises EnvironmentFault when it cannot keep them."""
        for artifact in artifacts:
            path = self._path(artifact)
            if not path.is_file():
                continue
            if not intact(path):
                raise EnvironmentFault(f"{path.name}: the exported file was damaged on the disk")
            refused = ray.get(self._files.keep.remote(artifact.to_json(), path.read_bytes()))
            if refused:
                raise EnvironmentFault(refused)

    def drop(self, keep: set[str]) -> None:
        """Remove the exported files whose sha256 is not in ``keep``."""
        ArtifactStore(self.path / "artifacts").drop(keep)

    def forget_training(self, number: Any) -> None:
        """Remove the state of a training that has its result."""
        (self.machine / "recovery" / f"{number}.safetensors").unlink(missing_ok=True)

    def remove(self) -> None:
        """Leave nothing behind but what others use, and the state of trainings to go on with."""
        shutil.rmtree(self.path, ignore_errors=True)
        if any(self.machine.glob("worker-*")):
            return
        for path in self.machine.glob("*.safetensors"):
            path.unlink(missing_ok=True)

    def _path(self, artifact: Artifact) -> Path:
        return ArtifactStore(self.path / "artifacts").path(artifact)

    def _sweep(self) -> None:
        """Remove the folders of workers that are gone."""
        for folder in self.machine.glob("worker-*"):
            pid = folder.name.partition("-")[2]
            if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                shutil.rmtree(folder, ignore_errors=True)
