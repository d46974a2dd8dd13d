"""Ray Tune's own parts: its loop, and what suggests its trials, keeps its actors and stops it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from .ray_worker import PLAN, PlanTrial, Site


class ClosedError(Exception):
    """The source of plans is closed."""


FINISHED = str(Searcher.FINISHED)
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "100000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Source(Protocol):
    """Who knows the plans: the pool, asked and told in Tune's thread."""

    @property
    def closed(self) -> bool: ...

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None: ...

    def hear(self, trial_id: str, result: Mapping[str, Any]) -> None: ...

    def complete(self, trial_id: str, result: Mapping[str, Any] | None, lost: bool) -> None: ...

    def note_error(self, text: str) -> None: ...


def run_trials(source: Source, site: Site, workers: int, bundles: Bundles, scratch: str) -> None:
    """Ray Tune's loop, until ``source`` is closed; it ends with an error then.

    scratch: a folder that Tune wants to have.
    """
    os.environ.update(_SETTINGS, TUNE_MAX_PENDING_TRIALS_PG=str(workers))
    for name in ("ray.tune", "ray.air"):  # what matters of it is in the results
        logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable = tune.with_resources(tune.with_parameters(PlanTrial, site=site), bundles)
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Suggestions(source),
            scheduler=_Warm(source, workers),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            name="search",
            stop=_Stop(source),
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()


@dataclass(frozen=True)
class Bundles:
    """What a trial's actor holds: ``training`` while a plan is trained, else ``resources``."""

    resources: Mapping[str, float]
    training: Mapping[str, float]

    def __call__(self, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        trains = PLAN in config and json.loads(config[PLAN])[0]["rung"] == "recover"
        return _held(tuple((self.training if trains else self.resources).items()))


@functools.cache
def _held(resources: tuple[tuple[str, float], ...]) -> tune.PlacementGroupFactory:
    """One object for all trials of a kind: Tune compares them many times a trial, dearly unless
    they are the same."""
    return tune.PlacementGroupFactory([dict(resources)])


class _OfSource:
    """A part of Tune's settings that belongs to the source of plans. Tune copies and pickles its
    settings (to restore a run, which is never done here); there is one source."""

    _source: Source

    def __deepcopy__(self, memo: dict[int, Any]) -> _OfSource:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_OfSource, Searcher):  # type: ignore[misc]
    """Tune's way to the plans that the driver asked the study for."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._source.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "told" in result:
            self._source.hear(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._source.complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study on disk is what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`save`."""


class _Warm(_OfSource, FIFOScheduler):  # type: ignore[misc]
    """First in, first out; and idle actors are kept, as what they have loaded is expensive."""

    def __init__(self, source: Source, workers: int) -> None:
        super().__init__()
        self._source = source
        self._workers = workers
        self._kept: Any = None  # the resources of the actors that are kept
        self._done: Any = None  # the trial that ended last

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Keep as many idle actors as there are workers, of this trial's kind; those that hold
        other resources go, as they would be in its way."""
        held, before = trial.placement_group_factory, self._kept
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        cache = getattr(controller, "_actor_cache", None)
        if held == before or cache is None:  # None: Tune keeps fewer idle actors: slower, not wrong
            return
        if before is not None:
            cache.decrease_max(before, self._workers)
        cache.increase_max(held, self._workers)
        self._kept = held

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its actors died: the last line of what Ray says, if it says anything."""
        with contextlib.suppress(Exception):
            lines = str(trial.get_error() or "").strip().splitlines()
            self._source.note_error(lines[-1] if lines else "")

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune keeps every trial for good; once its answers were taken, it need not keep those."""
        if self._done is not None:
            self._done.config, self._done.evaluated_params = {}, {}
            self._done.last_result.clear()
        self._done = trial

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Whatever is pending, in Tune's own order."""


class _Stop(_OfSource, tune.Stopper):  # type: ignore[misc]
    """Ends the run, with what is at work, when the source is closed.

    By an error, as Tune otherwise writes down and reads again what it knows of every trial: ten
    seconds for 3,000 of them, for nothing.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._source.closed:
            raise ClosedError("closed")
        return False


def _name(trial: Any) -> str:
    return str(trial.trial_id)
