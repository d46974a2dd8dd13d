"""From a job to a study with its front: checks first, resumes, refusals."""

import signal
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from paretune.errors import InputError
from paretune.objectives.objective import Objective
from paretune.search import run as module
from paretune.search.run import Search
from paretune.trackers.mlflow_mirror import ENDED
from paretune.trackers.mlflow_tracker import sync
from paretune.trackers.study import Study

JOB = {
    "name": "toy digits",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 16},
        "data": {"kind": "digits"},
    },
    "objectives": ["accuracy", "size_bytes", "latency_ms"],
    "search": {"trials": 12, "workers": 2, "seed": 3, "sampler": "nsga2"},
}


@pytest.fixture
def toy(fakes, factory, monkeypatch):
    """The toy space and evaluator in place of the job's."""
    objectives = [Objective(name, {}) for name in JOB["objectives"]]
    problem = SimpleNamespace(
        space=fakes.ToySpace(),
        objectives=objectives,
        constraints=[],
        task=SimpleNamespace(fingerprint="first"),
    )
    monkeypatch.setattr(module, "Problem", SimpleNamespace(from_job=lambda job: problem))
    monkeypatch.setattr(module, "FACTORY", factory)
    return problem


def changed(**sections):
    return {**JOB, **sections}


@pytest.mark.parametrize(
    ("job", "options", "message"),
    [
        (JOB, {"sampler": "nsag2"}, "unknown sampler 'nsag2'; did you mean 'nsga2'"),
        (JOB, {"trials": 0}, "--trials: 0 must be at least 1"),
        (JOB, {"workers": "2"}, "--workers: expected a whole number, got '2'"),
        (changed(objectives=["accuracy", "latency"]), {}, "unknown objective 'latency'"),
        (changed(constraints=["accuracy >= 2"]), {}, "share between 0 and 1"),
        (changed(target={"name": "onnxruntim-cpu"}), {}, "did you mean 'onnxruntime-cpu'"),
        (changed(tracker={"mlflow": {"uri": "mlruns"}}), {}, "not an address of a database"),
    ],
)
def test_bad_input_is_refused_before_any_work(job, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Search(job, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_default_folder():
    assert str(Search(JOB).folder) == "studies/toy-digits"


def test_run_and_go_on(toy, tmp_path, capsys):
    """A search, the same again, a larger budget: exactly what is asked, nothing twice."""
    with Search(JOB, tmp_path / "s").run("plain") as study:
        assert len(study.rows("measure")) == 12
        plans = [row.evaluation.plan.fingerprint for row in study.rows("measure")]
        table = pd.read_csv(tmp_path / "s" / "front.csv")
        assert sorted(table["number"]) == sorted(point.number for point in study.front())
    assert "plotly" in (tmp_path / "s" / "front.html").read_text().lower()
    assert "space: 4,096 plans in 6 parameters" in capsys.readouterr().err
    with Search(JOB, tmp_path / "s", trials=16, workers=1).run("quiet") as study:
        rows = study.rows("measure")
        assert [row.number for row in rows] == list(range(16))
        assert [row.evaluation.plan.fingerprint for row in rows][:12] == plans
        assert study.job["search"]["trials"] == 16
        assert (study.get("window"), study.get("population")) == (4, 8)


def test_a_resume_in_steps_equals_one_run(toy, tmp_path):
    job = changed(search={**JOB["search"], "population": 8})
    for trials in (5, 9, 14):
        Search(job, tmp_path / "steps", trials=trials).run("quiet").close()
    with Search(job, tmp_path / "one", trials=14).run("quiet") as one:
        numbers = [(row.number, row.evaluation.plan.fingerprint) for row in one.rows("measure")]
    with Study.open(tmp_path / "steps") as steps:
        again = [(row.number, row.evaluation.plan.fingerprint) for row in steps.rows("measure")]
    assert again == numbers


def test_another_job_is_refused_naming_the_keys(toy, tmp_path):
    Search(JOB, tmp_path / "s", trials=4).run("quiet").close()
    other = changed(objectives=["accuracy", "size_bytes"], search={"seed": 4, "sampler": "nsga2"})
    with pytest.raises(InputError, match="holds a search of another job: objectives, search.seed"):
        Search(other, tmp_path / "s").run("quiet")
    with Study.open(tmp_path / "s") as study:
        assert study.job["search"]["seed"] == 3


def test_other_weights_or_data_are_refused(toy, tmp_path):
    Search(JOB, tmp_path / "s", trials=2).run("quiet").close()
    toy.task.fingerprint = "second"
    with pytest.raises(InputError, match="no longer those that the search began with"):
        Search(JOB, tmp_path / "s", trials=4).run("quiet")
    with Study.open(tmp_path / "s") as study:
        assert len(study.rows("measure")) == 2


def test_a_study_without_any_result_may_be_replaced(toy, tmp_path, fakes):
    """A job that failed at its baseline can be corrected and run in the same folder."""
    failing = {toy.space.identity.fingerprint: "candidate"}
    with pytest.MonkeyPatch.context() as patch:
        make = module.Pool
        patch.setattr(
            module, "Pool", lambda factory, settings, *a: make(factory, {"faults": failing}, *a)
        )
        with pytest.raises(InputError, match="baseline: .*layer l0: cannot be exported"):
            Search(JOB, tmp_path / "s").run("quiet")
    corrected = changed(search={"seed": 9, "trials": 4, "sampler": "nsga2"})
    with Search(corrected, tmp_path / "s").run("quiet") as study:
        assert len(study.rows("measure")) == 4


def test_guided_is_the_default_and_says_when_it_cannot_be(toy, tmp_path, capsys):
    """The toy has no network: nothing can be screened, so another sampler does the search."""
    job = changed(search={"trials": 4, "workers": 6})
    with Search(job, tmp_path / "s").run("plain") as study:
        assert study.job["search"]["sampler"] == "guided"
        assert len(study.rows("measure")) == 4
    said = capsys.readouterr().err
    assert "no sensitivity table can be had" in said and "nsga2 is used instead" in said
    assert "6 workers for 4 trials: 4 are started" in said
    with Search(job, tmp_path / "s", trials=6).run("quiet") as study:  # goes on as it began
        assert len(study.rows("measure")) == 6


def test_what_is_prepared_takes_its_part_of_the_time(toy, tmp_path, monkeypatch):
    """A sensitivity pass of minutes must not make ``--timeout`` longer by minutes."""
    budgets, make, budget = [], module.make_proposer, module.Budget
    monkeypatch.setattr(module, "make_proposer", lambda *a: time.sleep(0.5) or make(*a))
    monkeypatch.setattr(module, "Budget", lambda *a: budgets.append(budget(*a)) or budgets[-1])
    Search(JOB, tmp_path / "s", trials=4, timeout=1.0).run("quiet").close()
    assert 50 < budgets[0].timeout_s <= 59.5


@pytest.mark.slow
def test_a_real_guided_search_on_digits(tmp_path):
    """Random weights: sensitivity, screens in the workers, trials exact, and an exact resume."""
    section = {"workers": 2, "seed": 3, "screen": 3}
    job = changed(search=section, objectives=["accuracy", "size_bytes"])
    plans = []
    for folder, budgets in (("one", [6]), ("two", [3, 6])):
        for trials in budgets:
            with Search(job, tmp_path / folder, trials=trials).run("quiet") as study:
                assert len(study.rows("measure")) == trials
                screened = study.screened()  # a turn may find fewer new plans than it may screen
                assert trials <= len(screened) <= 3 * (3 + trials)
                assert len({(s.turn, s.place) for s in screened}) == len(screened)
                rows = study.rows("measure")
        plans.append([row.evaluation.plan.fingerprint for row in rows])
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_a_real_search_on_digits_with_mlflow(tmp_path):
    """Random weights: the mechanics only."""
    mlflow = {"mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    with Search(changed(tracker=mlflow), tmp_path / "s", trials=5).run("quiet") as study:
        assert len(study.rows("measure")) == 5
        assert all(point.rung == "confirm" for point in study.front())
        for point in study.front():
            assert study.artifact_path(point.evaluation.artifact).is_file()
    assert (tmp_path / "mlflow.db").stat().st_size > 0


class _Stop:
    """Presses Ctrl-C in the middle of a search."""

    def on_event(self, event):
        if event.number == 3:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_search_is_killed_in_mlflow_and_a_whole_one_finished(toy, tmp_path, capsys):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    job = changed(tracker={"mlflow": {"uri": uri}})
    with pytest.raises(KeyboardInterrupt):
        Search(job, tmp_path / "s").run("quiet", [_Stop()])
    with Study.open(tmp_path / "s") as study:
        assert study.get(ENDED) == "KILLED"
        run = sync(study, uri, "toy digits").run_id  # the search waits for MLflow 5 s only
    assert MlflowClient(uri).get_run(run).info.status == "KILLED"
    capsys.readouterr()
    Search(job, tmp_path / "s").run("quiet").close()
    assert MlflowClient(uri).get_run(run).info.status == "FINISHED"
    said = capsys.readouterr().err
    assert f"MLflow run {run} at {uri}; logging took at most " in said
