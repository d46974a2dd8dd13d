"""The study in a real MLflow database, read back with MLflow's own client."""

import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from paretune.deploy.pull import pull
from paretune.deploy.source import check_trusted, open_source
from paretune.errors import EnvironmentFault, InputError
from paretune.objectives.answers import conclusion
from paretune.trackers.mlflow_link import MlflowSettings, mlflow_calls, reason
from paretune.trackers.mlflow_link import client as connect
from paretune.trackers.mlflow_mirror import ENDED, Mirror
from paretune.trackers.mlflow_tables import keep_tables, lay_tables
from paretune.trackers.mlflow_tracker import (
    MlflowProjector,
    SyncReport,
    download_artifact,
    read_run,
    sync,
)
from paretune.trackers.study import BASELINE, Study
from paretune.trackers.study_page import study_page

pytestmark = pytest.mark.usefixtures("without_optuna")
TRIALS = 12


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A MLflow database with its tables made (that takes seconds), and no run."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with mlflow_calls():
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store, tmp_path, clean_environment):
    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recorded):
    """A study folder with 12 finished trials; only to be read."""
    folder = tmp_path_factory.mktemp("finished") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paretune.trackers.optuna_tables.OptunaTables.add", lambda *_: 0)
        recorded.new_study(folder, trials=TRIALS, artifacts=True).close()
    return folder


@pytest.fixture
def study(tmp_path, finished):
    """A study with 12 finished trials, in a folder of its own."""
    shutil.copytree(finished, tmp_path / "s")
    with Study.open(tmp_path / "s") as study:
        yield study


@pytest.fixture(scope="module")
def drawn(finished, empty_store, tmp_path_factory):
    """(study, address, report) after one sync; only to be read."""
    path = tmp_path_factory.mktemp("drawn") / "mlflow.db"
    shutil.copy(empty_store, path)
    with Study.open(finished) as study:
        yield study, f"sqlite:///{path}", sync(study, f"sqlite:///{path}", "made-up")


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def children(uri, study, experiment="made-up"):
    link = client(uri)
    number = link.get_experiment_by_name(experiment).experiment_id
    runs = link.search_runs([number], f"tags.`paretune.study` = '{study.id}'", max_results=1000)
    found = {}
    for run in runs:
        if run.data.tags["paretune.kind"] == "trial":
            key = int(run.data.tags["paretune.trial"].split("/")[1])
            assert key not in found, "two runs of one trial"
            found[key] = run
    return found


def test_every_trial_becomes_one_child_of_one_parent(drawn, recorded):
    study, uri, report = drawn
    assert (report.created, report.updated, report.skipped) == (TRIALS + 1, 0, 0)
    assert report.problems == () and report.experiment == "made-up"
    front = {point.number for point in study.front()}
    runs = children(uri, study)
    assert sorted(runs) == list(range(TRIALS))
    for number, run in runs.items():
        expected, tags = recorded.evaluation(number), run.data.tags
        assert tags["mlflow.parentRunId"] == report.run_id
        assert tags["paretune.trial"] == f"{study.id}/{number}"
        assert tags["pareto"] == str(number in front).lower()
        assert 4 <= len(run.data.params) <= 8
        if expected.failed:
            assert run.info.status == "FAILED" and tags["paretune.cause"] == expected.cause
        else:
            assert run.info.status == "FINISHED"
            assert run.data.metrics == {
                k: pytest.approx(v, rel=1e-5) for k, v in expected.values.items()
            }
            assert run.data.metrics["size_bytes"] == expected.values["size_bytes"]
        assert run.info.end_time - run.info.start_time == pytest.approx(
            0 if expected.failed else 1750, abs=1
        )


