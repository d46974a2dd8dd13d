"""This very paretune as a wheel, built from the files that are running, for a cluster's nodes."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from .. import __version__

_STAMP = (2020, 1, 1, 0, 0, 0)  # equal content gives an equal file, which a cluster keeps once
_TAG = "py3-none-any"
_PARTS = (".py", ".css", ".js", ".typed")


def build_wheel(folder: Path) -> Path:
    """``paretune-<version>+<content>-py3-none-any.whl`` in ``folder``.

    It holds the package's rooms and nothing else of a checkout. It names no dependencies: those are
    the business of the cluster's image, and Ray would install them anew beside it. The version ends
    in a digest, as Ray tells wheels apart by their names alone.
    """
    root = Path(__file__).resolve().parent.parent
    rooms = [root, *sorted(p.parent for p in root.glob("*/__init__.py"))]
    files: dict[str, bytes | str] = {
        f"paretune/{path.relative_to(root).as_posix()}": path.read_bytes()
        for room in rooms
        for path in sorted(room.iterdir())
        if path.suffix in _PARTS
    }
    content = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    version = f"{__version__}+{content}"
    about = f"paretune-{version}.dist-info"
    files |= {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: paretune\nVersion: {version}\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: paretune\n"
        f"Root-Is-Purelib: true\nTag: {_TAG}\n",
        f"{about}/entry_points.txt": "[console_scripts]\nparetune = paretune.cli:main\n",
    }
    record = f"{about}/RECORD"
    contents = {
        name: text.encode() if isinstance(text, str) else text for name, text in files.items()
    }
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    wheel = folder / f"paretune-{version}-{_TAG}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _STAMP)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
