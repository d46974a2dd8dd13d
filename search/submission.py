"""Submitting a search: everything is checked first, then the wheel and the job travel."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

from ..errors import InputError
from ..tasks.job import load_job
from .luggage import JOB, pack
from .preflight import check_room
from .service import Service
from .wheel import build_wheel


def submit_search(
    path: Path,
    address: str,
    trials: int | None = None,
    workers: int | None = None,
    out: str | None = None,
    token: bool = True,
    plain_http: bool = False,
) -> tuple[Service, str]:
    """Start ``paretune search`` as a job on a cluster; (its service, the job's id).

    Raises InputError within seconds for what would otherwise fail, or wait for ever, over there:
    see :class:`.service.Service`; also a path that the cluster does not see, and more resources for
    a worker than any node has.
    """
    job = load_job(path)
    with tempfile.TemporaryDirectory(prefix="paretune-submit-") as scratch:
        luggage, wheels = Path(scratch) / "job", Path(scratch) / "wheel"
        luggage.mkdir()
        wheels.mkdir()
        service = Service(address, token, plain_http)
        check_room(job, service.nodes())
        stays = pack(path, luggage)
        missing = service.missing(sorted(set(stays.values())))
        for key, named in stays.items():
            if named in missing:
                raise InputError(
                    job.where(key),
                    f"the cluster does not see {named!r}",
                    "put it where the cluster's nodes see it, and name that path",
                )
        command = _command(job.name, trials, workers, out)
        runtime_env = {"working_dir": str(luggage), "py_modules": [str(build_wheel(wheels))]}
        return service, service.submit(command, runtime_env, {"paretune": job.name})


def _command(name: str, trials: int | None, workers: int | None, out: str | None) -> str:
    words = ["python", "-m", "paretune.cli", "search", JOB, "--ray", "auto"]
    for option, value in (("--trials", trials), ("--workers", workers)):
        words += [] if value is None else [option, str(value)]
    folder = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "search"
    place = shlex.quote(out) if out else f'"$HOME"/paretune/{shlex.quote(folder)}'
    return f"{shlex.join(words)} --out {place}"
