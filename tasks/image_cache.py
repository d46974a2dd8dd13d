"""Decoded images kept on disk: ``<cache>/images/<key>/`` with pixels, digests and their checks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import EnvironmentFault
from .split import image_digests

VERSION = 1


def cache_folder() -> Path:
    """Where paretune keeps what it can compute again: PARETUNE_CACHE, or the platform's folder."""
    if os.environ.get("PARETUNE_CACHE"):
        return Path(os.environ["PARETUNE_CACHE"]).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "paretune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "paretune" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paretune"


class ImageCache:
    """Arrays found by a key. Entries appear whole or not at all; damaged ones are written anew."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "images"

    def find(self, key: str, count: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(images uint8 (n, C, H, W) mapped from disk, digests uint8 (n, 16)), or None.

        The digests are verified whole, the images by their number and 32 samples.
        """
        entry = self.folder / key
        try:
            about = json.loads((entry / "about.json").read_text())
            digests = np.load(entry / "digests.npy", allow_pickle=False)
            # copy-on-write: writable for torch, the file never changes
            images = np.load(entry / "images.npy", mmap_mode="c", allow_pickle=False)
            if about["version"] != VERSION or _sum(digests) != about["digests"]:
                return None
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None
        if len(images) != count or digests.shape != (count, 16) or images.dtype != np.uint8:
            return None
        sample = np.unique(np.linspace(0, count - 1, 32).astype(np.int64))
        if not np.array_equal(image_digests(images[sample]), digests[sample]):
            return None
        return images, digests

    def write(
        self, key: str, images: Iterator[np.ndarray], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Store ``count`` images of one shape (uint8 (C, H, W)) and map them back.

        Raises EnvironmentFault when the folder cannot be written or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = Path(tempfile.mkdtemp(prefix=f".{key[:16]}-", dir=self.folder))
        except OSError as error:
            raise self._fault(error) from error
        try:
            self._fill(fresh, images, count)
            entry = self.folder / key
            if entry.exists() and self.find(key, count) is None:
                shutil.rmtree(entry, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was first: its entry is as good
                os.rename(fresh, entry)
            found = self.find(key, count)
            if found is None:
                raise self._fault(OSError(f"{entry} cannot be read back"))
            return found
        except OSError as error:
            raise self._fault(error) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _fill(self, folder: Path, images: Iterator[np.ndarray], count: int) -> None:
        # plain writes, not a mapping: a full disk is then an error and not a killed process
        rows: list[np.ndarray] = []
        with open(folder / "images.npy", "wb") as stream:
            for image in images:
                if not rows:
                    _check_room(folder, count * image.nbytes)
                    header = {
                        "descr": "|u1",
                        "fortran_order": False,
                        "shape": (count, *image.shape),
                    }
                    np.lib.format.write_array_header_1_0(stream, header)
                solid = np.ascontiguousarray(image)
                stream.write(solid.data)
                rows.append(image_digests(solid[None])[0])
            stream.flush()
            os.fsync(stream.fileno())
        digests = np.stack(rows)
        np.save(folder / "digests.npy", digests, allow_pickle=False)
        about = {"version": VERSION, "digests": _sum(digests)}
        (folder / "about.json").write_text(json.dumps(about))

    def _fault(self, error: OSError) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self.folder}: decoded images cannot be kept there ({error.strerror or error}); "
            "free some space, or name another folder in PARETUNE_CACHE"
        )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"they take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "task.data.train_count takes fewer"
        )


def _sum(digests: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(digests).data).hexdigest()
