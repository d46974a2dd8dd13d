"""The runs of one study as they stand in MLflow, and the few ways to write to them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .mlflow_link import MlflowSettings, client, experiment_id
from .study import Study

KIND, STUDY, TRIAL, CAUSE = "paretune.kind", "paretune.study", "paretune.trial", "paretune.cause"
PARETO, PARENT = "pareto", "mlflow.parentRunId"
NAME, NOTE = "mlflow.runName", "mlflow.note.content"
_BATCH = 900  # MLflow takes 1000 metrics in a call
_PAGE = 200  # runs asked for at a time, each within the timeout of a call


@dataclass
class Known:
    """What is known to stand in MLflow about one run."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)


class Runs:
    """The parent run of a study and its children by trial number.

    A run is identified by tags: the parent by ``paretune.study``, a child by ``paretune.trial`` =
    ``<study id>/<number>``. Children of a parent that is gone are given to the one that there is.
    A second run of the same trial or search, which a call whose answer came too late leaves behind,
    is deleted (MLflow can restore it). Every method may throw what MLflow or the network throws.
    created, updated: ids of the runs that were made and changed; the caller keeps both, they
    outlive this object.
    """

    def __init__(
        self, study: Study, settings: MlflowSettings, created: set[str], updated: set[str]
    ) -> None:
        self.created, self.updated = created, updated
        self.client = client(str(settings.uri))
        self.experiment = experiment_id(self.client, str(settings.uri), str(settings.experiment))
        self.children: dict[int, Known] = {}
        self._study = study
        self._shared: dict[str, str] = {}
        found = self._search(f"tags.`{STUDY}` = '{study.id}'")
        searches = [run for run in found if run.tags.get(KIND) == "search"]
        self.parent = searches.pop() if searches else self._create_parent()  # the oldest
        for run in found:
            owner, _, number = run.tags.get(TRIAL, "").rpartition("/")
            if owner == study.id:
                self._adopt(int(number), run)
        for run in searches:
            self._drop(run)
        history = self.client.get_metric_history(self.parent.run_id, "front_size")
        self.steps = {int(metric.step) for metric in history}

    def _adopt(self, number: int, run: Known) -> None:
        known = self.children.get(number)
        if known is not None:
            run, repeat = (run, known) if known.status == "RUNNING" else (known, run)
            self._drop(repeat)
        self.children[number] = run
        self.tag(run, {PARENT: self.parent.run_id})

    def _drop(self, run: Known) -> None:
        self.client.delete_run(run.run_id)
        self.created.discard(run.run_id)
        self.updated.discard(run.run_id)

    def _search(self, where: str) -> list[Known]:
        """Matching runs, newest first."""
        found: list[Known] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], where, max_results=_PAGE, page_token=token
            )
            for run in page:
                data = run.data
                tags, params = dict(data.tags), dict(data.params)
                status = run.info.status
                found.append(Known(run.info.run_id, status, tags, params, set(data.metrics)))
            token = page.token
            if not token:
                return found

    def _create_parent(self) -> Known:
        tags = {KIND: "search", STUDY: self._study.id, "mlflow.source.name": "paretune"}
        begun = [
            row.finished_at - sum(row.evaluation.seconds.values()) for row in self._study.history()
        ]
        run = self.client.create_run(
            self.experiment, int(1000 * min(begun, default=time.time())), tags, self._study.name
        )
        self.created.add(run.info.run_id)
        return Known(run.info.run_id, "RUNNING", tags)

    def create_child(self, number: int, start_ms: int, tags: Mapping[str, str]) -> Known:
        """A new run for a trial, still open."""
        whole = {
            KIND: "trial",
            STUDY: self._study.id,
            TRIAL: f"{self._study.id}/{number}",
            PARENT: self.parent.run_id,
            "mlflow.source.name": "paretune",
            **tags,
        }
        made = self.client.create_run(self.experiment, start_ms, whole, f"trial {number}")
        run = self.children[number] = Known(made.info.run_id, "RUNNING", whole)
        self.created.add(run.run_id)
        return run

    def end(self, run: Known, status: str, stamp_ms: int) -> None:
        """Close a run, if it is not closed that way already."""
        if run.status != status:
            self.client.set_terminated(run.run_id, status, stamp_ms)
            run.status = status
            self._note(run)

    def reopen(self, run: Known) -> None:
        """Open a closed run again."""
        if run.status != "RUNNING":
            self.client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"
            self._note(run)

    def tag(self, run: Known, tags: Mapping[str, str]) -> None:
        """Set those tags that differ."""
        for key, value in tags.items():
            if run.tags.get(key) != value:
                self.client.set_tag(run.run_id, key, value)
                run.tags[key] = value
                self._note(run)

    def log(
        self,
        run: Known,
        metrics: Mapping[str, float],
        stamp_ms: int,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Metrics, parameters and those tags that differ, in one call."""
        from mlflow.entities import Metric, Param, RunTag

        new = {k: v for k, v in (tags or {}).items() if run.tags.get(k) != v}
        self.client.log_batch(
            run.run_id,
            metrics=[Metric(k, float(v), stamp_ms, 0) for k, v in metrics.items()],
            params=[Param(k, v) for k, v in (params or {}).items()],
            tags=[RunTag(k, v) for k, v in new.items()],
        )
        run.metrics |= set(metrics)
        run.params |= dict(params or {})
        run.tags |= new
        self._note(run)

    def log_steps(self, steps: Mapping[int, tuple[int, Mapping[str, float]]]) -> None:
        """Metrics of the parent by step: step -> (milliseconds since 1970, values)."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), stamp, step)
            for step, (stamp, values) in sorted(steps.items())
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.parent.run_id, metrics=metrics[start : start + _BATCH])
            self._note(self.parent)
        self.steps |= set(steps)

    def artifacts(self, folder: str | None = None) -> dict[str, int]:
        """The parent's artifacts in a folder: path -> bytes."""
        listed = self.client.list_artifacts(self.parent.run_id, folder)
        return {item.path: int(item.file_size or 0) for item in listed}

    def upload(self, path: Path, folder: str | None = None) -> None:
        """Add a file to the parent's artifacts."""
        self.client.log_artifact(self.parent.run_id, str(path), folder)
        self._note(self.parent)

    def share(self, key: str, state: str) -> None:
        """Keep a state of MLflow's pages under a name in the experiment."""
        tag = f"mlflow.sharedViewState.{key}"
        if self._shared.get(key) == state:
            return
        if self.client.get_experiment(self.experiment).tags.get(tag) != state:
            self.client.set_experiment_tag(self.experiment, tag, state)
        self._shared[key] = state

    def _note(self, run: Known) -> None:
        if run.run_id not in self.created:
            self.updated.add(run.run_id)
