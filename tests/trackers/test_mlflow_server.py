"""MLflow servers that are away, hang, or die in the middle."""

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from local_server import free_port, mlflow_server

from paretune.errors import EnvironmentFault
from paretune.trackers import mlflow_tracker
from paretune.trackers.mlflow_link import client, mlflow_calls
from paretune.trackers.mlflow_tracker import MlflowProjector, download_artifact, read_run, sync
from paretune.trackers.study import Study


@pytest.fixture
def server(tmp_path, clean_environment):
    (tmp_path / "server").mkdir()
    server = mlflow_server(tmp_path / "server")
    yield server
    server.kill()


def numbers(uri, study_id):
    from mlflow import MlflowClient

    link = MlflowClient(tracking_uri=uri)
    experiment = link.get_experiment_by_name("made-up").experiment_id
    where = f"tags.`paretune.study` = '{study_id}' and tags.`paretune.kind` = 'trial'"
    runs = link.search_runs([experiment], where, max_results=1000)
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}
    return sorted(int(run.data.tags["paretune.trial"].split("/")[1]) for run in runs)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle(tmp_path, server, recorded):
    server.start()
    with recorded.new_study(tmp_path / "s") as study:
        projector = MlflowProjector(tmp_path / "s", {"uri": server.uri})
        for number in range(40):
            if number == 12:
                server.kill()
            if number == 30:
                server.start()
            began = time.monotonic()
            recorded.run_trial(study, number, artifacts=True)
            projector.notify(number)
            assert time.monotonic() - began < 5.0
            time.sleep(0.05)
        assert projector.close(timeout=120) == ()
        identity = study.id
    assert numbers(server.uri, identity) == list(range(40))
    with Study.open(tmp_path / "s") as study:
        report = sync(study, server.uri)
        assert (report.created, report.updated) == (0, 0)
        front = study.front()
        expected = {
            p.number: study.artifact_path(p.evaluation.artifact).read_bytes() for p in front
        }
    for path in sorted((tmp_path / "s").rglob("*"), reverse=True):  # the study folder is gone
        path.rmdir() if path.is_dir() else path.unlink()
    record = read_run(report.run_id, server.uri)
    for point in record.front():
        name = f"models/{point.evaluation.artifact.file_name}"
        copy = download_artifact(record.parent_run_id, name, tmp_path / "to", server.uri)
        assert copy.read_bytes() == expected[point.number]


@pytest.mark.slow
def test_a_server_away_for_ten_minutes(tmp_path, server, recorded, monkeypatch):
    """On a clock that runs 40 times as fast: the pauses between attempts are a fortieth, and so is
    the absence (15 s). Trials take as long as ever, nothing is missing or twice in the end.
    PARETUNE_CLOCK=1 takes the ten minutes."""
    import optuna  # noqa: F401  (the study's 20th trial would wait seconds for it, not for MLflow)

    speed = float(os.environ.get("PARETUNE_CLOCK", 40))
    for name in ("_FIRST_PAUSE", "_LONGEST_PAUSE", "_PICTURES_EVERY"):
        usual = getattr(mlflow_tracker, name)
        monkeypatch.setattr(mlflow_tracker, name, usual / speed)
    server.start()
    with recorded.new_study(tmp_path / "s") as study:
        projector = MlflowProjector(tmp_path / "s", {"uri": server.uri})
        took, number = {"there": [], "away": []}, 0

        def trials_for(seconds, when):
            nonlocal number
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                recorded.run_trial(study, number)
                projector.notify(number)
                took[when].append(round(time.monotonic() - began, 2))
                number += 1
                time.sleep(min(3.0, 8 / speed))

        trials_for(3, "there")
        server.kill()
        trials_for(600 / speed, "away")
        server.start()
        trials_for(3, "there")
        assert projector.close(timeout=120) == ()
        print(f"seconds of each trial: {took}")
        assert numbers(server.uri, study.id) == list(range(number))
        assert max(took["away"]) < 5.0


@pytest.mark.slow
def test_a_server_that_comes_too_late_is_brought_up_by_a_sync(tmp_path, server, recorded):
    with recorded.new_study(tmp_path / "s") as study:
        projector = MlflowProjector(tmp_path / "s", {"uri": server.uri})
        for number in range(8):
            recorded.run_trial(study, number)
            projector.notify(number)
        problems = projector.close(timeout=60)
        assert len(problems) == 1 and f"paretune sync {tmp_path / 's'}" in problems[0]
    server.start()
    with Study.open(tmp_path / "s") as study:
        assert sync(study, server.uri).created == 9
        server.kill()
        with pytest.raises(EnvironmentFault, match="MLflow failed .connection refused."):
            sync(study, server.uri)
        server.start()
        assert sync(study, server.uri).created == 0
        assert numbers(server.uri, study.id) == list(range(8))


def test_a_slow_server_is_asked_for_a_run_once(clean_environment):
    """It makes the run all the same, so that asking again would make two."""
    asked = []

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            time.sleep(1.5)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server, mlflow_calls(1):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Exception, match="timed out"):
            client(f"http://127.0.0.1:{server.server_port}").create_run("0")
        time.sleep(0.5)
        server.shutdown()
    assert [path.rpartition("/")[2] for path in asked] == ["create"]


def test_a_server_that_is_away_delays_nothing(tmp_path, recorded, clean_environment):
    with recorded.new_study(tmp_path / "s") as study:
        uri = f"http://127.0.0.1:{free_port()}"
        projector = MlflowProjector(tmp_path / "s", {"uri": uri})
        for number in range(5):
            recorded.run_trial(study, number)
            began = time.monotonic()
            projector.notify(number)
            assert time.monotonic() - began < 0.1
        problems = projector.close(timeout=60)
        assert "connection refused" in problems[0] and "paretune sync" in problems[0]
        assert len(study.rows()) == 5


@pytest.mark.slow
def test_a_server_that_never_answers_is_left_at_the_timeout(tmp_path, recorded, clean_environment):
    with socket.socket() as silent, recorded.new_study(tmp_path / "s", trials=3):
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        projector = MlflowProjector(tmp_path / "s", {"uri": uri})
        began = time.monotonic()
        problems = projector.close(timeout=2.0)
        assert time.monotonic() - began < 3.0
        assert "paretune sync" in problems[0]
        projector._thread.join(60)  # for the sake of the tests that follow
        assert not projector._thread.is_alive()
