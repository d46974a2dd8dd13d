"""Pulling from a real MLflow server over HTTP after the study folder is gone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import mlflow_server

from paretune.deploy.pull import pull
from paretune.errors import InputError
from paretune.trackers.artifact_store import sha256_of
from paretune.trackers.mlflow_tracker import sync
from paretune.trackers.study import Study


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder) as running:
        yield running.uri


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
