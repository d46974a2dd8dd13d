"""The page of a study: its front with all that the study knows about it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

from ..objectives.knobs import Knobs, from_sensitivity, from_trials
from ..objectives.page import front_page
from .anatomies import anatomies, timed_files
from .study import Study


def study_page(study: Study, profile: bool = False, trials: bool = True, more: str = "") -> str:
    """``front.html`` as text: pictures, per-layer pictures, how the search went, tables.

    profile: time the layers of files that are not timed yet (see :func:`anatomies`). trials:
    whether the importance of knobs may be computed from the trials (seconds) where no sensitivity
    table is there. more: HTML before the footer.
    """
    layers = anatomies(study, profile)
    mark = _mark(study, trials)  # before the trials are read: what comes between is drawn again
    page = front_page(
        study.front(),
        study.measured_front().history(),
        study.name,
        layers,
        study_knobs(study, trials),
        more,
    )
    return page if more else page + mark


def kept_page(study: Study, trials: bool = True) -> str | None:
    """The page in the study's folder, None where it does not show the study as it stands now."""
    try:
        text = (study.folder / "front.html").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.endswith(_mark(study, trials)) else None


def state(study: Study) -> str:
    """A fingerprint of all that a study's page and tables show."""
    base = [study.baseline_at(rung) for rung in ("measure", "confirm")]
    shown = [
        [(row.number, row.evaluation.fingerprint) for row in study.history()],
        [evaluation.fingerprint for evaluation in base if evaluation],
        study.entries(),
        study.job,
        timed_files(study.folder),
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def _mark(study: Study, trials: bool) -> str:
    """The page's last line: what it was drawn from, and by which version."""
    try:
        drawn_by = version("paretune")
    except PackageNotFoundError:
        drawn_by = "unknown"
    return f"<!-- paretune {drawn_by}, study {state(study)}, trials {trials} -->\n"


def study_knobs(study: Study, trials: bool = True) -> Knobs | None:
    """Which knobs matter: from the sensitivity table in the folder, else from the trials."""
    found = from_sensitivity(study.folder)
    if found is None and trials:
        found = from_trials(study.measured_front())
    return found
