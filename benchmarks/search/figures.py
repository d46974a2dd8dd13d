"""The table and the plot of a comparison, and the final fronts measured again."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from evaluations import Evaluations

from paretune.objectives.dominance import non_dominated
from paretune.objectives.hypervolume import USEFUL_LOSS, growth, normalized_hypervolume, ratios
from paretune.objectives.objective import Objective

OBJECTIVES = [Objective(n, {}) for n in ("accuracy", "size_bytes", "macs")]
LIMITS = (0.005, 0.01, 0.02)
CONFIRMED_LOSS = 0.40  # the box of the hypervolume; points that lost more are not measured again


def read(path: Path) -> list[dict[str, Any]]:
    """The evaluations of a run that succeeded."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["values"] is not None]


def front(values: Sequence[Mapping[str, float]], base: Mapping[str, float]) -> list[int]:
    """Places of the points on the front, least loss first."""
    _, points = ratios(values, base)
    found = np.flatnonzero(non_dominated(points))
    return [int(i) for i in found[np.argsort(points[found, 0], kind="stable")]]


def confirm(runs: Path, evaluations: Evaluations, most: int, only: str = "") -> None:
    """Measure the exported files of each run's front, on images that no search saw.

    only: a regular expression that samplers' names must match.
    """
    reference = evaluations.confirmed({})["values"]
    table = {}
    for path in sorted(runs.glob("*.jsonl")):
        if not re.search(only, path.stem.rpartition("-")[0].replace("_", " ")):
            continue
        rows = read(path)
        values = [row["values"] for row in rows]
        places = [
            i
            for i in front(values, evaluations.base)
            if evaluations.base["accuracy"] - values[i]["accuracy"] <= CONFIRMED_LOSS
        ]
        if len(places) > most:
            places = [places[round(k * (len(places) - 1) / (most - 1))] for k in range(most)]
        table[path.stem] = [evaluations.confirmed(rows[i]["genotype"])["values"] for i in places]
        (runs / "confirmed.json").write_text(json.dumps({"base": reference, "runs": table}))


def measures(values: Sequence[Mapping[str, float]], base: Mapping[str, float]) -> dict[str, float]:
    """The figures of one front: volumes, useful points, and the best at three losses."""
    losses = np.array([base["accuracy"] - v["accuracy"] for v in values])
    on = front(values, base)
    out = {
        "volume": normalized_hypervolume([values[i] for i in on], base),
        "useful volume": normalized_hypervolume([values[i] for i in on], base, USEFUL_LOSS),
        "within 1 pt": float(sum(losses[i] <= 0.01 for i in on)),
        "within 3 pt": float(sum(losses[i] <= 0.03 for i in on)),
    }
    for limit in LIMITS:
        fit = [v for v, loss in zip(values, losses, strict=True) if loss <= limit]
        for name in ("size_bytes", "macs"):
            best = min((v[name] / base[name] for v in fit), default=float("nan"))
            out[f"{name} at {100 * limit:g} pt"] = best
    return out


def write_report(runs: Path, base: Mapping[str, float], only: Path | None = None) -> str:
    """The table as text, means over seeds, written beside the runs with the plot."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    again = runs / "confirmed.json"
    confirmed = json.loads(again.read_text()) if again.exists() else {"runs": {}, "base": {}}
    for path in [only] if only else sorted(runs.glob("*.jsonl")):
        rows = read(path)
        row = measures([r["values"] for r in rows], base)
        row["sampler ms"] = 1000 * float(np.mean([r["ask_s"] for r in rows]))
        row["seconds"] = sum(r["ask_s"] + r["evaluate_s"] for r in rows)
        row["evaluations"] = rows[-1]["number"]
        if points := confirmed["runs"].get(path.stem):
            fresh = measures(points, confirmed["base"])
            row |= {f"files: {k}": fresh[k] for k in list(fresh)[:4]}
            row["files: size at 1 pt"] = fresh["size_bytes at 1 pt"]
        found[path.stem.rpartition("-")[0].replace("_", " ")].append(row)
    mean = {
        name: {k: float(np.mean([r[k] for r in rows if k in r])) for k in rows[0]}
        for name, rows in found.items()
    }
    order = sorted(mean, key=lambda n: -mean[n]["volume"])
    heads = list(dict.fromkeys(k for n in order for k in mean[n]))
    lines = ["| sampler | seeds | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for name in order:
        cells = [f"{mean[name].get(k, float('nan')):.4g}" for k in heads]
        lines.append(f"| {name} | {len(found[name])} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    if only is None:
        (runs / "table.md").write_text(text + "\n")
        _plot(runs, base)
    return text


def _plot(runs: Path, base: Mapping[str, float]) -> None:
    """Hypervolume against evaluations and against seconds, a curve a run."""
    for axis in ("evaluations", "seconds"):
        figure = go.Figure()
        for path in sorted(runs.glob("*.jsonl")):
            rows = read(path)
            volumes = [s[0] for s in growth([r["values"] for r in rows], base, OBJECTIVES)]
            clock = np.cumsum([r["ask_s"] + r["evaluate_s"] for r in rows])
            x = [r["number"] for r in rows] if axis == "evaluations" else clock.tolist()
            figure.add_scatter(x=x, y=volumes, name=path.stem.replace("_", " "), mode="lines")
        figure.update_layout(xaxis_title=axis, yaxis_title="hypervolume")
        figure.write_html(runs / f"volume-by-{axis}.html", include_plotlyjs="cdn")
