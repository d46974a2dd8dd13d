"""``paretune doctor``: what is installed, what works here, what to do about the rest."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import EnvironmentFault, ParetuneError
from ..targets.cpu import VNNI_FLAGS, allowed_cores, cpu_features, saturates_int8
from ..tasks.job import DEFAULT_TARGET

_FREE_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: "ok", "note" (worth knowing) or "wrong"."""

    subject: str
    state: str
    told: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """All findings, the quick ones first."""
    yield Finding("paretune", "ok", f"{__version__}, Python {platform.python_version()}")
    yield from _packages()
    yield from _machine()
    yield from _places()
    yield _mlflow()
    yield _gpu()
    yield from _targets()


def run_doctor() -> None:
    """Print the findings as they come. Raises EnvironmentFault when something is wrong."""
    console = Console(highlight=False, soft_wrap=True)
    marks = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]wrong[/]"}
    wrong = 0
    with console.status("torch is loaded and each runtime tried, which takes some 10 seconds"):
        for found in examine():
            wrong += found.state == "wrong"
            console.print(f"{marks[found.state]} {found.subject:<20} {escape(found.told)}")
            if found.remedy:
                console.print(f"      {'':<20} -> {escape(found.remedy)}")
    if wrong:
        raise EnvironmentFault(f"{wrong} thing{'s' * (wrong > 1)} wrong, see the lines above")
    console.print("\nNothing is wrong.")


def _packages() -> Iterator[Finding]:
    """Installed requirements against what the package asks for."""
    from packaging.requirements import Requirement

    try:
        asked = metadata.requires("paretune") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "installation", "note", "runs from a folder, is not installed", "pip install ."
        )
        return
    bad, versions = [], {}
    for text in asked:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[need.name] = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            bad.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(versions[need.name], prereleases=True):
            bad.append(f"{need.name} {versions[need.name]} is not {need.specifier}")
    if bad:
        yield Finding("packages", "wrong", "; ".join(bad), "pip install --upgrade paretune")
    shown = [
        f"{n} {versions[n]}"
        for n in ("torch", "onnxruntime", "optuna", "mlflow", "ray")
        if n in versions
    ]
    yield Finding("packages", "ok", f"{len(versions)} required ones; {', '.join(shown)}")


def _machine() -> Iterator[Finding]:
    cpu, cores = cpu_features(), len(allowed_cores()) or os.cpu_count() or 1
    yield Finding("processor", "ok", f"{cpu['model']}, {cores} cores: {', '.join(cpu['flags'])}")
    vnni = sorted(VNNI_FLAGS & set(cpu["flags"]))
    if vnni:
        yield Finding("int8", "ok", f"has {', '.join(vnni)}: int8 is fast and exact")
    elif saturates_int8():
        yield Finding(
            "int8",
            "note",
            "no VNNI: sums of int8 products saturate here, so weights are stored in 7 bits; int8 "
            "gains less speed than on processors with VNNI",
            "measure on the machine where the model will run (docs: Measure on your own board)",
        )
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        "threads",
        "ok",
        f"OMP_NUM_THREADS {'is not set' if threads is None else '= ' + threads}; each worker takes "
        f"one core, so `search: {{workers: {cores}}}` fills this machine",
    )


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("GPU", "ok", f"{', '.join(sorted(names))} (CUDA {torch.version.cuda})")
    return Finding(
        "GPU", "note", "none that torch can use: training after a search runs on the CPU"
    )


def _places() -> Iterator[Finding]:
    data = os.environ.get("PARETUNE_DATA")
    if data is None:
        yield Finding("PARETUNE_DATA", "note", "not set (only the examples and some tests read it)")
    elif not Path(data).is_dir():
        yield Finding("PARETUNE_DATA", "wrong", f"{data!r} is no folder", "correct it or unset it")
    else:
        yield Finding("PARETUNE_DATA", "ok", data)
    from ..tasks.image_cache import ImageCache

    try:
        folder = ImageCache(None).folder
        free = shutil.disk_usage(_nearest(folder)).free / 1e9
        writable = os.access(_nearest(folder), os.W_OK)
    except (OSError, ParetuneError) as error:
        yield Finding("image cache", "wrong", str(error), "set PARETUNE_CACHE to a folder")
        return
    remedy = "set PARETUNE_CACHE to a folder that can be written, on a disk with space"
    if not writable or free < _FREE_GB:
        told = f"{folder}: {'' if writable else 'cannot be written, '}{free:.1f} GB free"
        yield Finding("image cache", "wrong", told, remedy)
    else:
        yield Finding("image cache", "ok", f"{folder}, {free:.0f} GB free")


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _mlflow() -> Finding:
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        told = "MLFLOW_TRACKING_URI is not set: a job names its store, or logs to mlflow.db"
        return Finding("MLflow", "ok", told)
    from ..trackers.mlflow_link import checked_uri, client, mlflow_calls, reason, shown

    try:
        with mlflow_calls(5):
            client(checked_uri(address)).search_experiments(max_results=1)
    except Exception as error:
        remedy = "start the server, or correct or unset MLFLOW_TRACKING_URI"
        return Finding("MLflow", "wrong", f"{shown(address)}: {reason(error)}", remedy)
    return Finding("MLflow", "ok", f"{shown(address)} answers")


def _targets() -> Iterator[Finding]:
    from ..targets.tryout import try_targets

    for tried in try_targets():
        if tried.state == "works":
            told = f"{tried.detail}; exported and run in {tried.seconds:.1f} s"
            yield Finding(tried.target, "ok", told)
        elif tried.state == "absent" and tried.target != DEFAULT_TARGET:
            yield Finding(tried.target, "note", f"not here: {tried.detail}")
        else:
            remedy = f"reinstall its runtime; python is {sys.executable}"
            yield Finding(tried.target, "wrong", tried.detail, remedy)
