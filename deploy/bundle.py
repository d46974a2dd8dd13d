"""The folder that goes to production: model, plan, manifest, model card; replaced in one step."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnvironmentFault, InputError
from ..trackers.durable_file import sync_folder
from ..trackers.exchange import put_in_place
from . import verify
from .verify import CARD, EXAMPLES, MANIFEST, PLAN, Refused, check_files, sha256_of

VERIFIER = "verify.py"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A delivered model. ``manifest``: what MANIFEST holds (see :mod:`.manifest`).

    version: in the model registry, where it was registered.
    """

    folder: Path
    manifest: Mapping[str, Any]
    version: str | None = None

    @property
    def model(self) -> Path:
        """The exported file."""
        return self.folder / str(self.manifest["model"]["file"])

    @property
    def weights(self) -> Path | None:
        """The trained torch tensors of a recovered point, for :func:`paretune.apply`."""
        return self.folder / WEIGHTS if WEIGHTS in self.manifest["files"] else None

    @property
    def manifest_sha256(self) -> str:
        """What the model registry remembers this bundle by."""
        return sha256_of(self.folder / MANIFEST)


def write_bundle(
    to: Path,
    model: Path,
    manifest: Mapping[str, Any],
    plan: Mapping[str, Any],
    card: str,
    examples: tuple[np.ndarray, np.ndarray] | None,
    further: Sequence[Path] = (),
    weights: Path | None = None,
) -> Bundle:
    """Write a bundle to the folder ``to``; a bundle that is there is replaced in one step.

    further: files for other runtimes, under their own names. weights: of a recovered point. The
    manifest is completed by ``files``, the sha256 of every file but itself and the model card.
    Until the new one is complete, checked and on the disk, the old one stays in place. Raises
    InputError when ``to`` holds something that is not a bundle, EnvironmentFault when the disk
    refuses.
    """

    def fill(new: Path) -> None:
        shutil.copyfile(model, new / str(manifest["model"]["file"]))
        for path in further:
            shutil.copyfile(path, new / path.name)
        if weights is not None:
            shutil.copyfile(weights, new / WEIGHTS)
        (new / PLAN).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        if examples is not None:
            np.savez(new / EXAMPLES, inputs=examples[0], outputs=examples[1])
        shutil.copyfile(str(verify.__file__), new / VERIFIER)
        files = {path.name: sha256_of(path) for path in sorted(new.iterdir())}
        complete = {**manifest, "files": files}
        (new / MANIFEST).write_text(json.dumps(complete, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")

    return place_bundle(to, fill)


def copy_bundle(source: Path, to: Path, manifest_sha256: str | None = None) -> Bundle:
    """A copy of the bundle in the folder ``source`` at ``to``, as :func:`write_bundle` does it.

    Raises InputError as :func:`read_bundle`; then what is at ``to`` stays.
    """
    manifest = read_bundle(source, manifest_sha256).manifest

    def fill(new: Path) -> None:
        for name in (*manifest["files"], MANIFEST, CARD):
            if name != CARD or (source / name).is_file():
                shutil.copyfile(source / name, new / name)

    return place_bundle(to, fill)


def place_bundle(to: Path, fill: Callable[[Path], None]) -> Bundle:
    """Let ``fill`` write a bundle into a new folder, check it, and give it the name ``to`` (where
    that is a link: the name of what it points to)."""
    check_place(to)
    place = Path(os.path.realpath(to))
    new = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        new.mkdir(parents=True)
        fill(new)
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(new)
        manifest = check_files(new)
        put_in_place(new, place)
        sync_folder(place.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"{to}: cannot be written ({error.strerror}); what was there is untouched"
        ) from None
    except Refused as reason:
        raise EnvironmentFault(
            f"{to}: what was written reads back otherwise ({reason}); what was there is untouched"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Bundle(to, manifest)


def read_bundle(folder: Path, manifest_sha256: str | None = None) -> Bundle:
    """A bundle, every file of it checked (see :func:`.verify.check_files`).

    Raises InputError when the folder is no bundle, or a file is not the one the manifest names.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(str(folder), "is not a bundle", "make one with `paretune pull`")
    try:
        return Bundle(folder, check_files(folder, manifest_sha256))
    except Refused as reason:
        raise InputError(str(folder), str(reason), "pull it again") from None


def check_place(to: Path) -> None:
    """Raises InputError when ``to`` holds something that is not a bundle."""
    if not to.exists():
        return
    if not to.is_dir():
        raise InputError(str(to), "is a file", "name a folder")
    if any(to.iterdir()) and not (to / MANIFEST).is_file():
        raise InputError(str(to), "holds other files", "name a new folder or an earlier bundle")
