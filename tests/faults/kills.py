"""Toy searches that are killed at random moments, each in processes of its own, and what was left.

What counts as acknowledged is written down outside of the study, by the driver, at the moment in
which a trial is finished (``drive.py``, ``acknowledged``).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ray_cluster import RayCluster, descendants

from paretune.trackers.place import Place
from paretune.trackers.study import Study

DRIVE = Path(__file__).parents[1] / "search" / "drive.py"
LIMIT_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """What one scenario found. kills: SIGKILLs that hit. trials: the budget. acknowledged: trials
    that the driver had reported as finished. lost, twice, left: of these missing from the study or
    changed there; trials with two results, or reported twice; trials in flight after the end.
    exact: the study holds the budget's trials and no others. most_tries: of one plan. seconds."""

    name: str
    kills: int
    trials: int
    acknowledged: int
    lost: int
    twice: int
    left: int
    exact: bool
    most_tries: int
    seconds: float

    @property
    def good(self):
        return self.exact and not (self.lost or self.twice or self.left) and self.most_tries <= 3


class Toy:
    """One toy search in ``folder`` with its logs beside it."""

    def __init__(self, folder, trials, environment=None, **options):
        self.folder, self.trials = Path(folder), trials
        self.log = self.folder.with_suffix(".log")
        self.noted = self.folder.with_suffix(".acknowledged")
        self.environment, self.begun = environment, time.monotonic()
        self.options = {"log": str(self.log), "acknowledged": str(self.noted), **options}
        self.said = self.folder.with_suffix(".said")

    def start(self):
        words = [f"{key}={json.dumps(value)}" for key, value in self.options.items()]
        with open(self.said, "a") as said:
            return subprocess.Popen(
                [sys.executable, str(DRIVE), str(self.folder), str(self.trials), *words],
                stdout=said,
                stderr=said,
                env=self.environment,
            )

    def evaluated(self):
        """(rung, plan, pid of the worker) of every evaluation that was begun."""
        if not self.log.exists():
            return []
        return [line.split() for line in self.log.read_text().splitlines()]

    def acknowledged(self):
        lines = self.noted.read_text().splitlines() if self.noted.exists() else []
        return [(int(n), plan) for n, plan in map(str.split, lines)]

    def wait_for_more(self, process, count=1):
        """Until ``count`` further trials are finished; False when the driver ended before."""
        aim, end = len(self.acknowledged()) + count, time.monotonic() + LIMIT_S
        while len(self.acknowledged()) < aim:
            if process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise AssertionError(f"nothing happens: {self.said.read_text()[-1000:]}")
            time.sleep(0.02)
        return True

    def finish(self, process=None):
        """To the end of the budget, undisturbed."""
        process = process or self.start()
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert code == 0, self.said.read_text()[-2000:]

    def outcome(self, name, kills):
        noted = self.acknowledged()
        place = Place.of_folder(self.folder)
        with Study.open(place) as study:
            rows = study.rows("measure")
            plans = {row.number: row.evaluation.plan.fingerprint for row in rows}
            left = len(study.in_flight())
        twice = len(rows) - len(plans) + len(noted) - len({n for n, _ in noted})
        tries = Counter(plan for rung, plan, _ in self.evaluated() if rung == "measure")
        return Outcome(
            name,
            kills,
            self.trials,
            len({n for n, _ in noted}),
            sum(plans.get(number) != plan for number, plan in noted),
            twice,
            left,
            sorted(plans) == list(range(self.trials)),
            max(tries[plan] for plan in plans.values()),
            time.monotonic() - self.begun,
        )


def kill_driver(folder, kills, seed, name="driver", **options):
    """The driver again and again, each time resumed; between two kills a trial is finished."""
    toy = Toy(folder, 3 * kills + 4, sleep_s=0.1, **options)
    dice, hit = random.Random(seed), 0
    while hit < kills:
        process = toy.start()
        assert toy.wait_for_more(process), toy.said.read_text()[-2000:]
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            hit += 1
        toy.trials = max(toy.trials, len(toy.acknowledged()) + 4)
    toy.finish()
    return toy.outcome(name, hit)


