"""Real worker processes that crash, hang, eat memory and are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paretune.errors import EnvironmentFault, InputError
from paretune.search.pool import Pool


def everything(pool, count, limit_s=40.0):
    """The results of ``count`` jobs by id; fails if they do not come."""
    found, end = {}, time.monotonic() + limit_s
    while len(found) < count:
        assert time.monotonic() < end, f"only {sorted(found)} came back"
        found |= {result.job_id: result for result in pool.collect(0.5)}
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"


def group(pid):
    """The living processes of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.fixture
def plans(fakes):
    space = fakes.ToySpace()
    return [
        space.plan({"rank:l0": i % 4, "rank:l1": i // 4 % 4, "rank:l2": i // 16}) for i in range(40)
    ]


def test_each_fault_costs_only_its_candidate(fakes, factory, plans, tmp_path):
    """One pool meets every fault; the candidates between them are measured."""
    faults = ["segv", "exit", "sys.exit", "hang", "memory", "raise", "candidate", "killed"]
    faults.append(f"killed:{tmp_path / 'once'}")
    settings = {"faults": {plans[2 * i].fingerprint: f for i, f in enumerate(faults)}}
    count = 2 * len(faults)
    with Pool(factory, settings, workers=2, deadline_s=3.0, memory_bytes=4_000_000_000) as pool:
        for number in range(count):
            pool.submit(number, plans[number], baseline=fakes.measured(plans[0]))
        results = everything(pool, count)
    for number in range(1, count, 2):
        assert results[number].evaluation == fakes.measured(plans[number])
    causes = {f: results[2 * i].evaluation.cause for i, f in enumerate(faults)}
    assert causes.pop(faults[-1]) is None  # killed once from outside: run again
    assert results[2 * len(faults) - 2].attempts == 2
    assert causes == {
        "segv": "killed by SIGSEGV",
        "exit": "the worker ended with exit code 7",
        "sys.exit": "the evaluation called sys.exit(3)",
        "hang": "exceeded its deadline of 3 s",
        "memory": "out of memory (cap 4.0 GB)",
        "raise": "ValueError: the weights cannot be factorised",
        "candidate": "layer l0: cannot be exported",
        "killed": "killed by SIGKILL 3 times",
    }
    assert "about to suffer segv" in results[0].evaluation.detail
    assert "Traceback" in results[10].evaluation.detail


def test_a_hang_leaves_no_child_and_order_is_kept(factory, plans):
    faults = {plans[0].fingerprint: "hang"}
    with Pool(factory, {"faults": faults}, deadline_s=1.5) as pool:
        pool.submit(0, plans[0])
        pool.submit(1, plans[1])
        pool.submit(2, plans[2])
        while not pool.busy:
            pool.collect(0.1)
        pid = pool._live[0].pid
        time.sleep(0.5)
        assert len(group(pid)) == 2  # the worker and its own child
        assert [r.job_id for r in (*pool.collect(5), *pool.collect(20), *pool.collect(5))] == [
            0,
            1,
            2,
        ]
        assert group(pid) == []


def test_workers_share_the_load(factory, plans):
    with Pool(factory, {"sleep_s": 0.3}, workers=2) as pool:
        while sum(worker.ready for worker in pool._live) < 2:
            pool.collect(0.1)
        begin = time.monotonic()
        for number in range(8):
            pool.submit(number, plans[number])
        assert pool.busy == 2
        assert len(everything(pool, 8)) == 8
        assert 1.2 <= time.monotonic() - begin < 2.2


def test_withdraw_takes_back_what_was_not_begun(factory, plans):
    with Pool(factory, {"sleep_s": 0.2}) as pool:
        for number in range(4):
            pool.submit(number, plans[number])
        while not pool.busy:
            pool.collect(0.05)
        assert pool.withdraw() == [1, 2, 3]
        assert list(everything(pool, 1)) == [0]


def test_an_evaluator_that_refuses_is_reported_as_it_is(factory, plans):
    pool = Pool(factory.replace(":toy", ":refused"), {}, workers=2)
    pool.submit(0, plans[0])
    with pytest.raises(InputError, match="data.train: the folder is empty; name another"):
        everything(pool, 1)
    assert pool._live == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "SIGABRT"), ("missing", "has no attribute 'missing'")],
)
def test_an_evaluator_that_cannot_load_ends_the_pool(factory, plans, name, message):
    with Pool(factory.replace(":toy", f":{name}"), {}) as pool:
        pool.submit(0, plans[0])
        with pytest.raises(EnvironmentFault, match=message):
            everything(pool, 1)


