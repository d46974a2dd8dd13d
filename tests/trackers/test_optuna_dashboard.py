"""optuna-dashboard opens a study's own file: its finished trials, in the browser, offline."""

import json
import shutil
import sys
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest
from chromium import Chromium
from local_server import LocalServer, free_port

pytestmark = pytest.mark.browser
TRIALS = 12


class Dashboard(LocalServer):
    """optuna-dashboard on a study file; it has no ``/health``."""

    health = "/dashboard"


def test_the_dashboard_shows_every_finished_trial(recorded: ModuleType, tmp_path: Path) -> None:
    program = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("optuna-dashboard is not installed (pip install optuna-dashboard)")
    with recorded.new_study(tmp_path / "study", trials=TRIALS) as study:
        failed = {row.number for row in study.rows("measure") if row.evaluation.failed}
        objectives = [o.name for o in study.objectives]
    file = tmp_path / "study" / "study.db"
    port, folder = free_port(), tmp_path / "log"
    folder.mkdir()
    command = [
        *(program, f"sqlite:///{file}", "--host", "127.0.0.1", "--port", str(port)),
    ]
    with Dashboard(command, port, folder) as server:
        listed = json.loads(urllib.request.urlopen(f"{server.uri}/api/studies", timeout=30).read())
        (found,) = [s for s in listed["study_summaries"] if s["study_name"] == "made-up"]
        assert len(found["directions"]) == len(objectives)
        address = f"{server.uri}/api/studies/{found['study_id']}"
        trials = json.loads(urllib.request.urlopen(address, timeout=30).read())["trials"]
        assert len(trials) == TRIALS
        assert {t["number"] for t in trials if t["state"] == "Fail"} == failed != set()
        assert {t["state"] for t in trials} == {"Complete", "Fail"}
        with Chromium(tmp_path / "profile", (1400, 1000)) as browser:
            browser.open(f"{server.uri}/dashboard/studies/{found['study_id']}/trials")
            browser.wait("document.body.innerText.includes('Complete')", 60)
            assert browser.evaluate("document.body.innerText").count("Complete") >= 8
            browser.open(f"{server.uri}/dashboard/studies/{found['study_id']}")
            browser.wait("document.querySelectorAll('.main-svg').length > 0", 60)
            outside = [a for a in browser.requests if a.startswith("http") and server.uri not in a]
            assert outside == []