def test_the_parent_opens_with_the_answer(drawn):
    study, uri, report = drawn
    parent = client(uri).get_run(report.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["paretune.kind"] == "search"
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("**Best within") and "latency" in note.split("\n")[0]
    assert parent.info.run_name == f"made-up: {conclusion(study.front())}"
    assert len(note) < 8000 and "12 trials (2 failed)" in note
    assert parent.data.params["sampler"] == "nsga2" and parent.data.params["seed"] == "0"
    assert parent.data.params["baseline_accuracy"] == "0.91"
    history = client(uri).get_metric_history(report.run_id, "front_size")
    steps = {m.step: m.value for m in history}
    expected = study.measured_front().history()
    assert steps == dict(zip(expected["number"], expected["front_size"], strict=True))
    assert parent.data.metrics["hypervolume"] == study.front().hypervolume()


def test_the_parent_holds_all_that_a_pull_needs(drawn, tmp_path):
    study, uri, report = drawn
    record = read_run(report.run_id, uri)
    front = study.front()
    models = {f"models/{p.evaluation.artifact.file_name}" for p in front}
    pages = {"front.html", "front.json", "front.csv", "job.yaml", "plans.json", "study.json"}
    assert set(record.artifacts) == models | pages
    assert (record.kind, record.number, record.study_id) == ("search", None, study.id)
    assert record.study["job"] == study.job
    assert record.baseline() == study.baseline
    assert {p.number: p.evaluation for p in record.front()} == {
        p.number: p.evaluation for p in front
    }
    choice = front.choose("accuracy_drop <= 0.1", best="latency_ms").number
    assert record.front().choose("accuracy_drop <= 0.1", best="latency_ms").number == choice
    artifact = record.evaluation(choice).artifact
    copy = download_artifact(report.run_id, f"models/{artifact.file_name}", tmp_path / "to", uri)
    assert copy.read_bytes() == study.artifact_path(artifact).read_bytes()
    page = download_artifact(report.run_id, "front.html", tmp_path, uri).read_text()
    assert "plotly" in page and 'src="http' not in page
    table = json.loads(download_artifact(report.run_id, "front.json", tmp_path, uri).read_text())
    assert table["columns"][0] == "number" and len(table["data"]) == len(front)
    csv = pd.read_csv(download_artifact(report.run_id, "front.csv", tmp_path, uri))
    assert sorted(csv["number"]) == sorted(p.number for p in front)
    plans = json.loads(download_artifact(report.run_id, "plans.json", tmp_path, uri).read_text())
    assert plans == {str(p.number): p.plan.to_json() for p in front}


def test_a_child_leads_to_its_study(drawn, tmp_path):
    study, uri, report = drawn
    runs, on = children(uri, study), [p.number for p in study.front()]
    record = read_run(runs[on[0]].info.run_id, uri)
    assert (record.kind, record.number) == ("trial", on[0])
    assert record.evaluation(on[0]).plan == study.front()[on[0]].plan
    plan = download_artifact(record.run_id, "plan.json", tmp_path, uri)
    assert json.loads(plan.read_text()) == study.front()[on[0]].plan.to_json()
    off = next(n for n in runs if n not in on)
    with pytest.raises(InputError, match="is not on the front"):
        read_run(runs[off].info.run_id, uri).evaluation(off)


def test_a_second_sync_changes_nothing(drawn):
    study, uri, report = drawn
    before = [run.to_dictionary() for run in children(uri, study).values()]
    second = sync(study, uri)
    assert (second.created, second.updated, second.skipped) == (0, 0, TRIALS + 1)
    assert second.run_id == report.run_id
    assert [run.to_dictionary() for run in children(uri, study).values()] == before
    history = client(uri).get_metric_history(report.run_id, "front_size")
    assert len({m.step for m in history}) == len(history)


def test_what_was_deleted_or_half_written_is_made_whole(study, uri):
    report = sync(study, uri)
    link, runs = client(uri), children(uri, study)
    link.delete_run(runs[4].info.run_id)
    link.update_run(runs[5].info.run_id, status="RUNNING")
    mended = sync(study, uri)
    assert (mended.created, mended.updated) == (1, 1)
    runs = children(uri, study)
    assert sorted(runs) == list(range(TRIALS)) and runs[5].info.status == "FINISHED"
    link.delete_run(report.run_id)
    again = sync(study, uri)
    assert again.run_id != report.run_id and (again.created, again.updated) == (1, TRIALS)
    runs = children(uri, study)  # the same ones, of the new parent
    assert sorted(runs) == list(range(TRIALS))
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {again.run_id}
    assert read_run(again.run_id, uri).front().front


def test_runs_made_twice_are_made_one_again(study, uri):
    """What calls leave behind whose answers came too late: a search and two trials once more."""
    report = sync(study, uri)
    link, runs = client(uri), children(uri, study)
    search = link.get_run(report.run_id)
    for run in (search, runs[3], runs[7]):
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.note")}
        link.create_run(run.info.experiment_id, run.info.start_time + 1, tags, run.info.run_name)
    link.update_run(runs[7].info.run_id, status="RUNNING")  # neither is finished
    mended = sync(study, uri)
    assert mended.run_id == report.run_id and mended.problems == ()
    assert (mended.created, mended.skipped + mended.updated) == (0, TRIALS + 1)
    after = children(uri, study)
    assert sorted(after) == list(range(TRIALS))
    assert after[3].info.run_id == runs[3].info.run_id
    assert {run.info.status for run in after.values()} == {"FINISHED", "FAILED"}
    where = f"tags.`paretune.study` = '{study.id}' and tags.`paretune.kind` = 'search'"
    assert len(link.search_runs([search.info.experiment_id], where)) == 1
    assert (sync(study, uri).created, sync(study, uri).updated) == (0, 0)


def test_a_damaged_record_of_a_study_is_one_line(study, uri, tmp_path):
    report = sync(study, uri)
    stored = next((tmp_path / "mlflow").glob(f"**/{report.run_id}/artifacts/study.json"))
    record = json.loads(stored.read_text())
    for front in ([1], [{"number": 0}], None):
        stored.write_text(json.dumps({**record, "front": front}))
        with pytest.raises(InputError, match=r"study.json is damaged .*; run `paretune sync`"):
            read_run(report.run_id, uri)


def test_a_wiped_store_is_filled_again(study, uri, empty_store):
    sync(study, uri)
    path = uri.removeprefix("sqlite:///")
    shutil.copy(empty_store, path)
    shutil.rmtree(os.path.join(os.path.dirname(path), "mlartifacts"))
    assert sync(study, uri).created == TRIALS + 1
    assert sorted(children(uri, study)) == list(range(TRIALS))


@pytest.mark.slow
def test_missing_artifacts_are_uploaded_again(study, uri, tmp_path):
    report = sync(study, uri)
    folder = next((tmp_path / "mlflow" / "mlartifacts").glob(f"*/{report.run_id}/artifacts"))
    model = next((folder / "models").iterdir())
    model.unlink()
    (folder / "study.json").unlink()
    assert (sync(study, uri).created, sync(study, uri).updated) == (0, 0)
    assert model.exists() and (folder / "study.json").exists()


def test_tags_follow_the_front_and_confirmed_values_are_added(tmp_path, uri, recorded):
    with recorded.new_study(tmp_path / "s", trials=6) as study:
        mirror = Mirror(study, MlflowSettings(uri))
        mirror.push(final=False)
        before = {p.number for p in study.front()}
        for number in range(6, 20):
            recorded.run_trial(study, number)
        mirror.push(final=False)
        after = {p.number for p in study.front()}
        assert before - after, "the made-up data should push points off the front"
        tags = {n: run.data.tags["pareto"] for n, run in children(uri, study).items()}
        assert {n for n, tag in tags.items() if tag == "true"} == after
        study.add(BASELINE, recorded.baseline("confirm"))
        for number in after:
            study.add(number, recorded.evaluation(number, "confirm"))
        mirror.push(final=True)
        runs = children(uri, study)
        for number in after:
            confirmed = recorded.evaluation(number, "confirm").values["accuracy"]
            metric = runs[number].data.metrics["confirmed_accuracy"]
            assert metric == pytest.approx(confirmed, rel=1e-5)
            assert f"**{100 * confirmed:.2f} %" in runs[number].data.tags["mlflow.note.content"]
        again = sync_while_driven(study, uri)
        assert (again.created, again.updated) == (0, 1)  # the parent is open again
        assert client(uri).get_run(again.run_id).info.status == "RUNNING"
        with pytest.raises(InputError, match="is RUNNING"):
            read_run(again.run_id, uri)


def sync_while_driven(study, uri):
    with Study.open(study.folder) as reader:
        return sync(reader, uri)


@pytest.mark.slow
def test_steps_wait_for_trials_that_are_still_running(tmp_path, uri, recorded):
    with recorded.new_study(tmp_path / "s", trials=4) as study:
        study.begin(recorded.ask(4), "w")
        recorded.run_trial(study, 5)
        mirror = Mirror(study, MlflowSettings(uri))
        parent = mirror.push(final=False).parent.run_id
        steps = {m.step for m in client(uri).get_metric_history(parent, "hypervolume")}
        assert steps == {0, 1, 2}
        study.finish(4, recorded.evaluation(4))
        mirror.push(final=True)
        steps = {m.step for m in client(uri).get_metric_history(parent, "hypervolume")}
        assert steps == {0, 1, 2, 4, 5}


@pytest.mark.slow
def test_without_artifacts_no_file_is_uploaded(study, uri):
    record = read_run(sync(study, uri, artifacts="none").run_id, uri)
    assert not [name for name in record.artifacts if name.startswith("models/")]


@pytest.mark.slow
def test_a_damaged_exported_file_is_not_uploaded(study, uri):
    point = study.front().front[0]
    study.artifact_path(point.evaluation.artifact).write_bytes(b"other")
    report = sync(study, uri)
    assert len(report.problems) == 1 and "missing or damaged" in report.problems[0]
    assert (
        f"models/{point.evaluation.artifact.file_name}"
        not in read_run(report.run_id, uri).artifacts
    )


@pytest.mark.slow
def test_a_tampered_download_is_refused(study, uri, tmp_path):
    report = sync(study, uri)
    name = study.front().front[0].evaluation.artifact.file_name
    stored = next((tmp_path / "mlflow" / "mlartifacts").glob(f"**/models/{name}"))
    stored.write_bytes(stored.read_bytes() + b"!")
    with pytest.raises(EnvironmentFault, match="does not have the content"):
        download_artifact(report.run_id, f"models/{name}", tmp_path / "to", uri)
    assert list((tmp_path / "to").rglob("*.onnx")) == []
    for path in ("../secret", "/etc/passwd", "models/../../x", ""):
        with pytest.raises(InputError, match="not a path inside the run"):
            download_artifact(report.run_id, path, tmp_path / "to", uri)


def test_runs_of_others_and_unknown_ids_are_refused(drawn, clean_environment):
    study, uri, report = drawn
    link = client(uri)
    other = link.create_run(link.get_experiment_by_name("made-up").experiment_id)
    with pytest.raises(InputError, match="is not a run that paretune wrote"):
        read_run(other.info.run_id, uri)
    with pytest.raises(InputError, match="there is no such run"):
        read_run("0" * 32, uri)
    with pytest.raises(InputError, match="not the id of a run"):
        read_run("../../x", uri)
    with pytest.raises(InputError, match="there is no database"):
        read_run("0" * 32, "sqlite:////nowhere/mlflow.db")
    with pytest.raises(InputError, match="no address is given"):
        read_run("0" * 32)


def test_the_comparison_view_is_kept_in_the_experiment(drawn):
    study, uri, report = drawn
    experiment = client(uri).get_experiment_by_name("made-up")
    state = json.loads(experiment.tags[f"mlflow.sharedViewState.paretune-{study.id[:8]}"])
    assert len(state["compareRunCharts"]) == 3
    note = client(uri).get_run(report.run_id).data.tags["mlflow.note.content"]
    assert f"viewStateShareKey=paretune-{study.id[:8]}" in note


def test_the_environment_says_where_if_the_job_does_not(tmp_path, clean_environment):
    beside = MlflowSettings().resolved(tmp_path / "s", "name")
    assert beside.uri == f"sqlite:///{tmp_path}/s/mlflow.db" and beside.experiment == "name"
    clean_environment.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    clean_environment.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    found = MlflowSettings().resolved(tmp_path, "name")
    assert (found.uri, found.experiment) == ("http://127.0.0.1:5000", "from the environment")
    given = MlflowSettings("sqlite:////x.db", "given").resolved(tmp_path, "name")
    assert (given.uri, given.experiment) == ("sqlite:////x.db", "given")


def test_an_address_of_a_file_store_is_refused(study):
    for address in ("mlruns", "file:///tmp/mlruns", "./x", "ftp://x"):
        with pytest.raises(InputError, match=r"sqlite:///FILE.db or http://HOST:PORT"):
            sync(study, address)


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with mlflow_calls(), mlflow_calls(120):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "120"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize("before", [1, 150, 170, 180, 184])
@pytest.mark.parametrize("user", ["me:secret", "me:secret/secret", "me:secret@secret", "secret"])
def test_a_reason_is_one_line_without_a_password(before, user):
    error = RuntimeError(f"{'x' * before} http://{user}@host:5000/api\n  after 3 tries")
    assert reason(error) == f"{'x' * before} http://host:5000/api after 3 tries"[:200]


def test_the_summary_of_a_sync_shows_no_password():
    report = SyncReport(1, 0, 0, (), "0", "postgresql://me:secret@host/mlflow", "x")
    assert "postgresql://host/mlflow" in report.summary and "secret" not in report.summary


def test_the_projector_draws_the_search_while_it_runs(tmp_path, uri, recorded, capfd):
    with recorded.new_study(tmp_path / "s") as study:
        projector = MlflowProjector(tmp_path / "s", {"uri": uri, "experiment": "live"})
        for number in range(12):
            recorded.run_trial(study, number, artifacts=True)
            projector.notify(number)
        assert projector.close(timeout=60) == ()
        assert sorted(children(uri, study, "live")) == list(range(12))
        record = read_run(projector.run_id, uri)
        assert record.study["trials"] == 12 and any("models/" in a for a in record.artifacts)
    with Study.open(tmp_path / "s") as reader:
        after = sync(reader, uri, "live")
        assert (after.created, after.updated) == (0, 0)
    printed = capfd.readouterr()
    assert printed.out == "" and "INFO" not in printed.err


def test_a_bad_address_is_refused_before_the_search(tmp_path, clean_environment):
    with pytest.raises(InputError, match="not an address of a database or a server: 'mlruns'"):
        MlflowProjector(tmp_path, {"uri": "mlruns"})


def test_a_push_between_two_pictures_writes_trials_only(tmp_path, uri, recorded):
    """What grows with the square of the trials, or takes seconds, is left to the pictures' turn."""
    with recorded.new_study(tmp_path / "s", trials=4) as study:
        mirror = Mirror(study, MlflowSettings(uri))
        parent = mirror.push(final=False).parent.run_id
        history = client(uri).get_metric_history(parent, "front_size")
        recorded.run_trial(study, 4)
        mirror.push(final=False, pictures=False)
        assert sorted(children(uri, study)) == list(range(5))
        assert client(uri).get_metric_history(parent, "front_size") == history
        mirror.push(final=False)
        steps = {m.step for m in client(uri).get_metric_history(parent, "front_size")}
        assert steps == {0, 1, 2, 4}


def test_the_projector_rests_nineteen_times_as_long_as_it_works(tmp_path, recorded, monkeypatch):
    """Pushes of 0.3 s each, and always something new: after the first one at most one in 6 s."""
    pushes = []

    def push(mirror, final, pictures):
        pushes.append(final)
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        return SimpleNamespace(parent=SimpleNamespace(run_id="0"))

    monkeypatch.setattr(Mirror, "push", push)
    with recorded.new_study(tmp_path / "s"):
        projector = MlflowProjector(
            tmp_path / "s", {"uri": "sqlite:///x.db"}, time.monotonic() - 100
        )
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            projector.notify(0)
            time.sleep(0.01)
        assert pushes.count(False) == 2
        assert projector.close() == () and pushes[2:] == [True]
    cost = projector.cost
    assert cost.wall_s > 104 and cost.share == pytest.approx(
        cost.processor_s / cost.wall_s, abs=9e-3
    )


def schema(path):
    with closing(sqlite3.connect(path)) as database:
        return set(database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def test_a_new_database_gets_the_tables_that_mlflow_made(
    empty_store, tmp_path, clean_environment, monkeypatch
):
    """The same tables, its own default experiment, nothing of the database they were taken from;
    a file that is there and a damaged copy are not touched and not used."""
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    new = tmp_path / "new.db"
    lay_tables(new)
    assert not new.exists()  # nothing is kept yet
    keep_tables(empty_store)
    (kept,) = (tmp_path / "cache").iterdir()
    with mlflow_calls():
        link = connect(f"sqlite:///{new}")
        (default,) = link.search_experiments()
        assert default.experiment_id == "0" and Path(default.artifact_location).is_absolute()
        assert link.create_run("0").info.status == "RUNNING"
    assert schema(new) == schema(empty_store)
    before = new.read_bytes()
    lay_tables(new)
    assert new.read_bytes() == before
    kept.write_bytes(kept.read_bytes()[:100_000])
    lay_tables(tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists() and not kept.exists()
    keep_tables(new)  # it holds a run
    assert not kept.exists()


def test_the_page_that_the_search_wrote_is_drawn_once(study, uri, monkeypatch):
    drawn = []
    monkeypatch.setattr("paretune.trackers.study_page.front_page", lambda *_: drawn.append(1) or "")
    (study.folder / "front.html").write_text("an older page\n")
    sync(study, uri, "first")
    (study.folder / "front.html").write_text(study_page(study))
    assert len(drawn) == 2
    report = sync(study, uri, "second")
    assert len(drawn) == 2
    client(uri).download_artifacts(report.run_id, "front.html", study.folder / "..")
    assert (study.folder / ".." / "front.html").read_text() == study_page(study)


def test_a_study_without_any_trial_can_be_drawn(tmp_path, uri, recorded):
    with recorded.new_study(tmp_path / "s"):
        pass
    with Study.open(tmp_path / "s") as study:
        assert sync(study, uri).created == 1


def test_what_a_search_ended_as_is_what_its_run_says(finished, uri, tmp_path):
    """Cut short is KILLED; its files can be pulled all the same."""
    shutil.copytree(finished, tmp_path / "s")
    for ended in ("KILLED", "FAILED", "FINISHED"):
        with Study.open(tmp_path / "s", write=True) as study:
            study.put(ENDED, ended)
        with Study.open(tmp_path / "s") as study:
            run = sync(study, uri).run_id
        assert client(uri).get_run(run).info.status == ended
        assert read_run(run, uri).status == ended


def test_code_that_only_a_run_names_is_not_run(finished, uri, tmp_path):
    """A run's job may name any code; the user says whose it is by giving his own job file."""
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\ndef make(): return None\n"
    (tmp_path / "planted.py").write_text(code)
    shutil.copytree(finished, tmp_path / "s")
    with Study.open(tmp_path / "s", write=True) as study:
        named = {"model": f"{tmp_path}/planted.py:make", "data": {"kind": "digits"}}
        study.set_job({**study.job, "task": named})
    with Study.open(tmp_path / "s") as study:
        run, goals = sync(study, uri).run_id, study.job["objectives"]
    with pytest.raises(InputError, match=r"names code that would be run here: .*planted\.py:make;"):
        pull(f"mlflow:{run}", tmp_path / "model", best="size_bytes", uri=uri)
    assert not ran.exists()
    own = tmp_path / "job.yaml"
    own.write_text("name: a\ntask: {model: own.py:make, data: {kind: digits}}\n")
    found = open_source(f"mlflow:{run}", uri, own)
    check_trusted(found)
    assert found.job["task"]["model"] == f"{tmp_path}/own.py:make"
    assert found.job["objectives"] == goals
    with pytest.raises(InputError, match="--job: a study folder has its job"):
        open_source(tmp_path / "s", job=own)
