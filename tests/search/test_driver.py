"""The loop over a real study and real workers: budgets, faults, kills, resumes."""

import random
import signal
import time

import pytest

from paretune.errors import AllFailedError, EnvironmentFault, InputError
from paretune.trackers.study import BASELINE, Study


def test_a_whole_search(bench, drive, fakes, tmp_path):
    """Exactly the budget; baseline first; every front point confirmed beside its baseline."""
    events = []

    class Watch:
        def on_event(self, event):
            events.append(event)

    pool = bench.InProcess(fakes, folder=tmp_path)
    assert drive(tmp_path, 30, pool=lambda: pool, listeners=[Watch()]) == "the budget is spent"
    plans, rungs = bench.record(tmp_path)
    assert sorted(plans) == list(range(30)) and max(rungs.values()) == 1
    assert len(set(plans.values())) == 30
    assert pool.seen[0] == (BASELINE, "measure", None, None)
    assert [e.kind for e in events][0] == "baseline"
    assert [e.kind for e in events].count("trial") == 30
    assert events[-1].kind == "ended" and events[-1].progress.done == 30
    with Study.open(tmp_path) as study:
        front = study.front()
        assert len(front) >= 3 and all(point.rung == "confirm" for point in front)
        confirmed = {n: (b, a) for n, rung, b, a in pool.seen if rung == "confirm"}
        assert confirmed.pop(BASELINE)[0] is None
        assert set(confirmed) == {point.number for point in front}
        for point in front:
            assert confirmed[point.number][0] == study.baseline_at("confirm")
            assert confirmed[point.number][1] == point.evaluation.artifact
        kept = {path.name for path in (tmp_path / "artifacts").iterdir()}
        wanted = {p.evaluation.artifact.file_name for p in front}
        assert kept == wanted | {study.baseline.artifact.file_name}


def test_files_off_the_front_go_while_searching(bench, drive, fakes, tmp_path):
    most = []

    class Watch:
        def on_event(self, event):
            if event.kind == "trial":
                most.append(len(list((tmp_path / "artifacts").iterdir())))

    pool = bench.InProcess(fakes, folder=tmp_path)
    drive(tmp_path, 30, pool=lambda: pool, listeners=[Watch()])
    assert max(most) < 25


@pytest.mark.parametrize("sampler", ["nsga2", "random"])
def test_completion_order_and_interruption_change_nothing(bench, drive, fakes, tmp_path, sampler):
    whole = tmp_path / "whole"
    drive(whole, 16, sampler=sampler, pool=lambda: bench.InProcess(fakes))
    draw, broken = random.Random(3), tmp_path / "broken"
    for _ in range(100):
        stop_at = draw.randrange(1, 6)
        pool = bench.InProcess(fakes, lambda count: draw.randrange(count))
        pool.fail = lambda *_, pool=pool, at=stop_at: "disk" if len(pool.seen) > at else None
        try:
            drive(broken, 16, sampler=sampler, pool=lambda pool=pool: pool)
            break
        except EnvironmentFault:
            continue
    assert bench.record(broken) == bench.record(whole)


def test_in_flight_plans_are_run_first_on_resume(bench, drive, fakes, tmp_path):
    pool = bench.InProcess(fakes, fail=lambda job_id, rung: "disk" if job_id == 5 else None)
    with pytest.raises(EnvironmentFault):
        drive(tmp_path, 20, pool=lambda: pool)
    with Study.open(tmp_path) as study:
        waiting = study.in_flight()
        asked = {ask.number: ask.plan.fingerprint for ask in study.asks()}
    assert 5 in waiting
    again = bench.InProcess(fakes)
    drive(tmp_path, 20, pool=lambda: again)
    assert [job_id for job_id, rung, *_ in again.seen][: len(waiting)] == waiting
    plans, rungs = bench.record(tmp_path)
    assert sorted(plans) == list(range(20)) and max(rungs.values()) == 1
    assert all(plans[number] == asked[number] for number in asked)


def test_a_finished_search_starts_no_worker(bench, drive, fakes, tmp_path):
    drive(tmp_path, 12, pool=lambda: bench.InProcess(fakes))
    assert drive(tmp_path, 12, pool=lambda: pytest.fail("workers started")) == "the budget is spent"
    drive(tmp_path, 15, pool=lambda: bench.InProcess(fakes))
    assert len(bench.record(tmp_path)[0]) == 15


