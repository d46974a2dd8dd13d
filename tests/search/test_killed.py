"""A real search, killed and interrupted in its own process, and gone on with."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from paretune.trackers.study import Study

FILE = Path(__file__).parent / "drive.py"


def evaluated(log):
    return [line.split()[:2] for line in log.read_text().splitlines()] if log.exists() else []


def living(folder):
    """Processes whose command line names the search's worker, with this folder's log open."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            if b"drive.py" in command and str(folder).encode() in command:
                found.append(path.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(bench, drive, fakes, tmp_path, times):
    """SIGKILL, resumed each time: exactly the budget, nothing lost or repeated, the very trials of
    a search that was never interrupted, no process left."""
    folder, log, trials, sampler = tmp_path / "study", tmp_path / "log", 4 * times + 4, "nsga2"
    options = ["sleep_s=0.12", f"log={json.dumps(str(log))}", f"sampler={json.dumps(sampler)}"]
    command = [sys.executable, str(FILE), str(folder), str(trials), *options]
    draw, kills, acknowledged, workers = random.Random(times), 0, {}, set()
    while kills < times:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        already = len(evaluated(log))
        while len(evaluated(log)) <= already + 1 and process.poll() is None:
            time.sleep(0.02)  # it has to get somewhere before it is killed
        time.sleep(draw.uniform(0, 0.35))
        process.kill()
        process.wait()
        process.stdout.close()
        kills += 1
        plans, rungs = bench.record(folder)
        assert acknowledged.items() <= plans.items()
        assert max(rungs.values(), default=1) == 1
        acknowledged = plans
        workers |= {line.split()[2] for line in log.read_text().splitlines()}
    end = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "a worker outlived its driver"
        time.sleep(0.05)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "the budget is spent\n", done.stderr
    plans, rungs = bench.record(folder)
    assert acknowledged.items() <= plans.items() and len(acknowledged) < trials
    assert sorted(plans) == list(range(trials)) and max(rungs.values()) == 1
    assert living(folder) == []
    tried = Counter(p for rung, p in evaluated(log) if rung == "measure")
    with Study.open(folder) as study:
        attempts = {plans[n]: study.attempts(n) for n in plans}
    assert all(tried[p] <= attempts[p] for p in attempts)  # once per attempt, never more
    drive(tmp_path / "whole", trials, sampler=sampler, pool=lambda: bench.InProcess(fakes))
    assert bench.record(tmp_path / "whole")[0] == plans


def test_ctrl_c_of_a_real_search(bench, tmp_path):
    log = tmp_path / "log"
    options = ["sleep_s=0.3", f"log={json.dumps(str(log))}"]
    command = [sys.executable, str(FILE), str(tmp_path / "study"), "50", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(evaluated(log)) < 4:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 130 and time.monotonic() - begun < 10
    assert "run the same command again" in output
    workers = {line.split()[2] for line in log.read_text().splitlines()}
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert bench.record(tmp_path / "study")[0]
