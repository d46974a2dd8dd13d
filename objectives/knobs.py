"""Which knobs matter: what each single choice of the space does to the network's answers.

Where the search measured the damage of single options (the sensitivity pass of the guided
sampler), that is shown: one thing changed, the rest untouched, no model in between. Else a forest
is fitted to the trials and each knob is shuffled in turn (permutation importance, Breiman 2001,
section 10), and nothing is shown where the forest cannot predict trials that it has not seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .front import ParetoFront

FAMILIES = {
    "keep": "fewer channels",
    "bits": "fewer bits",
    "rank": "low rank",
    "zeros": "zeros",
}
SHOWN = 12
LEAST_TRIALS = 30
LEAST_R2 = 0.3
_TREES, _SHUFFLES = 40, 3


@dataclass(frozen=True)
class Knob:
    """One choice of the space. effect: in the unit of :class:`Knobs`; zero or more."""

    family: str
    layer: str
    effect: float


@dataclass(frozen=True)
class Knobs:
    """All knobs, the strongest first, and how their effect was found.

    unit: of the effects. how: one sentence. logarithmic: how the effects are drawn.
    """

    knobs: tuple[Knob, ...]
    unit: str
    how: str
    logarithmic: bool = False

    @property
    def title(self) -> str:
        """The strongest one, in one line."""
        if not self.knobs:
            return "Which knobs matter cannot be told"
        first = self.knobs[0]
        what = FAMILIES.get(first.family, first.family)
        if self.logarithmic:
            return f"Most harmful alone: {what} in {first.layer}"
        return f"What matters most: {what} in {first.layer} ({first.effect:.2g} points)"


def _knob(parameter: str, effect: float) -> Knob:
    family, _, layer = parameter.partition(":")
    return Knob(family, layer, effect)


def from_sensitivity(folder: Path) -> Knobs | None:
    """From the newest table of single options in a study folder; None where there is none.

    The effect of a knob is that of its strongest measured option.
    """
    paths = sorted(folder.glob("sensitivity-*.jsonl"), key=lambda p: p.stat().st_mtime)
    strongest: dict[str, tuple[int, float]] = {}
    for line in paths[-1].read_text(encoding="utf-8").splitlines() if paths else ():
        try:
            name, option, damage, _ = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        if ":" in name and option > strongest.get(name, (0, 0.0))[0]:
            strongest[name] = int(option), float(damage)
    if not strongest:
        return None
    knobs = [_knob(name, damage) for name, (_, damage) in strongest.items()]
    return Knobs(
        tuple(sorted(knobs, key=lambda k: -k.effect)),
        "divergence from the original's answers, nats (logarithmic)",
        "Each knob turned alone to its strongest option, everything else unchanged: the divergence "
        "of the outputs from the original network's on training images, measured before the search "
        "(no labels used).",
        logarithmic=True,
    )


def from_trials(front: ParetoFront) -> Knobs | None:
    """From the measured trials; None without points, no knobs where nothing can be told."""
    score = front.score
    points = [p for p in front.points if p.rung != "confirm" and score in p.values]
    if not points:
        return None
    table, names = _table(front, points)
    unit = f"{score} points lost by shuffling it"
    if len(points) < LEAST_TRIALS or not names:
        why = f"Only {len(points)} trials differ in their knobs: too few to tell which matter."
        return Knobs((), unit, why)
    from sklearn.ensemble import RandomForestRegressor

    losses = np.array([100 * front.drop(p) for p in points])
    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=0, min_samples_leaf=2)
    forest.fit(table, losses)
    if forest.oob_score_ < LEAST_R2:
        why = (
            f"A forest fitted to {len(points)} trials explains only "
            f"{100 * max(forest.oob_score_, 0):.0f} % of the variance of trials that it has not "
            "seen: too little to tell which knobs matter."
        )
        return Knobs((), unit, why)
    rng, effects = np.random.default_rng(0), {}
    base = np.abs(forest.predict(table) - losses).mean()
    for i in np.argsort(-forest.feature_importances_)[: 2 * SHOWN]:
        grown = []
        for _ in range(_SHUFFLES):
            shuffled = table.copy()
            shuffled[:, i] = rng.permutation(shuffled[:, i])
            grown.append(np.abs(forest.predict(shuffled) - losses).mean() - base)
        effects[names[i]] = max(float(np.mean(grown)), 0.0)
    knobs = [_knob(name, effect) for name, effect in effects.items()]
    how = (
        f"A random forest over {len(points)} trials (out-of-bag R² {forest.oob_score_:.2f}): by "
        "how much its mean error grows when one knob is shuffled among the trials. Correlated "
        "knobs share their effect."
    )
    return Knobs(tuple(sorted(knobs, key=lambda k: -k.effect)), unit, how)


def _table(front: ParetoFront, points: list[Any]) -> tuple[np.ndarray, list[str]]:
    """A row per point, a column per knob that varies: channels, bits, parameters of a low rank."""
    columns: dict[str, list[float]] = {}
    for place, point in enumerate(points):
        row = {f"keep:{name}": float(kept) for name, kept in point.plan.groups.items()}
        for name, choice in point.plan.layers.items():
            row[f"bits:{name}"] = float(choice.weight_bits)
            row[f"rank:{name}"] = float(np.prod(choice.ranks)) if choice.ranks else 1e6
            row[f"zeros:{name}"] = float(choice.sparsity)
        for name, value in row.items():
            columns.setdefault(name, [0.0] * len(points))[place] = value
    varying = {name: values for name, values in columns.items() if len(set(values)) > 1}
    return np.array(list(varying.values())).T, list(varying)
