"""The exported files of a study, each named by its content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from ..errors import EnvironmentFault, InputError
from ..objectives.evaluation import Artifact
from .durable_file import sync_folder
from .file_location import FileLocation

FILE_NAME = re.compile(r"^([0-9a-f]{64})\.([A-Za-z0-9_]{1,16})$")
_STALE = re.compile(r"^\.([0-9a-f]{32}\.part|export-.+)$")  # of writers that were killed


class ArtifactStore:
    """``<folder>/<sha256>.<format>``; a file under its final name is complete and durable.

    copies: where a copy of each acknowledged file is kept, for drivers on other machines.
    """

    def __init__(self, folder: Path, copies: FileLocation | None = None) -> None:
        self.folder, self.copies = folder, copies

    def path(self, artifact: Artifact) -> Path:
        """Where ``artifact`` lies (whether or not it is there)."""
        if not FILE_NAME.match(artifact.file_name):
            raise InputError("artifact", f"not a file name by sha256: {artifact.file_name!r}", "")
        return self.folder / artifact.file_name

    def store(self, path: Path) -> Artifact:
        """Keep a copy of ``path``; storing the same content twice keeps one file.

        A stored file whose bytes no longer match its name is replaced. Raises EnvironmentFault
        when the disk refuses; then nothing lies under the final name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            artifact = _copy(path, temporary)
            final = self.path(artifact)
            if final.is_file() and intact(final):
                return artifact
            os.replace(temporary, final)
            sync_folder(self.folder)
            return artifact
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            raise EnvironmentFault(
                f"{self.folder}: cannot store {path.name} ({error.strerror}, {free:,} bytes free); "
                "free space and run the same command again"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    def local(self, artifact: Artifact) -> Path:
        """Where ``artifact`` lies, fetched from the copies if it is missing here and kept there."""
        path = self.path(artifact)
        if self.copies is not None and not path.is_file():
            self.copies.fetch(artifact.file_name, path)
        return path

    def publish(self, artifacts: Iterable[Artifact]) -> None:
        """Let the files that lie here have a copy, where copies are kept.

        Raises EnvironmentFault when they cannot be stored.
        """
        for artifact in artifacts if self.copies is not None else ():
            path = self.path(artifact)
            if path.is_file() and self.copies is not None:
                self.copies.put(path)

    def remove(self, artifact: Artifact) -> None:
        """Delete one file, here and among the copies."""
        self.path(artifact).unlink(missing_ok=True)
        if self.copies is not None:
            self.copies.drop(artifact.file_name)

    def drop(self, keep: set[str]) -> None:
        """Delete the stored files whose sha256 is not in ``keep``, and what dead writers left.

        Call when nobody is writing.
        """
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _unwanted(path.name, keep) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif _unwanted(path.name, keep):
                path.unlink(missing_ok=True)
        for name in self.copies.names() if self.copies is not None else ():
            if _unwanted(name, keep) and self.copies is not None:
                self.copies.drop(name)


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(path: Path) -> bool:
    """Whether the file's bytes are those that its name promises."""
    named = FILE_NAME.match(path.name)
    return bool(named) and path.is_file() and sha256_of(path) == named[1]  # type: ignore[index]


def _unwanted(name: str, keep: set[str]) -> bool:
    named = FILE_NAME.match(name)
    return bool((named and named[1] not in keep) or _STALE.match(name))


def _copy(source: Path, to: Path) -> Artifact:
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as read, open(to, "xb") as write:
        while block := read.read(1 << 20):
            digest.update(block)
            size += len(block)
            write.write(block)
        write.flush()
        os.fsync(write.fileno())
    return Artifact(digest.hexdigest(), size, source.suffix.lstrip(".") or "bin")