@pytest.mark.parametrize("fault", ["disk", "write"])
def test_a_full_disk_ends_the_pool(factory, plans, fault):
    with Pool(factory, {"faults": {plans[0].fingerprint: fault}}) as pool:
        pool.submit(0, plans[0])
        with pytest.raises(EnvironmentFault, match=r"(?i)no space left"):
            everything(pool, 1)


def test_values_that_are_not_finite_are_a_failed_candidate(factory, plans):
    with Pool(factory.replace(":toy", ":nan"), {}) as pool:
        pool.submit(0, plans[0])
        assert "cannot be sent" in everything(pool, 1)[0].evaluation.cause


DRIVER = """
import sys, time
from paretune.search.pool import Pool
from paretune.spaces.plan import CompressionPlan
if __name__ == "__main__":
    plan = CompressionPlan.from_json({plan})
    settings = {{"faults": {{plan.fingerprint: {fault!r}}}, "sleep_s": {sleep_s}}}
    pool = Pool({factory!r}, settings, workers=2)
    pool.submit(0, plan)
    while not pool.busy:
        pool.collect(0.05)
    time.sleep(0.5)
    print(*[worker.pid for worker in pool._live], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("fault", ["hang", "none"])
def test_workers_die_with_a_killed_driver(factory, plans, fault, tmp_path):
    """Also a worker that hangs in C code with a child of its own."""
    settings = {"fault": fault, "sleep_s": 0 if fault == "hang" else 30}
    code = DRIVER.format(plan=plans[0].to_json(), factory=factory, **settings)
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in driver.stdout.readline().split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    assert any(len(group(pid)) == 2 for pid in pids) == (fault == "hang")
    driver.kill()
    driver.wait()
    driver.stdout.close()
    end = time.monotonic() + 5
    while any(group(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_worker_cannot_hang_the_driver(factory, plans):
    with Pool(factory, {"sleep_s": 0.5}, deadline_s=1.0) as pool:
        pool.submit(0, plans[0])
        while not pool.busy:
            pool.collect(0.05)
        os.kill(pool._live[0].pid, signal.SIGSTOP)
        assert everything(pool, 1)[0].evaluation.cause == "exceeded its deadline of 1 s"


def test_what_is_asked_is_plain_json(factory, plans):
    """Nothing but JSON lines crosses the socket."""
    with Pool(factory, {}) as pool:
        seen = []
        send = pool._live[0].channel.send
        pool._live[0].channel.send = lambda message, *a: (
            seen.append(json.dumps(message)),
            send(message),
        )
        pool.submit(0, plans[0])
        everything(pool, 1)
        assert json.loads(seen[0])["plan"] == plans[0].to_json()


def test_what_arrived_before_a_full_disk_is_handed_over(fakes, factory, plans):
    """A result that waits to be collected is not lost with the pool."""
    with Pool(factory, {"faults": {plans[1].fingerprint: "disk"}}) as pool:
        pool.submit(0, plans[0])
        pool.submit(1, plans[1])
        end = time.monotonic() + 30
        while pool._fatal is None and time.monotonic() < end:
            pool._turn(0.1)
        assert [result.evaluation for result in pool.collect(5.0)] == [fakes.measured(plans[0])]
        with pytest.raises(EnvironmentFault, match="no space left"):
            pool.collect(5.0)
