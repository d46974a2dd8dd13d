"""Runs a toy search with real workers in a process of its own, to be killed by the tests.

``python drive.py FOLDER TRIALS [KEY=VALUE ...]``; prints how it ended.
"""

import importlib.util
import json
import os
import signal
import sys
from collections import Counter, deque
from pathlib import Path

from paretune.errors import EnvironmentFault, ParetuneError
from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.objectives.objective import Objective
from paretune.search.driver import Budget, Driver
from paretune.search.interrupt import Interrupt
from paretune.search.pool import Pool, Result
from paretune.search.proposer import Proposer
from paretune.search.samplers import make_sampler
from paretune.trackers.place import Place
from paretune.trackers.study import Study

OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {}), Objective("latency_ms", {})]


def load_fakes():
    path = Path(__file__).parent / "fakes.py"
    spec = importlib.util.spec_from_file_location("paretune_search_fakes", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def drive(
    folder,
    trials,
    *,
    sampler="nsga2",
    seed=5,
    workers=2,
    width=4,
    timeout_s=None,
    grace_s=60.0,
    deadline_s=20.0,
    layers=6,
    listeners=(),
    pool=None,
    tracker=None,
    ray=None,
    acknowledged=None,
    **settings,
):
    """One run of a toy search on the study in ``folder``; returns why it ended.

    tracker: the job's section. ray: address of a cluster whose nodes are the workers.
    acknowledged: a file that gets a line, at once, for every trial that was finished.
    """
    space = load_fakes().ToySpace(layers=layers)
    job = {"name": f"toy {Path(folder).name}", "tracker": tracker}
    place = Place.of_job(folder, job, job["name"])
    if place.holds_study():
        study = Study.open(place, write=True)
    else:
        study = Study.create(folder, job, name=place.name, objectives=OBJECTIVES)
    factory = f"{Path(__file__).parent / 'fakes.py'}:toy"
    made = make_sampler(sampler, space.parameters, seed=seed, population=8)
    if acknowledged:
        listeners = (*listeners, Acknowledged(acknowledged))
    if ray:
        pool = on_ray(ray, factory, settings, workers, deadline_s)
    with study, Interrupt() as stop:
        driver = Driver(
            study,
            Proposer(space, OBJECTIVES, [], made, seed, space.presets()),
            space.plan({}),
            pool or (lambda: Pool(factory, settings, workers, deadline_s, 8_000_000_000)),
            Budget(trials, timeout_s, grace_s),
            width,
            listeners,
            stop,
        )
        reason = driver.run()
    return reason


def on_ray(address, factory, settings, workers, deadline_s):
    """Makes the pool of a cluster, one CPU a worker."""
    from paretune.search.ray_connection import connect
    from paretune.search.ray_pool import RayPool
    from paretune.search.ray_worker import Site

    connect(address)
    site = Site(factory, settings, deadline_s, 8_000_000_000)
    return lambda: RayPool(site, workers, {"CPU": 1})


class Acknowledged:
    """Notes every finished trial, outside of the study, before anything else happens."""

    def __init__(self, path):
        self.path = path

    def on_event(self, event):
        if event.kind == "trial":
            with open(self.path, "a") as file:
                file.write(f"{event.number} {event.evaluation.plan.fingerprint}\n")
                file.flush()
                os.fsync(file.fileno())


class InProcess:
    """A pool without processes: results come back in a chosen order, or fail as told."""

    def __init__(self, fakes, pick=lambda count: 0, fail=lambda job_id, rung: None, folder=None):
        self.fakes, self.pick, self.fail, self.folder = fakes, pick, fail, folder
        self.jobs = deque()
        self.seen = []

    def submit(self, job_id, plan, rung="measure", baseline=None, artifact=None, first=False):
        self.jobs.append((job_id, plan, rung, baseline, artifact))

    def collect(self, timeout_s=1.0):
        if not self.jobs:
            return []
        index = self.pick(min(2, len(self.jobs)))
        job_id, plan, rung, baseline, artifact = self.jobs[index]
        del self.jobs[index]
        self.seen.append((job_id, rung, baseline, artifact))
        cause = self.fail(job_id, rung)
        if cause == "interrupt":
            signal.raise_signal(signal.SIGINT)
            return []
        if cause == "disk":
            raise EnvironmentFault("disk full")
        evaluation = self.fakes.measured(plan, rung)
        if self.folder and artifact is None:
            artifact = self.exported(plan)
        evaluation = Evaluation(
            plan, rung, evaluation.values, artifact=artifact, seconds={"x": 1.0}
        )
        if cause:
            evaluation = Evaluation.failure(plan, cause, rung)
        return [Result(job_id, evaluation, 0.01, 1)]

    def exported(self, plan):
        sha256 = plan.fingerprint * 4
        (self.folder / "artifacts").mkdir(exist_ok=True)
        (self.folder / "artifacts" / f"{sha256}.onnx").write_text("x")
        return Artifact(sha256, 1, "onnx")

    def withdraw(self):
        ids = [job[0] for job in self.jobs]
        self.jobs.clear()
        return ids

    def close(self):
        self.jobs.clear()


def record(folder):
    """(plans by number, rungs by number) of a study."""
    with Study.open(folder) as study:
        plans = {row.number: row.evaluation.plan.fingerprint for row in study.rows("measure")}
        assert study.baseline is not None
        return plans, Counter((row.number, row.evaluation.rung) for row in study.rows())


if __name__ == "__main__":
    options = dict(item.split("=", 1) for item in sys.argv[3:])
    try:
        print(
            drive(sys.argv[1], int(sys.argv[2]), **{k: json.loads(v) for k, v in options.items()})
        )
    except ParetuneError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        print(error)
        sys.exit(130)
