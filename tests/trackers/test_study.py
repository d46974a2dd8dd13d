import math
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretune.errors import EnvironmentFault, InputError
from paretune.objectives.evaluation import Evaluation
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.tasks.yaml_source import read_yaml
from paretune.trackers.job_copy import write_job
from paretune.trackers.study import BASELINE, Ask, Study

pytestmark = pytest.mark.usefixtures("without_optuna")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.text(min_size=1, max_size=12)
plans = st.builds(
    CompressionPlan,
    st.dictionaries(names, st.integers(1, 4096), max_size=4),
    st.dictionaries(
        names,
        st.builds(LayerChoice, st.sampled_from([32, 8, 4]), st.sampled_from([32, 8]))
        | st.builds(
            LayerChoice,
            st.just(8),
            st.just(8),
            st.just("tucker2"),
            st.tuples(st.integers(1, 99), st.integers(1, 99)),
        ),
        max_size=4,
    ),
)


def test_everything_reads_back_as_it_was_written(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s", trials=12) as study:
        study.begin(recorded.ask(12), "worker-1")
        study.put("speed_states", {"fast": 0.65})
        identity = study.id
    with Study.open(tmp_path / "s") as study:
        assert study.id == identity and len(identity) == 32 and study.name == "made-up"
        assert study.job == recorded.JOB
        assert study.objectives == recorded.objectives()
        assert study.asks() == [recorded.ask(n) for n in range(13)]
        assert [r.number for r in study.rows()] == list(range(12))
        assert [r.evaluation for r in study.rows("measure")] == [
            recorded.evaluation(n) for n in range(12)
        ]
        assert study.in_flight() == [12]
        assert study.baseline == recorded.baseline()
        assert study.baseline_at("confirm") is None
        assert study.get("speed_states") == {"fast": 0.65} and study.get("nothing", 7) == 7
        assert study.entries() == {"speed_states": {"fast": 0.65}}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=plans,
    params=st.dictionaries(names, st.integers(0, 99), max_size=4),
    notes=st.dictionaries(names, json_values, max_size=3),
    numbers=st.dictionaries(names, st.floats(-1e12, 1e12), max_size=4),
)
def test_any_plan_and_values_read_back_equal(
    tmp_path_factory, recorded, plan, params, notes, numbers
):
    folder = tmp_path_factory.mktemp("any") / "s"
    asked = Ask(0, plan, params, notes, notes, (notes,), None)
    result = Evaluation(plan, "measure", numbers, numbers, notes=notes)
    with Study.create(folder, {}, name="x", objectives=recorded.objectives()) as study:
        study.begin(asked, "w")
        study.finish(0, result)
        study.put("notes", notes)
    with Study.open(folder) as study:
        assert study.asks() == [asked]
        assert study.rows()[0].evaluation == result
        assert study.get("notes") == notes


