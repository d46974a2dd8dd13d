"""The file of a trained compressed network: its tensors and the quantisation steps it learned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError
from ..targets.target import Grid
from ..targets.uniform import to_floats, to_integers
from ..tasks.checkpoint import safetensors_header

_KEY, _VERSION = "paretune.grids", 1
_SLACK = 1e-3  # of a step: the rounding of float32 in training


def write_trained(path: Path, network: nn.Module, grids: Mapping[str, Grid] | None = None) -> None:
    """Write tensors and grids as one ``.safetensors`` file (the grids as JSON in its header).

    Tensors that several layers share are written for each.
    """
    tensors = {name: t.contiguous().clone() for name, t in network.state_dict().items()}
    layers = {name: _to_json(grid) for name, grid in sorted((grids or {}).items())}
    told = json.dumps({"version": _VERSION, "layers": layers}, separators=(",", ":"))
    save_file(tensors, path, metadata={_KEY: told} if layers else None)


def read_grids(path: Path | str, where: str = "checkpoint") -> dict[str, Grid]:
    """The learned grids of a file by :func:`write_trained`, by module name; empty without any.

    Raises InputError when they cannot be read.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        safetensors_header(path, where)
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError) as error:
        raise InputError(where, f"{path.name!r} cannot be read ({error})", "") from None
    if text is None:
        return {}
    try:
        data = json.loads(text)
        if data["version"] != _VERSION:
            raise InputError(where, f"grids of version {data['version']!r}", "take the original")
        return {str(name): _from_json(grid) for name, grid in data["layers"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            where, f"the grids in {path.name!r} are damaged", "take the original"
        ) from None


def on_grids(network: nn.Module, grids: Mapping[str, Grid]) -> bool:
    """Whether the network's weights still are what training left: every one on its grid."""
    modules = dict(network.named_modules())
    for name, grid in grids.items():
        weight: Any = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, torch.Tensor):
            return False
        values, scale = weight.detach().numpy(), grid.weight_scale
        if scale.shape not in ((), (len(values),)):
            return False
        if (scale == 1).all():  # of a layer whose weights stay float32
            continue
        nearest = to_floats(to_integers(values, grid), grid)
        step = scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
        if (np.abs(values - nearest) > _SLACK * step).any():
            return False
    return True


def _to_json(grid: Grid) -> dict[str, Any]:
    if grid.zero_point is not None:
        raise ValueError("learned grids have no zero point")
    return {
        "weight_scale": np.asarray(grid.weight_scale, np.float32).tolist(),
        "input_range": grid.input_range,
        "output_range": grid.output_range,
    }


def _from_json(data: Mapping[str, Any]) -> Grid:
    scale = np.asarray(data["weight_scale"], dtype=np.float32)
    if scale.ndim > 1 or not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("scale")
    return Grid(scale, _range(data["input_range"]), _range(data["output_range"]))


def _range(data: Any) -> tuple[float, float] | None:
    if data is None:
        return None
    low, high = (float(value) for value in data)
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
        raise ValueError("range")
    return low, high
