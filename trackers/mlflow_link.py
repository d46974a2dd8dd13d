"""A connection to MLflow that gives up quickly, keeps quiet and leaves no trace behind."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import EnvironmentFault, InputError
from .mlflow_tables import keep_tables, lay_tables

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it would repeat POSTs: the same run twice
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "GIT_PYTHON_REFRESH": "quiet",
}
_TALKERS = ("mlflow", "alembic")
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_turn = threading.RLock()


@dataclass(frozen=True)
class MlflowSettings:
    """Where MLflow keeps the runs. ``None``: from the environment, else beside the study.

    artifacts: ``"front"`` uploads the exported files of the final front, ``"none"`` does not.
    """

    uri: str | None = None
    experiment: str | None = None
    artifacts: str = "front"

    def resolved(self, folder: Path, name: str) -> MlflowSettings:
        """The same with nothing left open.

        The order is: what is given, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, then
        ``mlflow.db`` in the study folder ``folder`` and the study's ``name``.
        """
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        experiment = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return MlflowSettings(
            uri=checked_uri(uri or f"sqlite:///{folder.resolve()}/mlflow.db"),
            experiment=experiment or name,
            artifacts=self.artifacts,
        )


def checked_uri(uri: str, where: str = "tracker.mlflow.uri") -> str:
    """The address, if it is one of a database or a server (MLflow's file store loses runs).

    A relative ``sqlite:///FILE.db`` becomes absolute: it starts from the working directory.
    where: what an error calls it. Raises InputError.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _SCHEMES:
        raise InputError(
            where,
            f"not an address of a database or a server: {shown(uri)!r}",
            "write sqlite:///FILE.db or http://HOST:PORT"
            + " (it is what MLFLOW_TRACKING_URI says)"
            * (uri == os.environ.get("MLFLOW_TRACKING_URI")),
        )
    start, _, path = uri.partition("sqlite:///")
    if start == "" and path and not path.startswith(("/", ":")):
        return f"sqlite:///{os.path.abspath(path)}"
    return uri


def shown(uri: str) -> str:
    """The address, or a text with addresses in it, without users and passwords."""
    return re.sub(r"//(?:[^/\s:@]*:\S*|[^/\s@]*)@", "//", uri)


@contextmanager
def mlflow_calls(timeout_seconds: int = 5) -> Iterator[None]:
    """Short timeouts, no retries, no telemetry and no chatter for the calls made inside.

    A dead server costs milliseconds and a hung one ``timeout_seconds``, where MLflow's defaults
    block for minutes. The environment is the process's, so one caller at a time.
    """
    settings = {**_QUIET, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_seconds)}
    with _turn:
        before = {key: os.environ.get(key) for key in settings}
        levels = {name: logging.getLogger(name).level for name in _TALKERS}
        os.environ.update(settings)
        for name in _TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def client(uri: str) -> Any:
    """An ``MlflowClient``. Call inside :func:`mlflow_calls`; the first call imports MLflow."""
    file = database_file(uri) if uri.startswith("sqlite:////") else None
    new = file is not None and not file.exists()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise EnvironmentFault(f"mlflow cannot be imported ({error}); pip install mlflow") from None
    for name in _TALKERS:  # the import sets its own levels
        logging.getLogger(name).setLevel(logging.ERROR)
    if file is not None and new:
        lay_tables(file)
    made = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if file is not None and new:
        keep_tables(file)
    return made


def database_file(uri: str) -> Path:
    """The file of a ``sqlite:///`` address."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def experiment_id(link: Any, uri: str, name: str) -> str:
    """The experiment of that name, created or undeleted where needed.

    With a local database the artifacts lie in ``mlartifacts`` beside it.
    """
    found = link.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):
            folder = database_file(uri).resolve().parent / "mlartifacts" / quote(name, safe="")
            location = folder.as_uri()
        return str(link.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        link.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def reason(error: BaseException) -> str:
    """One line of an MLflow error, without addresses' passwords."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    refused = re.search(r"Connection refused|Read timed out|Name or service not known", text)
    return refused[0].lower() if refused else shown(text)[:200]
