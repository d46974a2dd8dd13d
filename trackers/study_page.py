"""The page of a study: its front with all that the study knows about it."""

from __future__ import annotations

from ..objectives.knobs import Knobs, from_sensitivity, from_trials
from ..objectives.page import front_page
from .anatomies import anatomies
from .study import Study


def study_page(study: Study, profile: bool = False, trials: bool = True, more: str = "") -> str:
    """``front.html`` as text: pictures, per-layer pictures, how the search went, tables.

    profile: time the layers of files that are not timed yet (see :func:`anatomies`). trials:
    whether the importance of knobs may be computed from the trials (seconds) where no sensitivity
    table is there. more: HTML before the footer.
    """
    return front_page(
        study.front(),
        study.measured_front().history(),
        study.name,
        anatomies(study, profile),
        study_knobs(study, trials),
        more,
    )


def study_knobs(study: Study, trials: bool = True) -> Knobs | None:
    """Which knobs matter: from the sensitivity table in the folder, else from the trials."""
    found = from_sensitivity(study.folder)
    if found is None and trials:
        found = from_trials(study.measured_front())
    return found
