"""Files named by their sha256 in a place that fsspec can reach: S3, a share, another disk."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import EnvironmentFault, InputError

WHERE = "tracker.artifacts"
_EXTRAS = {
    "s3": "paretune[s3]",
    "s3a": "paretune[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
}
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}  # an object is there or is not


class FileLocation:
    """``<address>/<name>``: a file under its name is complete, and verified when it is fetched.

    address: an fsspec address (``s3://bucket/prefix``, ``file:///mnt/share/study``). Credentials
        come from where the protocol's own tools take them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
        instance roles), never from the address.

    Object stores show an object once it is whole; elsewhere a file is written beside its name and
    renamed. Raises InputError for an address that names no protocol or one that is not installed,
    EnvironmentFault when the place fails.
    """

    def __init__(self, address: str) -> None:
        self.address = checked_location(address)
        self._protocol = urlsplit(address).scheme

    def put(self, path: Path) -> None:
        """Store a file under its own name, unless one of its size is there."""
        aim = self._at(path.name)
        try:
            if self._size(aim) == path.stat().st_size:
                return
            if self._protocol in _WHOLE:
                self._system.put_file(str(path), aim)
            else:
                draft = self._at(f".{uuid.uuid4().hex}.part")
                self._system.makedirs(self._root, exist_ok=True)
                self._system.put_file(str(path), draft)
                self._system.mv(draft, aim)
            if self._size(aim) != path.stat().st_size:
                raise OSError("it did not arrive whole")
        except Exception as error:  # each protocol has errors of its own
            raise self._fault(f"cannot store {path.name}", error) from None

    def fetch(self, name: str, to: Path) -> bool:
        """Copy the file of that name to the path ``to``, whole or not at all; whether it exists.

        Raises InputError when its bytes are not those that its name promises.
        """
        draft = to.with_name(f".{uuid.uuid4().hex}.part")
        try:
            if self._size(self._at(name)) is None:
                return False
            to.parent.mkdir(parents=True, exist_ok=True)
            self._system.get_file(self._at(name), str(draft))
            with open(draft, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != name.partition(".")[0]:
                    raise InputError(
                        f"{self.address}/{name}",
                        "its content is not what was measured (its sha256 differs)",
                        "the file was changed or damaged; delete it there",
                    )
                os.fsync(file.fileno())
            os.replace(draft, to)
            return True
        except InputError:
            raise
        except Exception as error:
            raise self._fault(f"cannot fetch {name}", error) from None
        finally:
            draft.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The names of the files there."""
        try:
            found = self._system.ls(self._root, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._fault("cannot be listed", error) from None
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def drop(self, name: str) -> None:
        """Delete the file of that name, if it is there."""
        try:
            self._system.rm_file(self._at(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._fault(f"cannot delete {name}", error) from None

    @cached_property
    def _system(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self._protocol, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(self._protocol, "the package that its error names")
            raise InputError(
                WHERE, f"{self._protocol}:// cannot be used here ({error})", f"pip install {extra}"
            ) from None

    @cached_property
    def _root(self) -> str:
        return str(self._system._strip_protocol(self.address)).rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _size(self, path: str) -> int | None:
        self._system.invalidate_cache()
        try:
            return int(self._system.info(path)["size"])
        except FileNotFoundError:
            return None

    def _fault(self, what: str, error: Exception) -> EnvironmentFault:
        if isinstance(error, InputError):
            raise error
        words = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
        return EnvironmentFault(
            f"{self.address}: {what} ({words}); make it reachable and run the same command again: "
            "no acknowledged trial is lost"
        )


def checked_location(address: str, where: str = WHERE) -> str:
    """The address without a slash at its end, if it names a protocol and carries no secret.

    where: what an error calls it. Raises InputError.
    """
    parts = urlsplit(address)
    if not parts.scheme or not (parts.netloc or parts.path.strip("/")):
        raise InputError(
            where, f"not an address: {address!r}", "write s3://bucket/prefix or file:///folder"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            where,
            "the address carries more than a place",
            "give credentials in the environment (AWS_ACCESS_KEY_ID ... for s3)",
        )
    return address.rstrip("/")
