"""The finished trials once more, in Optuna's own tables, for the tools that read those."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..objectives.evaluation import Evaluation
from ..objectives.objective import Objective
from ..spaces.plan import CompressionPlan
from .ask import Ask, Row
from .optuna_rows import insert_trials
from .plan_summary import plan_parameters, plan_summary
from .postgres import Server
from .tables import BUSY_SECONDS

_AT_ONCE = 500  # trials in one transaction
_log = logging.getLogger(__name__)
NUMBER = "paretune.number"
_KNOWN = sa.text(
    "SELECT a.value_json FROM trial_user_attributes a JOIN trials t ON a.trial_id = t.trial_id "
    "WHERE t.study_id = :study AND a.key = :key"
)


class OptunaTables:
    """A copy of the study that ``optuna.load_study`` and optuna-dashboard open.

    The study's own tables are the truth; this copy may lag behind, is filled up at the next
    :meth:`add`, and never holds a trial twice. Finished trials only: Optuna's trial numbers are
    the order of copying, the identity is the user attribute ``paretune.number``. A failed copy
    never disturbs the search.
    """

    def __init__(self, place: Path | Server, name: str, objectives: Sequence[Objective]) -> None:
        self._place, self._name = place, name
        self._objectives = list(objectives)
        self._storage: Any = None
        self._study_id = 0
        self._known: set[int] = set()

    def add(
        self, rows: Iterable[Row], ask_of: Callable[[int], Ask], identity: CompressionPlan | None
    ) -> int:
        """Copy those of ``rows`` that are missing; how many were. Logs and returns 0 on failure."""
        added = 0
        try:
            self._open()
            fresh = [row for row in rows if row.number not in self._known]
            for start in range(0, len(fresh), _AT_ONCE):
                part = fresh[start : start + _AT_ONCE]
                trials = [self._trial(row, ask_of(row.number), identity) for row in part]
                insert_trials(self._storage, self._study_id, trials)
                self._known |= {row.number for row in part}
                added += len(part)
        except Exception as error:  # a copy: whatever Optuna throws must not end the search
            _log.warning("trials not copied to Optuna's tables yet: %s", str(error).split("\n")[0])
        return added

    def add_front(self, front: Mapping[int, Evaluation]) -> None:
        """Write the front once more as a study ``<name>-front`` with every choice as a parameter.

        Only there can Optuna's importance plots see single layers: the parameters of a finished
        trial cannot be extended. Parameters that are the same in all points are left out.
        """
        try:
            self._open()
            self._rewrite_front(front)
        except Exception as error:
            _log.warning("front not copied to Optuna's tables: %s", str(error).split("\n")[0])

    def close(self) -> None:
        """Give back the connections."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()
            self._storage = None

    def _open(self) -> None:
        if self._storage is not None:
            return
        storage = _storage(self._place)
        self._study_id = self._study(storage, self._name)
        with storage.engine.connect() as connection:
            found = connection.execute(_KNOWN, {"study": self._study_id, "key": NUMBER}).scalars()
            self._known = {int(json.loads(value)) for value in found}
        self._storage = storage

    def _study(self, storage: Any, name: str) -> int:
        from optuna.study import StudyDirection

        words = {True: StudyDirection.MAXIMIZE, False: StudyDirection.MINIMIZE}
        directions = [words[o.maximize] for o in self._objectives]
        try:  # asked first: what a duplicate raises differs from one database driver to another
            return int(storage.get_study_id_from_name(name))
        except KeyError:
            with _quietly():
                study = storage.create_new_study(directions, name)
        names = [o.name for o in self._objectives]
        storage.set_study_system_attr(study, "study:metric_names", names)
        return int(study)

    def _trial(self, row: Row, ask: Ask, identity: CompressionPlan | None) -> Any:
        from optuna.distributions import FloatDistribution, IntDistribution

        plan = row.evaluation.plan
        ranges = {
            "mean_weight_bits": FloatDistribution(0.0, 64.0),
            "mean_activation_bits": FloatDistribution(0.0, 64.0),
            "mean_kept_share": FloatDistribution(0.0, 1.0),
            "factorised_layers": IntDistribution(0, max(1, len(plan.layers))),
        }
        summary = {k: v for k, v in plan_summary(plan, identity).items() if k in ranges}
        distributions = {key: ranges[key] for key in summary}
        attributes = {
            NUMBER: row.number,
            "paretune.rung": row.evaluation.rung,
            "paretune.plan": row.evaluation.plan.to_json(),
        }
        if row.parent is not None:
            attributes["paretune.parent"] = row.parent
        return self._frozen(row, summary, distributions, attributes, dict(ask.system_attrs))

    def _frozen(
        self,
        row: Row,
        params: Mapping[str, Any],
        distributions: Mapping[str, Any],
        attributes: dict[str, Any],
        system_attrs: dict[str, Any],
    ) -> Any:
        from optuna.trial import TrialState, create_trial

        evaluation = row.evaluation
        found = [objective_value(evaluation, o) for o in self._objectives]
        values = [value for value in found if value is not None]
        whole = not evaluation.failed and len(values) == len(found)
        if not whole:
            attributes["paretune.cause"] = evaluation.cause or "a value is missing"
        trial = create_trial(
            state=TrialState.COMPLETE if whole else TrialState.FAIL,
            values=values if whole else None,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=attributes,
            system_attrs=system_attrs,
        )
        seconds = sum(evaluation.seconds.values())
        trial.datetime_start = datetime.fromtimestamp(row.finished_at - seconds)
        trial.datetime_complete = datetime.fromtimestamp(row.finished_at)
        return trial

    def _rewrite_front(self, front: Mapping[int, Evaluation]) -> None:
        from optuna.distributions import CategoricalDistribution

        name = f"{self._name}-front"
        study = self._study(self._storage, name)
        marks = {str(number): e.fingerprint for number, e in sorted(front.items())}
        if self._storage.get_study_user_attrs(study).get("paretune.points") == marks:
            return
        self._storage.delete_study(study)
        study = self._study(self._storage, name)
        points = {number: plan_parameters(e.plan) for number, e in front.items()}
        names = sorted(set().union(*points.values()))
        seen = {key: sorted({p.get(key, 0) for p in points.values()}) for key in names}
        varying = {key: CategoricalDistribution(v) for key, v in seen.items() if len(v) > 1}
        for number, evaluation in sorted(front.items()):
            row = Row(number, evaluation, None, datetime.now().timestamp())
            params = {key: points[number].get(key, 0) for key in varying}
            trial = self._frozen(row, params, varying, {NUMBER: number}, {})
            self._storage.create_new_trial(study, template_trial=trial)
        self._storage.set_study_user_attr(study, "paretune.points", marks)


def objective_value(evaluation: Evaluation, objective: Objective) -> float | None:
    """The evaluation's value for an objective, by its bare name or the one with its target."""
    target = str(objective.options.get("target", "")).replace("-", "_")
    value = evaluation.values.get(f"{objective.name}_{target}")
    return evaluation.values.get(objective.name) if value is None else value


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's notes on the terminal."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _storage(place: Path | Server) -> Any:
    import optuna

    with _quietly():
        if not isinstance(place, Path):
            return place.optuna_storage()
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{place.resolve()}",
            engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}},
        )

    @sa.event.listens_for(storage.engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")  # only a copy: it may lag after a power cut

    storage.engine.dispose()
    return storage
