"""Optuna itself reads the study's file."""

import optuna
import pytest
from optuna.trial import TrialState

from paretune.trackers.study import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recorded):
    folder = tmp_path_factory.mktemp("optuna") / "s"
    with recorded.new_study(folder, trials=25) as study:
        study.publish_front()
    return folder


def load(folder, name="made-up"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


def test_the_values_are_the_same(folder, recorded):
    study = load(folder)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "size_bytes", "latency_ms"]
    trials = {t.user_attrs["paretune.number"]: t for t in study.trials}
    assert sorted(trials) == list(range(25))
    for number, trial in trials.items():
        expected = recorded.evaluation(number)
        assert trial.user_attrs["paretune.plan"] == recorded.plan(number).to_json()
        assert trial.system_attrs == recorded.ask(number).system_attrs
        if expected.failed:
            assert trial.state == TrialState.FAIL
            assert trial.user_attrs["paretune.cause"] == expected.cause
        else:
            assert trial.state == TrialState.COMPLETE
            assert trial.values == [expected.values[n] for n in recorded.JOB["objectives"]]
            assert trial.duration.total_seconds() == pytest.approx(1.75, abs=1e-3)
        bits = [c.weight_bits for c in recorded.plan(number).layers.values()]
        assert trial.params["mean_weight_bits"] == pytest.approx(sum(bits) / len(bits), abs=1e-3)


def test_optuna_finds_the_same_front(folder):
    with Study.open(folder) as study:
        ours = sorted(point.number for point in study.front())
    theirs = sorted(t.user_attrs["paretune.number"] for t in load(folder).best_trials)
    assert ours == theirs


def test_the_front_is_there_once_more_with_every_choice(folder):
    with Study.open(folder) as study:
        front = {point.number: point for point in study.front()}
    trials = load(folder, "made-up-front").trials
    assert [t.user_attrs["paretune.number"] for t in trials] == sorted(front)
    for trial in trials:
        plan = front[trial.user_attrs["paretune.number"]].plan
        for name, kept in plan.groups.items():
            assert trial.params.get(f"{name} keep", kept) == kept
        assert any(name.endswith("weight_bits") for name in trial.params)


def test_opening_again_copies_nothing_twice(folder):
    for _ in range(2):
        with Study.open(folder, write=True) as study:
            study.publish_front()
    assert len(load(folder).trials) == 25
    assert len(optuna.get_all_study_names(f"sqlite:///{folder}/study.db")) == 2


def test_a_failing_copy_does_not_disturb_the_search(tmp_path, recorded, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no such table: studies")

    with recorded.new_study(tmp_path / "s") as study:
        monkeypatch.setattr(optuna.storages, "RDBStorage", broken)
        for number in range(21):
            recorded.run_trial(study, number)
        assert len(study.rows()) == 21
        assert "not copied to Optuna's tables yet" in caplog.text
        monkeypatch.undo()
    Study.open(tmp_path / "s", write=True).close()
    assert len(load(tmp_path / "s").trials) == 21