def test_everything_fails(bench, drive, fakes, tmp_path):
    def fail(job_id, rung):
        return None if job_id == BASELINE else ["cannot export", "no such kernel"][job_id % 3 == 0]

    with pytest.raises(AllFailedError) as caught:
        drive(tmp_path, 100, pool=lambda: bench.InProcess(fakes, fail=fail))
    assert "all of 20 candidates failed: 13 x cannot export; 7 x no such kernel" in str(
        caught.value
    )
    with pytest.raises(AllFailedError, match="all of 5"):
        drive(tmp_path / "few", 5, pool=lambda: bench.InProcess(fakes, fail=fail))


def test_some_failures_count_and_end_nothing(bench, drive, fakes, tmp_path):
    pool = bench.InProcess(fakes, fail=lambda job_id, rung: "no" if job_id % 2 else None)
    pool.fail = lambda job_id, rung: "no" if job_id >= 0 and job_id % 2 else None
    drive(tmp_path, 30, pool=lambda: pool)
    plans, _ = bench.record(tmp_path)
    assert len(plans) == 30
    with Study.open(tmp_path) as study:
        assert sum(row.evaluation.failed for row in study.rows("measure")) == 15


def test_a_baseline_that_fails_is_bad_input(bench, drive, fakes, tmp_path):
    pool = bench.InProcess(fakes, fail=lambda *_: "Einsum cannot be exported")
    with pytest.raises(InputError, match="baseline: .*Einsum cannot be exported"):
        drive(tmp_path, 5, pool=lambda: pool)


def test_an_exhausted_space_ends_the_search(bench, drive, fakes, tmp_path):
    reason = drive(tmp_path, 500, layers=2, pool=lambda: bench.InProcess(fakes))
    assert reason == "every plan of the space has been tried: 15 of them"
    assert len(bench.record(tmp_path)[0]) == 15


def test_ctrl_c_is_noticed_between_steps(bench, drive, fakes, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    pool = bench.InProcess(fakes, fail=lambda job_id, rung: "interrupt" if job_id == 7 else None)
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        drive(tmp_path, 20, pool=lambda: pool)
    assert signal.getsignal(signal.SIGINT) is before
    drive(tmp_path, 20, pool=lambda: bench.InProcess(fakes))
    assert len(bench.record(tmp_path)[0]) == 20


def test_timeout_with_real_workers(bench, drive, tmp_path, fakes):
    """Nothing new is begun, what runs may finish, the rest stays in flight and is resumed."""
    begun = time.monotonic()  # sixteen wait: four seconds of work, which no stall hides
    reason = drive(tmp_path, 1000, timeout_s=2.0, sleep_s=0.5, width=16)
    assert reason == "the time is up" and time.monotonic() - begun < 15
    with Study.open(tmp_path) as study:
        done, waiting = len(study.rows("measure")), len(study.in_flight())
    assert 2 <= done < 40 and 1 <= waiting <= 16
    drive(tmp_path, done + 16)
    assert sorted(bench.record(tmp_path)[0]) == list(range(done + 16))


def test_a_hang_does_not_outlive_the_timeout(drive, tmp_path, fakes):
    space = fakes.ToySpace()
    hang = {space.plan(space.presets()[0]).fingerprint: "hang"}
    begun = time.monotonic()
    drive(tmp_path, 1000, timeout_s=1.0, grace_s=0.5, deadline_s=100, faults=hang, sleep_s=0.05)
    assert time.monotonic() - begun < 12
    with Study.open(tmp_path) as study:
        assert 0 in study.in_flight()


def test_a_second_driver_is_refused(bench, drive, fakes, tmp_path):
    drive(tmp_path, 3, pool=lambda: bench.InProcess(fakes))
    with (
        Study.open(tmp_path, write=True),
        pytest.raises(InputError, match="another search holds it"),
    ):
        drive(tmp_path, 5, pool=lambda: bench.InProcess(fakes))


@pytest.mark.slow
def test_cost_per_trial(bench, drive, fakes, tmp_path):
    """Ask, tell and storage for 60 parameters and 200 trials."""
    cpu, wall = time.process_time(), time.monotonic()
    drive(tmp_path, 200, layers=60, pool=lambda: bench.InProcess(fakes))
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    print(f"driver: {1000 * cpu / 200:.1f} ms CPU, {1000 * wall / 200:.1f} ms wall a trial")
    assert cpu / 200 < 0.15
