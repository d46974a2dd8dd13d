"""What the guided search does first: price every option, measure what each alone damages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..objectives.evaluation import Evaluation
from ..objectives.problem import Problem
from ..tasks.job import load_job
from .cost_table import CostTable
from .guidance import Guidance

if TYPE_CHECKING:
    from ..objectives.evaluate import Evaluator
    from ..objectives.evaluation import Artifact
    from ..objectives.screen import Screen
    from ..spaces.plan import CompressionPlan

SCREENING = "paretune.search.preparation:ScreeningEvaluator.from_job"
"""The factory for workers that also screen."""
EACH = 8
"""Candidates screened for each trial that is measured."""
TIMED = 7
"""Screened candidates of the pass for each plan that is timed beside it: 30 plans in a search of
100 trials, 10 in a short one."""
RANGES = 32
"""Training examples that set the activation ranges of files that are only timed."""
_NOTES = 10  # lines said about the progress of the pass


def prepare(
    problem: Problem,
    folder: Path,
    budget: float,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    timed: Callable[[], None] = lambda: None,
    seconds: float | None = None,
) -> Guidance:
    """Damage and cost of every option.

    folder: where measured damages are kept, so that an interrupted pass goes on; a table of
    another network, space or set of images is not used, and ``say`` is told. budget: screened
    candidates that the pass may cost; seconds: that it may take, and half as many for the plans
    that are timed (ten in any case). say: gets one line now and then. check: is called after every
    option and plan; what it raises ends the pass, which goes on from there the next time.
    timed: is called when nothing more is timed: from then on other work does no harm.
    Raises what the screen raises when the network cannot be screened, and TimeoutError when timing
    ten plans would take most of those seconds.
    """
    from ..objectives.latency_probe import PLANS
    from ..objectives.screen import Screen
    from ..objectives.sensitivity import measure

    screen, space = Screen.for_problem(problem, folder), problem.space
    limit = math.inf if seconds is None else seconds
    if problem.timed:
        most = int(min(max(budget / TIMED, PLANS[0]), PLANS[1]))
        _predict_latency(problem, folder, screen, say, check, limit / 2, most)
    timed()
    before = {path.name for path in folder.glob("sensitivity-*.jsonl")}
    last = -1

    def progress(done: int, count: int) -> None:
        nonlocal last
        check()
        step = _NOTES * done // max(1, count)
        if step > last:
            last = step
            say(f"sensitivity of single options: {done} of {count}")

    found = measure(screen, budget, folder, progress, limit)
    for name in sorted(before - {f"sensitivity-{found.key}.jsonl"}):
        say(f"{name} is of another network, space or set of images: not used")
    measured = sum(len(options) for options in found.measured.values())
    say(
        f"sensitivity: {measured} options measured in {found.seconds:.0f} s "
        f"(as much as {found.evaluations:.0f} screened candidates)"
    )
    table = CostTable.probe(screen.costs, space.plan, space.parameters, space.layers)
    base = {**screen.screen(space.identity).values, "divergence": 0.0}
    return Guidance(space.parameters, found.damage, table, base)


def _predict_latency(
    problem: Problem,
    folder: Path,
    screen: Screen,
    say: Callable[[str], None],
    check: Callable[[], None],
    seconds: float,
    most: int,
) -> None:
    """Let the screen predict latency, from plans measured on the target now or before."""
    from ..objectives.latency_probe import fit_latency

    task, options = problem.task, problem.job.target
    inputs, _ = next(iter(task.search.batches(options.batch, limit=options.batch)))
    model = fit_latency(
        folder,
        problem.target,
        screen.compressor,
        screen.costs.table,
        task.example,
        [batch.numpy() for batch in task.calibration(min(RANGES, options.calibration))],
        inputs.numpy(),
        say,
        check,
        seconds,
        most,
    )
    if model is not None:
        say(
            f"latency is predicted from {model.plans} plans measured in {model.seconds:.0f} s "
            f"(left out of the fit: {100 * model.error:.1f} % off, "
            f"rank correlation {model.correlation:.2f})"
        )
        screen.costs.predict_latency(model)


class ScreeningEvaluator:
    """An evaluator for workers that screens too (rung ``"screen"``).

    The screen is made when the first candidate is to be screened; it shares what the evaluator
    holds.
    """

    def __init__(self, evaluator: Evaluator, make_screen: Callable[[], Screen]) -> None:
        self._evaluator, self._make = evaluator, make_screen
        self._screen: Screen | None = None

    @classmethod
    def from_job(cls, job: Mapping[str, Any], folder: str) -> ScreeningEvaluator:
        """For a resolved job and its study folder: what a worker starts with."""
        from ..objectives.evaluate import Evaluator
        from ..objectives.screen import Screen

        problem = Problem.from_job(load_job(job))
        evaluator = Evaluator.for_problem(problem, Path(folder))
        shared = evaluator.compressor
        return cls(evaluator, lambda: Screen.for_problem(problem, Path(folder), shared))

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        """As :meth:`Evaluator.evaluate`; a screened candidate's values are estimates."""
        if rung != "screen":
            return self._evaluator.evaluate(plan, rung, baseline, artifact)
        self._screen = self._screen or self._make()
        found = self._screen.screen(plan)
        return Evaluation(plan, rung, found.values, seconds={"screen": found.seconds})

    def recover(
        self,
        plan: CompressionPlan,
        number: int,
        baseline: Evaluation | None = None,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> Evaluation:
        """As :meth:`Evaluator.recover`."""
        return self._evaluator.recover(plan, number, baseline, tell)
