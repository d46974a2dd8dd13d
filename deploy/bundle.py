"""The folder that goes to production: model, plan, manifest, model card; replaced in one step."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnvironmentFault, InputError
from ..trackers.artifact_store import sha256_of
from ..trackers.durable_file import sync_folder

MANIFEST = "manifest.json"
PLAN = "plan.json"
CARD = "MODEL_CARD.md"
EXAMPLES = "examples.npz"
VERSION = 1


@dataclass(frozen=True)
class Bundle:
    """A delivered model. ``manifest``: what MANIFEST holds (see :mod:`.manifest`)."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The exported file."""
        return self.folder / str(self.manifest["model"]["file"])


def write_bundle(
    to: Path,
    model: Path,
    manifest: Mapping[str, Any],
    plan: Mapping[str, Any],
    card: str,
    examples: tuple[np.ndarray, np.ndarray] | None,
    further: Sequence[Path] = (),
) -> Bundle:
    """Write a bundle to the folder ``to``; a bundle that is there is replaced in one step.

    further: files for other runtimes, under their own names.
    Until the new one is complete and on the disk, the old one stays in place. Raises InputError
    when ``to`` holds something that is not a bundle, EnvironmentFault when the disk refuses.
    """
    _check_place(to)
    new = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        new.mkdir(parents=True)
        shutil.copyfile(model, new / str(manifest["model"]["file"]))
        for path in further:
            shutil.copyfile(path, new / path.name)
        (new / PLAN).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        if examples is not None:
            np.savez(new / EXAMPLES, inputs=examples[0], outputs=examples[1])
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(new)
        _exchange(new, to)
    except OSError as error:
        raise EnvironmentFault(
            f"{to}: cannot be written ({error.strerror}); what was there is untouched"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Bundle(to, dict(manifest))


def read_bundle(folder: Path) -> Bundle:
    """A bundle, its model checked against the manifest.

    Raises InputError when the folder is no bundle, or a file is not the one the manifest names.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        name, digest = str(manifest["model"]["file"]), manifest["model"]["sha256"]
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(str(folder), "is not a bundle", "make one with `paretune pull`") from None
    if os.path.basename(name) != name or not (folder / name).is_file():
        raise InputError(str(folder), f"the model file {name!r} is not there", "pull it again")
    if sha256_of(folder / name) != digest:
        raise InputError(str(folder / name), "its content is not the manifest's", "pull it again")
    if plan != manifest.get("plan"):
        raise InputError(str(folder / PLAN), "is not the manifest's plan", "pull it again")
    return Bundle(folder, manifest)


def _check_place(to: Path) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise InputError(str(to), "is a file", "name a folder")
    if any(to.iterdir()) and not (to / MANIFEST).is_file():
        raise InputError(str(to), "holds other files", "name a new folder or an earlier bundle")


def _exchange(new: Path, to: Path) -> None:
    old = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.old")
    if to.exists():
        os.replace(to, old)
    try:
        os.replace(new, to)
    except OSError:
        if old.exists():
            os.replace(old, to)
        raise
    sync_folder(to.parent)
    shutil.rmtree(old, ignore_errors=True)
