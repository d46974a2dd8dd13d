"""The front as files: a page to look at, tables to read, and all that a later pull needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..objectives.evaluation import Evaluation
from ..objectives.front import ParetoFront
from .ask import BASELINE
from .job_copy import FILE_NAME as JOB
from .job_copy import write_job
from .screened import screened_table
from .study import Study

VERSION = 1
SCREENED_FILE = "screened.json"
FRONT_FILES = ("front.html", "front.json", "front.csv", "plans.json", "study.json", JOB)


def write_front_files(study: Study, folder: Path, final: bool = True) -> list[Path]:
    """Write ``FRONT_FILES`` into ``folder`` and say where they are.

    ``front.html`` needs no network; ``front.json`` is a table in pandas' "split" form;
    ``plans.json`` has the plan of every front point by trial number; ``study.json`` is
    :func:`study_record`. Screened candidates, if there are any, become one table more,
    ``screened.json``. final: the search has ended, and what takes seconds to compute is shown too.
    """
    from .study_page import kept_page, study_page

    front = study.front()
    table = front.table()
    plans = {str(point.number): point.plan.to_json() for point in front}
    texts = {
        "front.html": kept_page(study, final) or study_page(study, trials=final),
        "front.json": table.to_json(orient="split", index=False, double_precision=15),
        "plans.json": json.dumps(plans, indent=1),
        "study.json": json.dumps(study_record(study, front)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    table.to_csv(folder / "front.csv", index=False)
    write_job(folder, study.job)
    names = list(FRONT_FILES)
    if rows := study.screened():
        text = json.dumps(screened_table(rows))
        (folder / SCREENED_FILE).write_text(text, encoding="utf-8")
        names.append(SCREENED_FILE)
    return [folder / name for name in names]


def study_record(study: Study, front: ParetoFront | None = None) -> dict[str, Any]:
    """The study in one JSON object: the job, the baseline and each front point at every rung.

    ``baseline`` and each entry of ``front`` hold ``rungs``: rung -> evaluation JSON, from which
    :meth:`Evaluation.from_json` reads values, plan and the exported file's sha256.
    """
    front = front if front is not None else study.front()
    rungs: dict[int, dict[str, Any]] = {}
    for row in study.rows():
        rungs.setdefault(row.number, {})[row.evaluation.rung] = row.evaluation.to_json()
    return {
        "version": VERSION,
        "id": study.id,
        "name": study.name,
        "job": study.job,
        "objectives": [{"name": o.name, "options": dict(o.options)} for o in study.objectives],
        "constraints": list(study.job.get("constraints") or ()),
        "trials": len(study.rows("measure")),
        "hypervolume": front.hypervolume(),
        "hypervolume_useful": front.hypervolume_useful(),
        "entries": study.entries(),
        "baseline": {"number": BASELINE, "rungs": _baseline(study)},
        "front": [
            {"number": p.number, "parent": p.parent, "summary": p.summary, "rungs": rungs[p.number]}
            for p in front
        ],
    }


def _baseline(study: Study) -> dict[str, Any]:
    found: dict[str, Evaluation | None] = {
        rung: study.baseline_at(rung) for rung in ("measure", "confirm")
    }
    return {rung: e.to_json() for rung, e in found.items() if e is not None}