def test_rows_are_ordered_by_number_and_history_by_time(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s") as study:
        for number in (0, 1, 2):
            study.begin(recorded.ask(number), "w")
        for number in (2, 0, 1):
            study.finish(number, recorded.evaluation(number))
        assert [r.number for r in study.rows()] == [0, 1, 2]
        assert [r.number for r in study.history()] == [2, 0, 1]


def test_a_result_is_taken_once(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s", trials=2) as study:
        with pytest.raises(InputError, match="trial 1: has a result already"):
            study.finish(1, recorded.evaluation(1))
        with pytest.raises(InputError, match="never asked"):
            study.finish(7, recorded.evaluation(7))
        with pytest.raises(InputError, match="has its result already"):
            study.begin(recorded.ask(1), "w")
        study.begin(recorded.ask(2), "w")
        with pytest.raises(InputError, match="another plan"):
            study.finish(2, recorded.evaluation(5))
        with pytest.raises(InputError, match="ends no trial"):
            study.finish(2, recorded.evaluation(2, "confirm"))
        study.add(0, recorded.evaluation(0, "confirm"))
        with pytest.raises(InputError, match="has a result at 'confirm' already"):
            study.add(0, recorded.evaluation(0, "confirm"))
        with pytest.raises(InputError, match="finish it first"):
            study.add(2, recorded.evaluation(2, "confirm"))
        with pytest.raises(InputError, match="has a result at 'measure' already"):
            study.add(BASELINE, recorded.baseline())
        assert [(r.number, r.evaluation.rung) for r in study.rows()] == [
            (0, "measure"),
            (0, "confirm"),
            (1, "measure"),
        ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, "3", True, None])
def test_values_that_are_no_finite_numbers_are_not_recorded(tmp_path, recorded, value):
    with recorded.new_study(tmp_path / "s") as study:
        study.begin(recorded.ask(0), "w")
        with pytest.raises(InputError):
            study.finish(0, Evaluation(recorded.plan(0), "measure", {"accuracy": value}))
        assert study.rows() == [] and study.in_flight() == [0]


def test_attempts_are_counted_and_keep_their_plan(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s") as study:
        assert study.attempts(0) == 0
        study.begin(recorded.ask(0), "worker-0")
        study.begin(recorded.ask(0), "worker-1")
        assert study.attempts(0) == 2 and len(study.asks()) == 1
        other = Ask(0, recorded.plan(1), {}, {}, {})
        with pytest.raises(InputError, match="another plan"):
            study.begin(other, "worker-0")
        assert study.attempts(0) == 2


def test_a_recovered_point_knows_its_parent(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s", trials=1) as study:
        study.begin(recorded.ask(1, parent=0), "w")
        study.finish(1, recorded.evaluation(1, "recover", of=recorded.plan(0)))
        assert [(r.number, r.parent) for r in study.rows("recover")] == [(1, 0)]
        assert study.front()[1].parent == 0


def test_the_front_shows_confirmed_values_beside_the_confirmed_baseline(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s", trials=10) as study:
        before = study.front()
        assert before.baseline == recorded.baseline()
        study.add(BASELINE, recorded.baseline("confirm"))
        numbers = [point.number for point in before]
        study.add(numbers[0], recorded.evaluation(numbers[0], "confirm"))
        assert study.front().baseline == recorded.baseline()  # not all are confirmed yet
        for number in numbers[1:]:
            study.add(number, recorded.evaluation(number, "confirm"))
        after = study.front()
        assert after.baseline == recorded.baseline("confirm")
        assert {point.rung for point in after} == {"confirm"}
        assert study.measured_front().baseline == recorded.baseline()


def test_a_reader_sees_each_result_while_the_driver_writes(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s") as study, Study.open(tmp_path / "s") as reader:
        for number in range(5):
            recorded.run_trial(study, number)
            assert [r.number for r in reader.rows()] == list(range(number + 1))
        with pytest.raises(InputError, match="open for reading"):
            reader.put("x", 1)


def test_threads_of_the_driver_may_write_at_the_same_time(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s") as study:
        work = [
            threading.Thread(
                target=lambda part: [recorded.run_trial(study, n) for n in range(part, 20, 4)],
                args=(part,),
            )
            for part in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert [r.number for r in study.rows()] == list(range(20))


def test_only_its_owner_can_read_the_database(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s", trials=1):
        files = list((tmp_path / "s").glob("study.db*"))
        assert len(files) == 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_every_commit_reaches_the_disk(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s") as study:
        names = ("journal_mode", "synchronous", "busy_timeout")

        def settings(connection):
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

        assert study._tables.write(settings) == ["wal", 2, 60_000]


def test_a_folder_with_other_files_or_a_study_is_refused(tmp_path, recorded):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files \('thesis.tex'\)"):
        recorded.new_study(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    recorded.new_study(tmp_path / "s").close()
    with pytest.raises(InputError, match="holds a study already"):
        recorded.new_study(tmp_path / "s")
    with pytest.raises(InputError, match="cannot be used as a folder"):
        recorded.new_study(tmp_path / "thesis.tex")


def test_a_creation_that_was_killed_half_way_can_be_repeated(tmp_path, recorded):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "study.lock").write_text("{}")
    (folder / "study.db.new").write_bytes(b"half")
    (folder / "job.yaml").write_text("name: x")
    recorded.new_study(folder, trials=1).close()
    assert not (folder / "study.db.new").exists()


@pytest.mark.parametrize("write", [False, True])
def test_what_is_no_study_is_refused(tmp_path, write):
    with pytest.raises(InputError, match="holds no study"):
        Study.open(tmp_path, write=write)
    with pytest.raises(InputError, match="holds no study"):
        Study.open(tmp_path / "absent", write=write)
    sqlite3.connect(tmp_path / "study.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(InputError, match="not a study's database"):
        Study.open(tmp_path, write=write)
    (tmp_path / "study.db").write_text("not a database at all, but long enough to be read\n" * 99)
    with pytest.raises(EnvironmentFault, match="damaged"):
        Study.open(tmp_path, write=write)


def test_a_database_of_another_version_is_refused(tmp_path, recorded):
    recorded.new_study(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s" / "study.db") as connection:
        connection.execute("UPDATE paretune_meta SET value = '99' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(InputError, match="layout 99"):
        Study.open(tmp_path / "s", write=True)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("damage", ["flipped page", "cut"])
def test_a_damaged_database_is_refused_and_left_as_it_is(tmp_path, recorded, damage, write):
    recorded.new_study(tmp_path / "s", trials=40).close()
    path = tmp_path / "s" / "study.db"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[8192:12288] = bytes(byte ^ 0xFF for byte in data[8192:12288])
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault, match="damaged .* was left as it is; restore"):
        Study.open(tmp_path / "s", write=write)
    assert path.read_bytes() == data
    with pytest.raises(EnvironmentFault):  # and the lock was let go
        Study.open(tmp_path / "s", write=True)


def test_what_makes_it_another_job(tmp_path, recorded):
    with recorded.new_study(tmp_path / "s") as study:
        same = {**recorded.JOB, "search": {**recorded.JOB["search"], "trials": 500, "workers": 4}}
        assert study.changed(same) == []
        other = {
            **same,
            "constraints": ("accuracy >= 0.9",),
            "target": {"name": "x"},
            "search": {"seed": 1, "sampler": "nsga2"},
        }
        assert study.changed(other) == ["constraints", "target", "search.seed"]
        study.set_job(same)
    with Study.open(tmp_path / "s") as study:
        assert study.job == same
    assert "trials: 500" in (tmp_path / "s" / "job.yaml").read_text()


def test_the_copy_of_a_job_is_one_that_is_read_back(tmp_path: Path) -> None:
    job = {"name": "1e5", "task": {"model_args": {"a": "010", "b": [1, "~", 1e-5]}}}
    write_job(tmp_path, job)
    assert read_yaml(tmp_path / "job.yaml")[0] == job
