"""Brings MLflow's runs up to the study: one parent for the search, one child for each trial."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ..objectives.evaluation import Evaluation
from ..objectives.front import ParetoFront
from ..spaces.plan import CompressionPlan
from .artifact_store import intact
from .ask import Row
from .front_files import FRONT_FILES, SCREENED_FILE, write_front_files
from .ledger import FINAL_RUNGS
from .mlflow_link import MlflowSettings, mlflow_calls, reason
from .mlflow_runs import CAUSE, NAME, NOTE, PARETO, Runs
from .mlflow_view import (
    run_files,
    search_note,
    search_params,
    search_title,
    shared_view,
    trial_metrics,
    trial_note,
    trial_params,
    view_address,
)
from .study import Study

FRONT, PLAN, EVALUATION = "paretune.front", "paretune.plan", "paretune.evaluation"
TABLES = "mlflow.loggedArtifacts"
ENDED = "ended"
"""What the study keeps of how its last search ended: a status of MLflow's."""
_UPLOAD_SECONDS = 120


class Mirror:
    """Does what is missing in MLflow, and only that.

    What MLflow holds is asked for once; after a failed call :meth:`forget` makes the next
    :meth:`push` ask again, so that a call whose answer was lost is never repeated blindly.
    """

    def __init__(self, study: Study, settings: MlflowSettings) -> None:
        self.study = study
        self.settings = settings.resolved(study.folder, study.name)
        self.created: set[str] = set()
        self.updated: set[str] = set()
        self.problems: list[str] = []
        self._known: Runs | None = None

    def forget(self) -> None:
        """Trust nothing that was known of MLflow's state."""
        self._known = None

    def push(self, final: bool, pictures: bool = True) -> Runs:
        """Write what is missing; whatever MLflow or the network throws comes through.

        final: the search has ended: upload the front's exported files and close the parent run, as
            KILLED or FAILED when the study says that it did not come to its end.
        pictures: refresh what takes seconds to compute too: the growth of the hypervolume, the
            description, the front's page and tables. Without it only trials are written, and the
            first time the description.
        """
        with mlflow_calls():
            if first := self._known is None:
                self._known = Runs(self.study, self.settings, self.created, self.updated)
            runs = self._known
            rows = {r.number: r for r in self.study.history() if r.evaluation.rung in FINAL_RUNGS}
            confirmed = {r.number: r.evaluation for r in self.study.rows("confirm")}
            front = self.study.front()
            on = {point.number for point in front}
            identity = base.plan if (base := self.study.baseline) else None
            for number, row in rows.items():
                self._push_trial(runs, row, confirmed.get(number), number in on, identity)
            if not final:
                runs.reopen(runs.parent)
            if first or pictures or final:
                self._push_search(runs, front, rows, final)
            if pictures or final:
                self._push_pictures(runs, final)
            if final:
                self._push_files(runs, front)
                last = max((row.finished_at for row in rows.values()), default=time.time())
                runs.end(runs.parent, self.study.get(ENDED, "FINISHED"), int(last * 1000))
            return runs

    def _push_trial(
        self,
        runs: Runs,
        row: Row,
        confirmed: Evaluation | None,
        pareto: bool,
        identity: CompressionPlan | None,
    ) -> None:
        run, stamp = runs.children.get(row.number), int(row.finished_at * 1000)
        evaluation, mark = row.evaluation, {PARETO: str(pareto).lower()}
        metrics = trial_metrics(evaluation, confirmed)
        best = evaluation if confirmed is None or confirmed.failed else confirmed
        mark[NOTE] = trial_note(best, identity)
        if run is not None and run.status != "RUNNING":
            runs.tag(run, mark)
            missing = {k: v for k, v in metrics.items() if k not in run.metrics}
            if missing:
                runs.log(run, missing, stamp)
            return
        tags = {EVALUATION: evaluation.fingerprint, **mark}
        if evaluation.cause is not None:
            tags[CAUSE] = evaluation.cause
        if run is None:
            start = stamp - int(1000 * sum(evaluation.seconds.values()))
            run = runs.create_child(row.number, start, tags)
        runs.log(run, metrics, stamp, trial_params(row, identity), mark)
        runs.end(run, "FAILED" if evaluation.failed else "FINISHED", stamp)

    def _push_search(
        self, runs: Runs, front: ParetoFront, rows: Mapping[int, Row], final: bool
    ) -> None:
        self._push_history(runs, rows, final)
        params = search_params(self.study)
        params = {k: v for k, v in params.items() if k not in runs.parent.params}
        if params:
            runs.log(runs.parent, {}, 0, params)
        files = run_files(runs.experiment, runs.parent.run_id)
        note = search_note(self.study, front, self._share(runs, front), files)
        runs.tag(runs.parent, {NOTE: note, NAME: search_title(self.study, front)})

    def _push_history(self, runs: Runs, rows: Mapping[int, Row], final: bool) -> None:
        """Steps are logged in order of number, so that none has to be corrected later."""
        waiting = self.study.in_flight()
        until = min(waiting) if waiting and not final else None
        steps: dict[int, tuple[int, Mapping[str, float]]] = {}
        for step in self.study.measured_front().history().to_dict("records"):
            values = {str(key): float(value) for key, value in step.items()}
            number = int(values.pop("number"))
            if number in runs.steps or number not in rows:
                continue
            if until is None or number < until:
                steps[number] = (int(rows[number].finished_at * 1000), values)
        if steps:
            runs.log_steps(steps)

    def _push_pictures(self, runs: Runs, final: bool) -> None:
        from .study_page import state

        mark = f"{state(self.study)}, {'final' if final else 'running'}"
        if runs.parent.tags.get(FRONT) == mark and set(runs.artifacts()).issuperset(FRONT_FILES):
            return
        with tempfile.TemporaryDirectory() as folder, mlflow_calls(_UPLOAD_SECONDS):
            paths = write_front_files(self.study, Path(folder), final)
            for path in paths:
                runs.upload(path)
        shown = [p.name for p in paths if p.name in ("front.json", SCREENED_FILE)]
        table = json.dumps([{"path": name, "type": "table"} for name in shown])
        runs.tag(runs.parent, {TABLES: table, FRONT: mark})

    def _push_files(self, runs: Runs, front: ParetoFront) -> None:
        for point in front:
            run = runs.children[point.number]
            if run.tags.get(PLAN) != point.plan.fingerprint:
                runs.client.log_dict(run.run_id, point.plan.to_json(), "plan.json")
                runs.tag(run, {PLAN: point.plan.fingerprint})
        if self.settings.artifacts == "none":
            return
        present = runs.artifacts("models")
        exported = [(p, p.evaluation.artifact) for p in front if p.evaluation.artifact]
        wanted = [(p, file) for p, main in exported for file in main.files]
        trained = {row.number: row.evaluation.weights for row in self.study.rows("recover")}
        wanted += [(p, file) for p in front if (file := trained.get(p.number)) is not None]
        for point, artifact in wanted:
            name = f"models/{artifact.file_name}"
            if present.get(name) == artifact.size_bytes:
                continue
            path = self.study.artifact_path(artifact)
            if not intact(path):
                self._complain(f"trial {point.number}: {path} is missing or damaged")
                continue
            with mlflow_calls(_UPLOAD_SECONDS):
                runs.upload(path, "models")
            present[name] = artifact.size_bytes

    def _share(self, runs: Runs, front: ParetoFront) -> str | None:
        """The comparison view's link. Best effort: MLflow does not promise to keep such views."""
        key, state = shared_view(self.study, front)
        try:
            runs.share(key, state)
        except Exception as error:
            self._complain(f"comparison view not saved ({reason(error)})")
            return None
        return view_address(runs.experiment, key)

    def _complain(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
