"""Pulling from a real MLflow server over HTTP after the study folder is gone."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from paretune.deploy.pull import pull
from paretune.errors import InputError
from paretune.trackers.artifact_store import sha256_of
from paretune.trackers.mlflow_tracker import sync
from paretune.trackers.study import Study


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"),
        *("--artifacts-destination", str(tmp_path / "served")),
    ]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).read()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "server.log").read_text()[-2000:])
        yield address
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(20)
        log.close()


@pytest.mark.slow
def test_pull_by_search_and_by_trial_without_the_folder(
    digits_study: Path, server: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    study = tmp_path / "study"
    shutil.copytree(digits_study, study)
    with Study.open(study) as opened:
        report = sync(opened, server, "digits")
        chosen = opened.front().choose(best="size_bytes")
    shutil.rmtree(study)
    bundle = pull(f"mlflow:{report.run_id}", tmp_path / "a", best="size_bytes", uri=server)
    assert bundle.manifest["study"]["trial"] == chosen.number
    assert sha256_of(bundle.model) == chosen.evaluation.artifact.sha256
    assert bundle.manifest["remeasured"] is None
    link = MlflowClient(server)
    experiment = link.get_experiment_by_name("digits").experiment_id
    on_front = f"tags.`mlflow.parentRunId` = '{report.run_id}' and tags.pareto = 'true'"
    child = link.search_runs([experiment], on_front)[0]
    again = pull(f"mlflow:{child.info.run_id}", tmp_path / "b", uri=server)
    assert again.manifest["study"]["trial"] == int(
        child.data.tags["paretune.trial"].rpartition("/")[2]
    )
    with pytest.raises(InputError, match="no such run"):
        pull("mlflow:" + "0" * 32, tmp_path / "c", best="size_bytes", uri=server)
