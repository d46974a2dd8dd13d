"""Check a delivered model: ``python verify.py [FOLDER]`` needs only numpy and onnxruntime.

Three things are checked: every file is the one the manifest names (sha256), the manifest agrees
with itself and with plan.json, and the model still gives the stored outputs for the stored example
inputs. Nothing is unpickled. Exit code 0: all of it holds; 1: it does not, and one line says why.

This file lies in every bundle and imports nothing of paretune, so that it runs where only the
model runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

MANIFEST, PLAN, CARD, EXAMPLES = "manifest.json", "plan.json", "MODEL_CARD.md", "examples.npz"
VERSION = 2
TOLERANCE = 0.02
"""Largest difference from the stored outputs, as a share of their range. Another processor rounds
a few values the other way (below 0.01); integer kernels that overflow give far more."""
_MOST_BYTES = 64 << 20  # of a manifest or a plan


class Refused(Exception):
    """The folder is not the model that was delivered; the text says what differs."""


def check_files(folder: Path, manifest_sha256: str | None = None) -> dict[str, Any]:
    """The manifest of the bundle in ``folder``, after comparing every file with it.

    manifest_sha256: what the manifest itself must be, where that is known from elsewhere (the model
    registry keeps it). The model card is for people to complete, and files that the manifest does
    not name are not used: neither is compared. Raises Refused.
    """
    if manifest_sha256 is not None and sha256_of(folder / MANIFEST) != manifest_sha256:
        raise Refused(f"{MANIFEST} is not the one of this model")
    manifest, plan = _read(folder / MANIFEST), _read(folder / PLAN)
    try:
        version, model = manifest["version"], manifest["model"]
        if version != VERSION:
            raise Refused(f"{MANIFEST} has layout {version!r}, this verify.py reads {VERSION}")
        files, name = dict(manifest["files"]), str(model["file"])
        further = [dict(entry) for entry in manifest.get("formats", [])]
        told = {name: model["sha256"], **{str(e["file"]): e["sha256"] for e in further}}
        size, fingerprint = int(model["size_bytes"]), manifest["plan_fingerprint"]
        embedded = manifest["plan"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"{MANIFEST} is damaged ({error})") from None
    for file, digest in files.items():
        if os.path.basename(file) != file or file in (".", ".."):
            raise Refused(f"{MANIFEST} names a file outside the folder: {file!r}")
        if not (folder / file).is_file():
            raise Refused(f"{file} is missing")
        if sha256_of(folder / file) != digest:
            raise Refused(f"{file} was changed: its sha256 is not the manifest's")
    for file, digest in told.items():
        if files.get(file) != digest:
            raise Refused(f"{MANIFEST} contradicts itself about {file}")
    if size != (folder / name).stat().st_size:
        raise Refused(f"{name} does not have the size that {MANIFEST} states")
    if PLAN not in files or plan != embedded:
        raise Refused(f"{PLAN} is not the plan of {MANIFEST}")
    if plan_fingerprint(plan) != fingerprint:
        raise Refused(f"{PLAN} does not have the fingerprint that {MANIFEST} states")
    return manifest


def rerun(folder: Path, manifest: dict[str, Any]) -> float | None:
    """The largest difference between the model's outputs now and the stored ones, as a share of
    the range of the stored ones; None where no examples are stored or the file is not ONNX.

    Raises Refused when the model cannot be run.
    """
    name = str(manifest["model"]["file"])
    if EXAMPLES not in manifest["files"] or not name.endswith(".onnx"):
        return None
    import numpy
    import onnxruntime

    try:
        with numpy.load(folder / EXAMPLES, allow_pickle=False) as stored:
            inputs, expected = stored["inputs"], stored["outputs"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(folder / name), options, providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(f"{name} cannot be run on the stored examples: {reason[0][:200]}") from None
    if found.shape != expected.shape or not numpy.isfinite(found).all():
        raise Refused(f"{name} gives outputs of another shape, or not finite ones")
    span = float(expected.max() - expected.min()) or 1.0
    return float(numpy.abs(found - expected).max()) / span


def plan_fingerprint(plan: Any) -> str:
    """16 hexadecimal digits over a plan's content, as ``CompressionPlan.fingerprint``."""
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes. Raises Refused where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise Refused(f"{path.name} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Refused(f"{path.name} is too large to be true")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise Refused(f"{path.name} is not JSON") from None
    if not isinstance(data, dict):
        raise Refused(f"{path.name} is not a mapping")
    return data


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check a delivered model.")
    here = Path(__file__).resolve().parent
    parser.add_argument("folder", nargs="?", type=Path, default=here, help="default: this one")
    parser.add_argument("--manifest-sha256", help="what the manifest must be, known from elsewhere")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest difference from the stored outputs, as a share of their range (%(default)s)",
    )
    given = parser.parse_args(arguments)
    try:
        manifest = check_files(given.folder, given.manifest_sha256)
        print(f"files    {len(manifest['files'])} as the manifest says")
        print(f"manifest sha256 {sha256_of(given.folder / MANIFEST)}")
        print(f"model    {manifest['model']['file']}: {manifest['summary']}")
        difference = rerun(given.folder, manifest)
        if difference is None:
            print("examples not run again: none are stored, or the model is not ONNX")
        elif difference > given.tolerance:
            raise Refused(
                f"its outputs differ from the stored ones by {difference:.1%} of their range "
                f"(allowed {given.tolerance:.1%}): this processor or runtime computes otherwise; "
                "run `paretune pull` here to measure it"
            )
        else:
            print(f"examples agree: largest difference {difference:.2g} of the outputs' range")
    except Refused as reason:
        print(f"{given.folder}: refused: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
