"""The section of a job file that says what a search holds on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .section import Section, Text

Resources = dict[Text, Annotated[float, Field(gt=0, le=1e6)]]
_RAY_NAMES = {"cpu": "CPU", "gpu": "GPU"}


class ClusterSection(Section):
    """What a search holds on a Ray cluster; without one it means nothing.

    resources: of each worker, e.g. ``{cpu: 1, gpu: 0.25}``; other names are the cluster's own.
    training: of a worker while it trains a point (default: resources).
    device: of the one actor that times candidates, e.g. ``{edge-board: 1}`` for the node that was
        started with that resource; targets that are timed by a device agent need none.
    """

    resources: Resources = Field(default_factory=lambda: {"cpu": 1.0})
    training: Resources | None = None
    device: Resources = Field(default_factory=lambda: {"cpu": 1.0})


def ray_names(resources: Resources) -> dict[str, float]:
    """Resources as Ray calls them: ``CPU``, ``GPU``, others as they are; whole numbers whole."""
    return {
        _RAY_NAMES.get(name, name): int(n) if float(n).is_integer() else n
        for name, n in resources.items()
    }
