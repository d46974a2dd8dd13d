"""Where the parts of a study are: its folder, its database, its exported files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from .artifact_store import ArtifactStore
from .file_location import FileLocation, checked_location
from .job_copy import FILE_NAME as JOB
from .postgres import Server, checked_address

DATABASE, LOCK = "study.db", "study.lock"
_OURS = {DATABASE, LOCK, JOB, "artifacts", f"{DATABASE}.new"}


@dataclass(frozen=True)
class Place:
    """A study folder, and what its job keeps elsewhere.

    storage: the address of a PostgreSQL database that holds the study called ``name``; None:
        ``study.db`` in the folder. artifacts: an fsspec address under which a copy of every
        exported file is kept; None: only ``artifacts/`` in the folder.
    """

    folder: Path
    name: str = ""
    storage: str | None = None
    artifacts: str | None = None

    @classmethod
    def of_job(cls, folder: Path | str, job: Mapping[str, Any], name: str) -> Place:
        """What a resolved job says (``tracker.storage``, ``tracker.artifacts``)."""
        tracker = job.get("tracker") or {}
        return cls(Path(folder), name, tracker.get("storage"), tracker.get("artifacts"))

    @classmethod
    def of_folder(cls, folder: Path | str) -> Place:
        """What the copy of the job in a study folder says; a folder without one is taken as it is.

        Raises InputError when the copy cannot be read.
        """
        path = Path(folder) / JOB
        if not path.is_file():
            return cls(Path(folder))
        try:
            job = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.of_job(folder, job, str(job.get("name", "")))
        except (OSError, yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            word = str(error).partition("\n")[0]
            raise InputError(str(path), f"cannot be read ({word})", "restore it") from None

    def check(self, where: Callable[[str], str] = str) -> None:
        """Refuse addresses that cannot be right (InputError), without asking anyone.

        where: a key of the job -> what an error calls it.
        """
        if self.storage is not None:
            checked_address(self.storage, where("tracker.storage"))
        if self.artifacts is not None:
            checked_location(self.artifacts, where("tracker.artifacts"))

    def database(self) -> Path | Server:
        """The SQLite file, or the server."""
        if self.storage is None:
            return self.folder / DATABASE
        if (self.folder / DATABASE).is_file():
            raise InputError(
                str(self.folder), f"holds a study in {DATABASE} already", "name another folder"
            )
        return Server(self.storage, self.name)

    def holds_study(self) -> bool:
        """Whether a study was begun here. Raises EnvironmentFault when the server is away."""
        found = self.database()
        return found.is_file() if isinstance(found, Path) else found.exists()

    def make_folder(self) -> None:
        """The folder, if it is missing. Raises InputError when it cannot be made, or holds what
        belongs to no study."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
        except OSError as error:
            raise InputError(
                str(self.folder),
                f"cannot be used as a folder ({error.strerror})",
                "name another folder",
            ) from None
        foreign = [n for n in found if n not in _OURS and not n.startswith(DATABASE)]
        if foreign and JOB not in found:
            raise InputError(
                str(self.folder), f"holds other files ({foreign[0]!r})", "name a new folder"
            )

    def artifact_store(self) -> ArtifactStore:
        """The exported files."""
        copies = None if self.artifacts is None else FileLocation(self.artifacts)
        return ArtifactStore(self.folder / "artifacts", copies)
