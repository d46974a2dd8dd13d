"""SIGKILL at random moments of everything a search consists of (``benchmarks/faults.py``: 100)."""

import pytest

pytestmark = pytest.mark.slow


def test_the_driver_on_a_server(kills, postgres, tmp_path):
    tracker = {"storage": postgres.address}
    outcome = kills.kill_driver(tmp_path / "toy", 3, seed=1, tracker=tracker)
    assert outcome.good, outcome


def test_workers(kills, tmp_path):
    outcome = kills.kill_workers(tmp_path / "toy", 6, seed=2)
    assert outcome.good and outcome.kills == 6, outcome


def test_the_server(kills, postgres, tmp_path):
    tracker = {"storage": postgres.address}
    outcome = kills.kill_server(tmp_path / "toy", 2, postgres, tracker=tracker)
    assert outcome.good and outcome.most_tries == 1, outcome


def test_workers_on_a_cluster(kills, cluster, tmp_path):
    cluster.start_head(2)
    outcome = kills.kill_workers(
        tmp_path / "toy", 3, 3, environment=cluster.environment, ray=cluster.address, actors=True
    )
    assert outcome.good, outcome


def test_a_node_of_two(kills, tmp_path):
    outcome = kills.kill_nodes(tmp_path / "toy", 1, seed=4)
    assert outcome.good and outcome.kills == 1, outcome


def test_the_head(kills, tmp_path):
    assert (outcome := kills.kill_head(tmp_path / "toy", 1, seed=5)).good, outcome
