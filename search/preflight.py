"""What can be said of a job and a cluster before torch is imported, which takes many seconds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError
from ..tasks.cluster_section import ray_names
from ..tasks.job import Job
from .ray_connection import check_fits, look

_PATHS = ("task.weights", "task.data.train", "task.data.search", "task.data.evaluate")


def check_cluster(address: str, job: Job) -> None:
    """Raise InputError, in one line, where ``paretune search --ray`` could not work: a path of the
    job that is not here, and what :func:`.ray_connection.look` and :func:`check_room` refuse."""
    check_paths(job)
    check_room(job, look(address))


def check_paths(job: Job) -> None:
    """Raise InputError for weights and folders of data that do not exist on this machine."""
    for key in _PATHS:
        named: Any = job.task
        for part in key.split(".")[1:]:
            named = getattr(named, part, None)
        if isinstance(named, str) and os.path.isabs(named) and not os.path.exists(named):
            raise InputError(
                job.where(key), f"{named!r} does not exist here", "correct it, or put it there"
            )


def check_room(job: Job, nodes: Iterable[Mapping[str, float]]) -> None:
    """Raise InputError when no node has what a worker, a training or the latency device holds.

    nodes: the resources of each living one.
    """
    held, nodes = job.cluster, list(nodes)
    for section, resources in (
        ("cluster.resources", held.resources),
        ("cluster.training", held.training or {}),
        ("cluster.device", held.device),
    ):
        check_fits(section, ray_names(resources), nodes, job.where)
