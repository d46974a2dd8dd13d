"""A search whose accuracies and latencies come from an agent that is killed half-way."""

import random
import threading
import time

import pytest
from agents import Agent

from paretune.search.run import Search

TRIALS = 6


def job(agent, **search):
    return {
        "name": "digits there",
        "task": {
            "model": "paretune.tasks.vision:plain_cnn",
            "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 8},
            "data": {"kind": "digits", "search": 200},
        },
        "objectives": ["accuracy", "size_bytes", "latency_ms"],
        "target": {"name": agent.name, "remote": agent.options},
        "search": {"trials": TRIALS, "workers": 2, "seed": 1, "sampler": "random", **search},
    }


def measured(agent):
    """Timings that the agent has answered, by its own log."""
    lines = (agent.folder / "log").read_text().splitlines()
    return sum("'/v1/measure' 200" in line for line in lines)


@pytest.mark.slow
def test_nothing_is_lost_when_the_agent_is_killed_and_started_again(tmp_path):
    """Random weights, TLS and a token. Killed twice at random moments: every trial is there, none
    failed, and each latency was measured by the agent."""
    draw, kills = random.Random(0), []

    def reaper(agent):
        for after in (2, 5):
            while measured(agent) < after:
                time.sleep(0.05)
            time.sleep(draw.uniform(0.5, 3))
            agent.kill()
            kills.append(measured(agent))
            time.sleep(draw.uniform(0.5, 3))
            agent.start()

    with Agent(tmp_path / "board") as agent:
        thread = threading.Thread(target=reaper, args=(agent,), daemon=True)
        thread.start()
        with Search(job(agent), tmp_path / "study").run("quiet") as study:
            rows = study.rows("measure")
        thread.join(60)
        assert len(kills) == 2 and 2 <= kills[0] < kills[1]
        assert [row.number for row in rows] == list(range(TRIALS))
        assert [row.evaluation.cause for row in rows if row.evaluation.failed] == []
        for row in rows:
            assert row.evaluation.values["latency_ms"] > 0
            assert row.evaluation.notes["timing"]["rounds"] >= 1
            assert row.evaluation.notes["environment"]["target"] == agent.name
        assert measured(agent) >= TRIALS + 1


@pytest.mark.slow
def test_a_board_gone_for_good_stops_the_search_which_goes_on_later(tmp_path):
    """Exit by EnvironmentFault with what was measured kept; the same command finishes it."""
    from paretune.errors import EnvironmentFault

    with Agent(tmp_path / "board") as agent:
        asked = job(agent)
        asked["target"]["remote"] = {**agent.options, "patience": 2.0}

        def reaper():
            while measured(agent) < 4:
                time.sleep(0.05)
            agent.kill()

        thread = threading.Thread(target=reaper, daemon=True)
        thread.start()
        with pytest.raises(EnvironmentFault, match="nothing listens there"):
            Search(asked, tmp_path / "study").run("quiet")
        thread.join(60)
        agent.start()
        with Search(asked, tmp_path / "study").run("quiet") as study:
            rows = study.rows("measure")
        assert [row.number for row in rows] == list(range(TRIALS))
        assert not any(row.evaluation.failed for row in rows)
