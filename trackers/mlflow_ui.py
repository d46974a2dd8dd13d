"""MLflow's own UI, opened on the store that a study is logged to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import InputError
from .mlflow_link import MlflowSettings, shown
from .study import Study


def ui_command(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and environment that serve the study's MLflow store on 127.0.0.1:``port``.

    Raises InputError when the study is logged to a server, which has a UI of its own.
    """
    with Study.open(folder) as study:
        mlflow = (study.job.get("tracker") or {}).get("mlflow") or {}
        settings = MlflowSettings(**mlflow).resolved(study.folder, study.name)
    uri = str(settings.uri)
    if uri.startswith("http"):
        where = f"open {shown(uri)} in a browser"
        raise InputError(str(folder), "it is logged to a server", where)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1"),
    ]
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # may hold a password: not for the list of processes
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": bin_folder + os.pathsep + os.environ.get("PATH", ""),
    }
    return command, environment
