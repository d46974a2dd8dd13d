"""What a person sees in MLflow's pages: names, descriptions, few and rounded numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..objectives.answers import answers, conclusion, markdown
from ..objectives.evaluation import Evaluation
from ..objectives.front import ParetoFront
from ..objectives.wording import legible, points, summary
from ..spaces.plan import CompressionPlan
from .ask import Row
from .plan_summary import plan_summary
from .study import Study

NOTE_LIMIT = 7900  # MLflow cuts a tag at 8000 characters without saying so


def rounded(values: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Values as they read well: whole numbers whole, others to six significant digits."""
    return {
        prefix + key: value if float(value).is_integer() else float(f"{value:.6g}")
        for key, value in values.items()
    }


def trial_params(row: Row, identity: CompressionPlan | None) -> dict[str, str]:
    """At most eight parameters that a person can compare."""
    params = {k: f"{v:g}" for k, v in plan_summary(row.evaluation.plan, identity).items()}
    params["rung"] = row.evaluation.rung
    if row.parent is not None:
        params["parent_trial"] = str(row.parent)
    return params


def search_params(study: Study) -> dict[str, str]:
    """What the search was about; only what cannot change when it is resumed."""
    job = study.job
    task, search = job.get("task") or {}, job.get("search") or {}
    baseline = study.baseline
    found: dict[str, Any] = {
        "model": task.get("model") if isinstance(task, Mapping) else None,
        "model_args": _short(task.get("model_args")) if isinstance(task, Mapping) else None,
        "objectives": ", ".join(o.name for o in study.objectives),
        "constraints": ", ".join(job.get("constraints") or ()),
        "target": _short(job.get("target")),
        "sampler": search.get("sampler") if isinstance(search, Mapping) else None,
        "seed": search.get("seed") if isinstance(search, Mapping) else None,
    }
    if baseline is not None:
        found |= {f"baseline_{k}": f"{v:.15g}" for k, v in rounded(baseline.values).items()}
    return {k: str(v)[:500] for k, v in found.items() if v is not None and str(v) != ""}


def search_title(study: Study, front: ParetoFront) -> str:
    """The parent run's name, the title of its page: the study's name and the answer."""
    return f"{study.name[:120]}: {conclusion(front)}"


def search_note(
    study: Study, front: ParetoFront, view: str | None, files: str | None = None
) -> str:
    """The parent run's description; its first line is the answer.

    view: address of the comparison view; files: of the run's artifacts, for links.
    """
    rows = study.rows("measure")
    failed = sum(row.evaluation.failed for row in rows)
    lines = [
        markdown(front) if answers(front) else f"**{conclusion(front)}**",
        "",
        f"{len(rows)} trials ({failed} failed), {len(front)} points on the front. "
        f"Hypervolume {front.hypervolume():.4f}, near the baseline "
        f"{front.hypervolume_useful():.4f}.",
        "",
        f"Picture: {_link('front.html', files)}. Table: {_link('front.json', files)}, front.csv. "
        f"Plans: {_link('plans.json', files)}.",
        f"The front's runs: filter `{_front_filter(study)}`"
        + (f", or this [comparison view]({view})." if view else "."),
        f"To production: `paretune pull mlflow:RUN_ID --best {_cost(study)} --to OUT`.",
    ]
    return "\n".join(lines)[:NOTE_LIMIT]


def _link(name: str, files: str | None) -> str:
    return f"[{name}]({files}/{name})" if files else name


def trial_note(evaluation: Evaluation, identity: CompressionPlan | None) -> str:
    """A trial's description: what it gave beside the baseline and what was changed, or why it
    failed."""
    if evaluation.failed:
        return f"failed: {evaluation.cause}"
    values = evaluation.values
    score = "accuracy" if "accuracy" in values else "fidelity"
    lost = values.get("accuracy_drop")
    change = "" if lost is None else f" ({points(lost)} points)"
    parts = [legible(score, values.get(score)) + change]
    if "latency_ratio" in values:
        parts.append(f"{values['latency_ratio']:.2f}× latency")
    if "size_ratio" in values:
        parts.append(f"{values['size_ratio']:.2f}× bytes")
    return f"**{', '.join(parts)}** · {summary(evaluation.plan, identity)}"


def trial_metrics(measured: Evaluation, confirmed: Evaluation | None) -> dict[str, float]:
    """The measured values, and beside them the confirmed ones as ``confirmed_...``."""
    out = rounded(measured.values)
    if confirmed is not None and not confirmed.failed:
        out |= rounded(confirmed.values, "confirmed_")
    return out


def shared_view(study: Study, front: ParetoFront) -> tuple[str, str]:
    """(key, value) of the experiment tag that opens a comparison of the front's points.

    This is the state of MLflow's own page, which MLflow does not document: other versions may
    ignore it, and nothing else depends on it.
    """
    names = _compared(study, front)
    base = {"runsCountToCompare": 100, "metricSectionId": "front", "deleted": False}
    charts: list[dict[str, Any]] = [
        {
            **base,
            "type": "SCATTER",
            "uuid": f"front-{place}",
            "xaxis": {"key": name, "type": "METRIC"},
            "yaxis": {"key": names[0], "type": "METRIC"},
        }
        for place, name in enumerate(names[1:])
    ]
    parallel = {"selectedMetrics": names, "selectedParams": ["mean_weight_bits", "mean_kept_share"]}
    charts.append(
        {**base, "type": "PARALLEL", "uuid": "front-all", "showAllRuns": False, **parallel}
    )
    state = {
        "searchFilter": _front_filter(study),
        "orderByKey": f"metrics.`{names[-1]}`",
        "orderByAsc": True,
        "selectedColumns": [f"metrics.`{name}`" for name in names]
        + ["params.`mean_weight_bits`", "params.`mean_kept_share`"],
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                **{"uuid": "front", "name": "Pareto front", "display": True},
                **{"isReordered": False, "columns": 1, "cardHeight": 340},
            }
        ],
        "runsHiddenMode": "SHOWALL",
    }
    return f"paretune-{study.id[:8]}", json.dumps(state)


def _compared(study: Study, front: ParetoFront) -> list[str]:
    """The objectives' metrics: the confirmed values, once every point of the front has them."""
    again = len(front) > 0 and all(point.rung == "confirm" for point in front)
    return [f"confirmed_{o.name}" if again else o.name for o in study.objectives]


def run_files(experiment: str, run: str) -> str:
    """The address of a run's artifacts inside MLflow's pages."""
    return f"#/experiments/{experiment}/runs/{run}/artifacts"


def view_address(experiment: str, key: str) -> str:
    """The link to that view inside MLflow's pages."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART"


def _front_filter(study: Study) -> str:
    return f"tags.pareto = 'true' and tags.\"paretune.study\" = '{study.id}'"


def _cost(study: Study) -> str:
    names = [o.name for o in study.objectives if o.name not in ("accuracy", "fidelity")]
    return next((n for n in names if n.startswith("latency")), names[0] if names else "size_bytes")


def _short(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
