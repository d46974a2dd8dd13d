"""The latency device of a cluster has a place of its own: it comes back, whatever it died of."""

import contextlib
import hashlib
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

JOB = {
    "name": "device",
    "task": {"model": "torch.nn:Identity", "data": {"kind": "digits"}},
    "objectives": ["accuracy", "latency_ms"],
}


@pytest.fixture
def cluster():
    """A head with two CPUs that this process has joined."""
    from ray_cluster import RayCluster

    from paretune.search.ray_connection import connect

    with RayCluster().running(cpus=2) as made:
        import ray

        connect(made.address)
        try:
            yield made
        finally:
            ray.shutdown()


def device_process(node):
    """The process of the latency device below a node, or None."""
    from ray_cluster import descendants

    for pid in descendants(node.pid):
        with contextlib.suppress(OSError):
            if b"ray::Device" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def alive(pid):
    """Whether a process runs, and is not waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def placed_on_a_further_node(cluster):
    """A reservation of one CPU on a node of one CPU, while the head's are taken."""
    import ray

    from paretune.search.ray_device import Reservation

    @ray.remote(num_cpus=2)
    class Head:
        def there(self):
            return True

    held = Head.remote()
    assert ray.get(held.there.remote(), timeout=60)
    node = cluster.start_node(cpus=1)
    reservation = Reservation({"CPU": 1})
    assert reservation.placed(60)
    ray.kill(held)
    return node, reservation


def collected(pool, count, meanwhile, limit_s=150.0):
    """Job -> cause (None: all is well) of ``count`` results; ``meanwhile`` is done again and
    again, and told what there is so far."""
    causes, end = {}, time.monotonic() + limit_s
    while len(causes) < count:
        assert time.monotonic() < end, f"only {sorted(causes)} came back"
        causes |= {result.job_id: result.evaluation.cause for result in pool.collect(0.02)}
        meanwhile(causes)
    return causes


def all_well(causes):
    return all(cause is None or "latency unstable" in cause for cause in causes)


@pytest.mark.slow
def test_workers_give_way_to_the_latency_device(cluster, fakes, factory, tmp_path):
    """Four workers want the three CPUs that two nodes have, one of them the device's. A file kills
    its process twice, then its node dies: no worker keeps the device from timing what all wait
    for, and no other file is blamed."""
    import ray

    from paretune.search.ray_device import start_device
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site
    from paretune.tasks.job import load_job

    node, reservation = placed_on_a_further_node(cluster)
    device = start_device("paretune-device-test", load_job(JOB).to_json(), reservation)
    assert ray.get(device.ready.remote(), timeout=120)
    site, space = (
        Site(factory.replace(":toy", ":asking"), {}, 60.0, device=device),
        fakes.ToySpace(),
    )
    plans = [space.plan({"rank:l0": i % 4, "rank:l1": i // 4}) for i in range(12)]
    fakes.write_relu(tmp_path / "deadly", plans[1].fingerprint)
    digest = hashlib.sha256((tmp_path / "deadly").read_bytes()).hexdigest()
    own = f"device-{device._actor_id.hex()}"
    place, killed, current = reservation.node, [], [device_process(node)]

    def kill_at_deadly(_):
        """At once when it is being timed; whose process that is was looked up before."""
        if not alive(current[0]):
            current[0] = device_process(node)
        for mark in Path(tempfile.gettempdir()).glob(f"paretune-*/{own}/{digest}.begun"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if mark.stat().st_size == len(killed) + 1 and current[0] is not None:
                    os.kill(current[0], signal.SIGKILL)
                    killed.append(current[0])

    def kill_node(causes):
        if causes and node in cluster.nodes:
            cluster.kill(node)

    with RayPool(site, 4, {"CPU": 1}, device=reservation) as pool:
        for number in range(6):
            pool.submit(number, plans[number])
        causes = collected(pool, 6, kill_at_deadly)
        assert causes.pop(1) == "the file killed the latency device 2 times"
        assert len(killed) == 2 and all_well(causes.values()), (killed, causes)
        assert reservation.node == place
        for number in range(6, 12):
            pool.submit(number, plans[number])
        causes = collected(pool, 6, kill_node)
        assert reservation.node != place and all_well(causes.values()), causes