def kill_workers(folder, kills, seed, name="worker", actors=False, **options):
    """Worker processes of one running search; with ``actors`` their Ray actors, every other time.

    A plan is not hit three times, which would rightly end it as a failed trial.
    """
    toy = Toy(folder, 2 * kills + 10, sleep_s=0.25, **options)
    dice, hit, hits = random.Random(seed), 0, Counter()
    process = toy.start()
    while hit < kills and toy.wait_for_more(process):
        time.sleep(dice.uniform(0, 0.2))
        live = [(plan, int(pid)) for _, plan, pid in toy.evaluated()[-3:]]
        live = [(plan, pid) for plan, pid in live if alive(pid) and hits[plan] < 1]
        if not live:
            continue
        plan, pid = dice.choice(live)
        victim = parent(pid) if actors and hit % 2 else pid
        if victim and alive(victim):
            os.kill(victim, signal.SIGKILL)
            hits[plan] += 1
            hit += 1
    toy.finish(process)
    return toy.outcome(name, hit)


def kill_server(folder, kills, server, name="PostgreSQL server", **options):
    """The database server, as if its power failed, while a search writes to it."""
    toy = Toy(folder, 6 * kills + 6, sleep_s=0.1, **options)
    process, hit = toy.start(), 0
    while hit < kills and toy.wait_for_more(process, 2):
        server.stop("immediate")
        hit += 1
        time.sleep(0.5)
        server.start()
    toy.finish(process)
    return toy.outcome(name, hit)


def kill_nodes(folder, kills, seed, name="node of two"):
    """The second node of a cluster, all its processes at once; another one joins each time, unless
    the search has ended meanwhile: then fewer kills are counted."""
    dice, cluster = random.Random(seed), RayCluster()
    try:
        cluster.start_head(1)
        node = cluster.start_node(1)
        toy = Toy(
            folder,
            24 * kills + 12,  # a node takes a while to start, and the head's worker goes on
            cluster.environment,
            sleep_s=2.0,
            ray=cluster.address,
            workers=2,
        )
        process, hit = toy.start(), 0
        while wait_until(lambda doomed=node: below(doomed, toy.evaluated()[-6:]), process):
            time.sleep(dice.uniform(0, 0.4))
            cluster.kill(node)
            hit += 1
            if hit == kills:
                break
            node = cluster.start_node(1)
        toy.finish(process)
        return toy.outcome(name, hit)
    finally:
        cluster.remove()


def kill_head(folder, kills, seed, name="Ray's head"):
    """The head with everything on it. The driver has to end by itself; the next start goes on."""
    dice, cluster = random.Random(seed), RayCluster()
    try:
        toy = Toy(
            folder, 8 * kills + 6, cluster.environment, sleep_s=0.2, ray=cluster.address, workers=2
        )
        slowest = 0.0
        for _ in range(kills):
            head = cluster.start_head(2)
            process = toy.start()
            assert toy.wait_for_more(process, 2), toy.said.read_text()[-2000:]
            time.sleep(dice.uniform(0, 0.5))
            cluster.kill(head)
            begun = time.monotonic()
            process.wait(120)
            slowest = max(slowest, time.monotonic() - begun)
            assert process.returncode != 0
        cluster.start_head(2)
        toy.finish()
        return toy.outcome(f"{name} (driver ended within {slowest:.0f} s)", kills)
    finally:
        cluster.remove()


def below(node, evaluations):
    """Whether one of these evaluations ran in a process of the node."""
    return {int(pid) for *_, pid in evaluations} & set(descendants(node.pid))


def wait_until(holds, process):
    """Whether it holds at last; False when the driver ended before."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.1)
    return True


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
