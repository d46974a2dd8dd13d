"""Given the same measured values, the same seed and window of asks give the same trials: tried one
after another, by processes of this machine, on a Ray cluster, and after kills."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SEARCH = Path(__file__).parents[1] / "search"
TRIALS = 24


@pytest.fixture(scope="module")
def bench():
    """tests/search/drive.py as a module."""
    spec = importlib.util.spec_from_file_location("paretune_faults_drive", SEARCH / "drive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def expected(bench, tmp_path_factory):
    """Number -> plan of a search in this process, one candidate after another."""
    folder = tmp_path_factory.mktemp("expected") / "toy"
    fakes = bench.load_fakes()
    bench.drive(folder, TRIALS, pool=lambda: bench.InProcess(fakes))
    plans, _ = bench.record(folder)
    assert len(set(plans.values())) == TRIALS
    return plans


@pytest.mark.parametrize("workers", [1, 3])
def test_on_the_local_pool(bench, expected, tmp_path, workers):
    bench.drive(tmp_path / "toy", TRIALS, workers=workers, sleep_s=0.01)
    assert bench.record(tmp_path / "toy")[0] == expected


@pytest.mark.slow
def test_on_ray_and_gone_on_with_locally(bench, expected, cluster, tmp_path):
    """Half of the trials on a cluster, killed there; the rest by processes of this machine."""
    cluster.start_head(3)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for folder, trials in ((whole, TRIALS), (halved, TRIALS // 2)):
        words = [f"ray={json.dumps(cluster.address)}", "workers=3", "sleep_s=0.05"]
        command = [sys.executable, str(SEARCH / "drive.py"), str(folder), str(trials), *words]
        done = subprocess.run(
            command, env=cluster.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert bench.record(whole)[0] == expected
    bench.drive(halved, TRIALS, workers=2)
    assert bench.record(halved)[0] == expected


@pytest.mark.slow
def test_after_kills_on_another_database(bench, expected, kills, postgres, tmp_path):
    """The driver is killed again and again, its study in PostgreSQL."""
    toy = kills.Toy(tmp_path / "toy", TRIALS, sleep_s=0.1, tracker={"storage": postgres.address})
    for _ in range(3):
        process = toy.start()
        assert toy.wait_for_more(process)
        process.kill()
        process.wait()
    toy.finish()
    assert bench.record(tmp_path / "toy")[0] == expected
