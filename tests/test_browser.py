"""The pages in a real headless Chromium that can reach nothing but this machine."""

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from local_server import LocalServer, free_port

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)


def page(address: str, profile: Path, wait_ms: int) -> str:
    """The page as the browser holds it after its scripts ran."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        "--window-size=1400,1800",
        f"--virtual-time-budget={wait_ms}",
        "--dump-dom",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout


def test_the_front_page_draws_without_a_network(digits_study: Path, tmp_path: Path) -> None:
    text = page((digits_study / "front.html").as_uri(), tmp_path / "profile", 5000)
    assert text.count("main-svg") >= 2, "plotly has drawn nothing"
    assert "scatterlayer" in text
    assert "Latency" in text and "File size" in text
    source = (digits_study / "front.html").read_text(encoding="utf-8")
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\S+", source)
    assert fetched == []


@pytest.mark.slow
def test_mlflow_shows_the_search_and_its_picture(digits_study: Path, tmp_path: Path) -> None:
    from paretune.trackers.mlflow_tracker import sync
    from paretune.trackers.mlflow_ui import ui_command
    from paretune.trackers.study import Study

    with Study.open(digits_study) as study:
        mlflow = study.job["tracker"]["mlflow"]
        report = sync(study, mlflow["uri"], mlflow["experiment"])
    from mlflow import MlflowClient

    link = MlflowClient(mlflow["uri"])
    experiment = link.get_experiment_by_name(report.experiment).experiment_id
    port, folder = free_port(), tmp_path / "ui"
    folder.mkdir()
    command, environment = ui_command(digits_study, port)
    with LocalServer(command, port, folder, environment) as server:
        root = server.uri
        runs = page(f"{root}/#/experiments/{experiment}/runs", tmp_path / "a", 30000)
        assert "quickstart-digits" in runs
        run = page(f"{root}/#/experiments/{experiment}/runs/{report.run_id}", tmp_path / "b", 30000)
        assert "hypervolume" in run
        picture = urllib.request.urlopen(
            f"{root}/get-artifact?path=front.html&run_uuid={report.run_id}", timeout=30
        ).read()
        saved = tmp_path / "front.html"
        saved.write_bytes(picture)
        assert page(saved.as_uri(), tmp_path / "c", 5000).count("main-svg") >= 2
