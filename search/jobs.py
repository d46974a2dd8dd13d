"""What a search gives its workers and gets back, whatever machines they run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..objectives.evaluation import Artifact, Evaluation
from ..spaces.plan import CompressionPlan

MOST_ATTEMPTS = 3  # a candidate whose worker is killed from outside is run again twice


@dataclass(frozen=True)
class Result:
    """What came of one job. seconds: wall time of the last attempt."""

    job_id: Any
    evaluation: Evaluation
    seconds: float
    attempts: int


@dataclass
class WorkerJob:
    """One evaluation that a worker is to do. job_id: plain JSON, given back with the result."""

    job_id: Any
    plan: CompressionPlan
    rung: str
    baseline: Evaluation | None
    artifact: Artifact | None
    attempts: int = 0
    first: bool = False

    def message(self) -> dict[str, Any]:
        """The job as plain JSON."""
        return {
            "job": self.job_id,
            "plan": self.plan.to_json(),
            "rung": self.rung,
            "baseline": self.baseline.to_json() if self.baseline else None,
            "artifact": self.artifact.to_json() if self.artifact else None,
        }

    @classmethod
    def from_message(cls, data: Mapping[str, Any]) -> WorkerJob:
        """The job that :meth:`message` described."""
        return cls(
            data["job"],
            CompressionPlan.from_json(data["plan"]),
            data["rung"],
            Evaluation.from_json(data["baseline"]) if data["baseline"] else None,
            Artifact.from_json(data["artifact"]) if data["artifact"] else None,
        )

    def failed(self, cause: str, detail: str | None = None) -> Evaluation:
        """The evaluation that says why there is none."""
        return Evaluation.failure(self.plan, cause, self.rung, detail)


class Workers(Protocol):
    """Who evaluates plans: processes of this machine (:class:`.pool.Pool`), or a Ray cluster
    (:class:`.ray_pool.RayPool`)."""

    def submit(
        self,
        job_id: Any,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
        first: bool = False,
    ) -> None:
        """Queue one evaluation; those submitted ``first`` are begun before the others."""
        ...

    def collect(self, timeout_s: float = 1.0) -> list[Result]:
        """The results that arrived, at once if there are any, else after ``timeout_s`` at most.

        Raises what makes going on pointless: an evaluator that cannot be loaded, a full disk.
        """
        ...

    def progress(self) -> dict[Any, dict[str, Any]]:
        """What workers told of long jobs since the last call: job id -> the latest, plain JSON."""
        ...

    def withdraw(self) -> list[Any]:
        """Take back the jobs that no worker has begun; returns their ids."""
        ...

    def close(self) -> None:
        """End every worker; queued and running jobs are dropped."""
        ...
