"""A plan's compressed torch network as a weights file, for a user's own training code."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import InputError
from ..objectives.counts import count_params
from ..operators.apply import apply
from ..operators.trained_file import read_grids, write_trained
from ..spaces.plan import CompressionPlan
from ..tasks.job import load_job
from ..tasks.load import load_task


def apply_plan(plan: Path, job: Path, to: Path, checkpoint: Path | None = None) -> str:
    """Rebuild the network of ``plan`` and write its weights to ``to``; says so in one line.

    plan: a ``plan.json``. job: the job file with the network, its weights and its data (used for
    channel importance and BatchNorm statistics, as in the search). checkpoint: trained tensors of
    the plan. Raises InputError.
    """
    if to.suffix != ".safetensors":
        raise InputError("--to", f"{str(to)!r} has no .safetensors ending", "name it so")
    try:
        data = json.loads(plan.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(plan), f"cannot be read ({error.strerror})", "") from None
    except ValueError as error:
        raise InputError(str(plan), f"is not JSON ({error})", "name a plan.json") from None
    wanted = CompressionPlan.from_json(data, str(plan))
    checked = load_job(job)
    task = load_task(checked)
    calibration = torch.cat(task.calibration(checked.target.calibration))
    network = apply(task.network, wanted, task.example, calibration, checked.compress, checkpoint)
    grids = read_grids(checkpoint) if checkpoint is not None else {}
    write_trained(to, network, grids)
    before, after = count_params(task.network), count_params(network)
    return f"{to}: {after:,} parameters ({after / before:.3f} of the original's {before:,})"
