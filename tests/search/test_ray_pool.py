"""Plans as trials of Ray Tune on a real cluster: what goes wrong costs one candidate only."""

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from paretune.errors import EnvironmentFault, InputError


@pytest.fixture(scope="module")
def cluster():
    import logging

    import ray
    from ray_cluster import RayCluster

    with RayCluster(dashboard=True).running(cpus=3) as made:
        for attempt in range(8):  # the port is open before the node has joined
            try:
                ray.init(
                    address=made.address,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                )
                break
            except ConnectionError:
                assert attempt < 7
                time.sleep(3)
        yield made
        ray.shutdown()


@pytest.fixture
def plans(fakes):
    space = fakes.ToySpace()
    return [space.plan({"rank:l0": i % 4, "rank:l1": i // 4}) for i in range(16)]


def everything(pool, count, limit_s=120.0):
    found, end = {}, time.monotonic() + limit_s
    while len(found) < count:
        assert time.monotonic() < end, f"only {sorted(found)} came back"
        found |= {result.job_id: result for result in pool.collect(0.5)}
    return found


def actors():
    """The process ids of the living trial actors."""
    from ray.util.state import list_actors

    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return {actor.pid for actor in alive if "Trainable" in actor.class_name}


@pytest.mark.slow
def test_trials_on_a_cluster(cluster, fakes, factory, plans, tmp_path):
    """One cluster: faults of candidates, an actor killed, idle actors kept, nothing left over."""
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site

    log = tmp_path / "log"
    names = ("segv", "hang", "raise", "exit", "memory")
    faults = dict(zip(names, plans[1::2], strict=False))
    settings = {
        "faults": {plan.fingerprint: fault for fault, plan in faults.items()},
        "log": str(log),
    }
    site = Site(factory, settings, 3.0, 4_000_000_000)
    with RayPool(site, 2, {"CPU": 1}) as pool:
        for number in range(10):
            pool.submit(number, plans[number], baseline=fakes.measured(plans[0]))
        results = everything(pool, 10)
        causes = {f: results[plans.index(plan)].evaluation.cause for f, plan in faults.items()}
        assert causes == {
            "segv": "killed by SIGSEGV",
            "hang": "exceeded its deadline of 3 s",
            "raise": "ValueError: the weights cannot be factorised",
            "exit": "the worker ended with exit code 7",
            "memory": "out of memory (cap 4.0 GB)",
        }
        for number in range(0, 10, 2):
            assert results[number].evaluation == fakes.measured(plans[number])
        before = actors()
        assert len(before) == 2
        time.sleep(1.5)  # nothing to do: both stay, with what they loaded
        pool.submit("screened", plans[10], "screen", first=True)
        pool.submit("measured", plans[11])
        results = everything(pool, 2)
        assert results["screened"].evaluation.rung == "screen"
        assert actors() == before
    end = time.monotonic() + 20
    while actors() and time.monotonic() < end:
        time.sleep(0.2)
    assert actors() == set()


@pytest.mark.slow
def test_a_killed_actor_costs_one_more_attempt(cluster, fakes, factory, plans, tmp_path):
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site

    log = tmp_path / "log"
    site = Site(factory, {"sleep_s": 3.0, "log": str(log)}, 60.0, 4_000_000_000)
    with RayPool(site, 1, {"CPU": 1}) as pool:
        pool.submit(0, plans[0])
        while not log.exists():
            pool.collect(0.2)
        (pid,) = actors()
        child = int(log.read_text().split()[-1])
        os.kill(pid, signal.SIGKILL)
        results = everything(pool, 1)
        assert results[0].evaluation == fakes.measured(plans[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            assert state == "Z", "the process outlived its actor"
    assert Counter(line.split()[1] for line in log.read_text().splitlines()) == {
        plans[0].fingerprint: 2
    }


@pytest.mark.slow
def test_what_makes_going_on_pointless_is_raised(cluster, factory, plans):
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site

    refused = Site(factory.replace(":toy", ":refused"), {}, 20.0)
    with (
        RayPool(refused, 1, {"CPU": 1}) as pool,
        pytest.raises(InputError, match="data.train: the folder is empty; name another"),
    ):
        pool.submit(0, plans[0])
        everything(pool, 1)
    full = Site(factory, {"faults": {plans[0].fingerprint: "disk"}}, 20.0)
    with (
        RayPool(full, 1, {"CPU": 1}) as pool,
        pytest.raises(EnvironmentFault, match="no space left"),
    ):
        pool.submit(0, plans[0])
        everything(pool, 1)


@pytest.mark.slow
def test_a_search_is_the_same_on_ray_as_locally(cluster, bench, drive, factory, tmp_path):
    """The same seed, window and recorded values give the same plans in the same order."""
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site

    site = Site(factory, {}, 20.0, 4_000_000_000)
    drive(tmp_path / "local", 12)
    drive(tmp_path / "ray", 12, pool=lambda: RayPool(site, 2, {"CPU": 1}))
    assert bench.record(tmp_path / "local") == bench.record(tmp_path / "ray")


@pytest.mark.slow
def test_resources_that_no_node_has_are_refused_at_once(cluster):
    from paretune.search.ray_connection import check_resources

    with pytest.raises(InputError) as caught:
        check_resources("cluster.resources", {"CPU": 1, "GPU": 2}, lambda key: f"job.yaml:9: {key}")
    assert str(caught.value) == (
        "job.yaml:9: cluster.resources.gpu: 2 GPU asked for, no node of the cluster has more than 0"
    )


@pytest.mark.slow
def test_another_version_of_ray_is_refused_without_joining(cluster, monkeypatch):
    import ray

    from paretune.search.ray_connection import look

    (node,) = look(cluster.address)
    assert node["CPU"] == 3
    theirs = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.9.3")
    with pytest.raises(InputError, match=f"the cluster runs {theirs}, this is 2.9.3; pip install"):
        look(cluster.address)


@pytest.mark.slow
def test_workers_share_a_gpu_and_the_device_is_elsewhere(cluster, factory, plans, tmp_path):
    """Accuracy where GPUs are, four workers on one of them; latency on the node with the board.
    Ray is told of both; neither is touched."""
    import ray
    from ray_cluster import descendants

    from paretune.search.ray_device import Reservation, start_device
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site
    from paretune.tasks.job import load_job

    fast = cluster.start_node(0, "--num-gpus=1")
    board = cluster.start_node(0, '--resources={"edge-board": 1}')
    log, reservation = tmp_path / "log", Reservation({"edge-board": 1})
    job = {"name": "board", "task": {"model": "torch.nn:Identity", "data": {"kind": "digits"}}}
    device = start_device("paretune-board-test", load_job(job).to_json(), reservation)
    assert ray.get(device.ready.remote(), timeout=120)
    (process,) = [pid for pid in descendants(board.pid) if is_device(pid)]
    site = Site(factory, {"sleep_s": 20.0, "log": str(log)}, 60.0)
    with RayPool(site, 4, {"GPU": 0.25}, device=reservation) as pool:
        for number in range(4):
            pool.submit(number, plans[number])
        end = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert time.monotonic() < end
            assert pool.collect(0.2) == []  # all four at once, or one would have ended before
        workers = {int(line.split()[-1]) for line in log.read_text().splitlines()}
        assert len(workers) == 4 and workers <= set(descendants(fast.pid))
        assert process in descendants(board.pid)


def is_device(pid):
    with contextlib.suppress(OSError):
        return b"ray::Device" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
