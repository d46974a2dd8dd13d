"""A study read back from MLflow, for a pull where the study folder is gone."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..objectives.evaluation import Evaluation
from ..objectives.front import ParetoFront
from ..objectives.objective import Objective
from .artifact_store import FILE_NAME, sha256_of
from .front_files import VERSION
from .mlflow_link import checked_uri, client, database_file, mlflow_calls, reason, shown
from .mlflow_runs import KIND, PARENT, STUDY, TRIAL

_MOST_BYTES = 256 << 20
_RUN_ID = re.compile(r"^[0-9a-zA-Z_-]{1,64}$")


@dataclass(frozen=True)
class RunRecord:
    """A run of a search (``kind == "search"``) or of one trial, with its study.

    number: of the trial, None for the search. status: MLflow's.
    study: the record described at :func:`paretune.trackers.front_files.study_record`.
    artifacts: paths of the parent's artifacts, e.g. ``"models/<sha256>.onnx"``.
    uri: where it was read.
    """

    run_id: str
    kind: str
    status: str
    study_id: str
    number: int | None
    parent_run_id: str
    study: Mapping[str, Any]
    artifacts: tuple[str, ...]
    uri: str

    def evaluation(self, number: int, rung: str | None = None) -> Evaluation:
        """A front point's evaluation at a rung (default: confirmed if there is one, else measured).

        Raises InputError when the point is not on the stored front.
        """
        for entry in self.study["front"]:
            if entry["number"] == number:
                rungs = entry["rungs"]
                for name in (rung,) if rung else ("confirm", "recover", "measure"):
                    if name in rungs and not rungs[name].get("cause"):
                        return Evaluation.from_json(rungs[name], f"trial {number}")
        at = "" if rung is None else f" at {rung!r}"
        raise InputError(
            f"mlflow:{self.run_id}",
            f"trial {number} is not on the front{at}, and only the front's files are kept",
            "pick a run with the tag pareto = true",
        )

    def baseline(self, rung: str = "measure") -> Evaluation | None:
        """The identity plan's evaluation at a rung."""
        found = self.study["baseline"]["rungs"].get(rung)
        return Evaluation.from_json(found, "baseline") if found else None

    def front(self) -> ParetoFront:
        """The stored front, to choose from as from a study's."""
        rows = [
            (entry["number"], Evaluation.from_json(rung, f"trial {entry['number']}"))
            for entry in self.study["front"]
            for name, rung in sorted(entry["rungs"].items(), reverse=True)
        ]
        confirmed = self.baseline("confirm")
        whole = confirmed and all("confirm" in entry["rungs"] for entry in self.study["front"])
        return ParetoFront(
            rows,
            [Objective(o["name"], o["options"]) for o in self.study["objectives"]],
            self.study["constraints"],
            confirmed if whole else self.baseline(),
            {e["number"]: e["parent"] for e in self.study["front"] if e["parent"] is not None},
        )


def read_run(run_id: str, uri: str | None = None) -> RunRecord:
    """The study behind a run that paretune wrote: the parent's id or a child's.

    uri: default MLFLOW_TRACKING_URI. Raises InputError when it is no run of paretune's or the run
    is not finished, EnvironmentFault when MLflow cannot be reached.
    """
    where, address = f"mlflow:{run_id}", found_address(uri)
    if not _RUN_ID.match(run_id):
        raise InputError(where, "not the id of a run", "copy it from the run's page")
    with _failures(where, address), mlflow_calls(30):
        link = client(address)
        run = _get(link, run_id, where)
        tags = dict(run.data.tags)
        kind = tags.get(KIND)
        if kind not in ("search", "trial"):
            raise InputError(where, "is not a run that paretune wrote", "")
        parent_id = run_id if kind == "search" else tags.get(PARENT, "")
        parent = run if kind == "search" else _get(link, parent_id, where)
        if "RUNNING" in (parent.info.status, run.info.status):
            raise InputError(
                where,
                "the search's run is RUNNING",
                "wait for the search to end, or run `paretune sync` on its folder",
            )
        names = [
            item.path for folder in (None, "models") for item in _list(link, parent_id, folder)
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(link.download_artifacts(parent_id, "study.json", folder))
            study = _study(path, where)
    if study["id"] != tags.get(STUDY):
        raise InputError(where, "its study.json is of another search", "run `paretune sync` again")
    number = int(tags[TRIAL].rpartition("/")[2]) if kind == "trial" else None
    record = RunRecord(
        run_id=run_id,
        kind=kind,
        status=run.info.status,
        study_id=study["id"],
        number=number,
        parent_run_id=parent_id,
        study=study,
        artifacts=tuple(names),
        uri=address,
    )
    try:
        record.front()
    except (KeyError, TypeError, AttributeError) as error:
        what = f"its study.json is damaged ({type(error).__name__}: {error})"
        raise InputError(where, what, "run `paretune sync` on the study again") from None
    return record


def download_artifact(run_id: str, path: str, to: Path | str, uri: str | None = None) -> Path:
    """Copy an artifact of a run into the folder ``to``; where it lies.

    A file named by its sha256 is checked against its name. Raises InputError on a path that leaves
    the run, EnvironmentFault when it cannot be had or its bytes do not match.
    """
    where, address = f"mlflow:{run_id}", found_address(uri)
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise InputError(where, f"not a path inside the run: {path!r}", "")
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    with _failures(where, address), mlflow_calls(120):
        got = Path(client(address).download_artifacts(run_id, path, str(folder)))
    named = FILE_NAME.match(got.name)
    if named and sha256_of(got) != named[1]:
        got.unlink()
        raise EnvironmentFault(
            f"{where}: {path} does not have the content that its name promises; "
            "run `paretune sync` on the study again"
        )
    return got


def _study(path: Path, where: str) -> dict[str, Any]:
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(where, "its study.json is too large to be true", "")
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(where, "its study.json cannot be read", "run `paretune sync`") from None
    needed = {"id", "name", "job", "objectives", "constraints", "baseline", "front"}
    if not isinstance(study, dict) or not needed <= set(study) or study.get("version") != VERSION:
        raise InputError(
            where, "its study.json is of another layout", "use the paretune version that wrote it"
        )
    return study


def _get(link: Any, run_id: str, where: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        run = link.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InputError(
                where, "there is no such run", "check the id and the address"
            ) from None
        raise
    if run.info.lifecycle_stage == "deleted":
        raise InputError(where, "the run was deleted", "restore it, or `paretune sync` the study")
    return run


def _list(link: Any, run_id: str, folder: str | None) -> list[Any]:
    return [item for item in link.list_artifacts(run_id, folder) if not item.is_dir]


def found_address(uri: str | None) -> str:
    """MLflow's address: ``uri``, MLFLOW_TRACKING_URI or ``mlflow.db`` in the working directory.

    Raises InputError when there is none.
    """
    found = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not found and Path("mlflow.db").is_file():
        found = f"sqlite:///{Path('mlflow.db').resolve()}"
    if not found:
        raise InputError(
            "MLflow", "no address is given", "set MLFLOW_TRACKING_URI, e.g. http://127.0.0.1:5000"
        )
    found = checked_uri(found)
    if found.startswith("sqlite:///") and not database_file(found).is_file():
        raise InputError("MLflow", f"there is no database at {found!r}", "check the address")
    return found


@contextmanager
def _failures(where: str, address: str) -> Iterator[None]:
    """Turn what MLflow throws into one line."""
    try:
        yield
    except ParetuneError:
        raise
    except Exception as error:
        raise EnvironmentFault(
            f"{where} at {shown(address)}: MLflow failed ({reason(error)}); "
            "check that it runs there"
        ) from error
