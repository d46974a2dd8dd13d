"""From a job to a task: network, weights, data and score, checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from .data import Splits, load_splits
from .job import Job, load_job
from .model import build_network
from .score import CallableScore, Fidelity, Top1
from .split import AnySplit, check_disjoint
from .task import Loss, Score, Task
from .travel import unpack_task
from .user_code import is_code, last_line, load_callable
from .weights import check_finite, load_weights


def load_task(job: Job | Path | str | Mapping[str, Any], packed: Path | None = None) -> Task:
    """The task of a job file (or of the same as a mapping), ready to be compressed.

    Builds the network, loads its weights and data, and checks that they fit: the network runs on an
    example, labels lie within its outputs, the splits share no example.
    packed: the same task as :func:`.travel.pack_task` wrote it; then nothing is loaded again.
    Raises InputError naming the line at fault, EnvironmentFault when a disk or a download fails.

    >>> task = load_task("job.yaml")
    >>> task.score.measure(task.network_predict, task.evaluate).values["accuracy"]
    """
    job = load_job(job)
    spec, where = job.task, job.where
    network = build_network(spec.model, spec.model_args, where("task.model"), job.folder)
    splits, fingerprint = None, ""
    if packed is not None:
        splits, fingerprint = unpack_task(packed, network)
    elif spec.weights is not None:
        load_weights(
            network, spec.weights, where("task.weights"), spec.model, dict(spec.model_args)
        )
    check_finite(network.state_dict(), where("task.model"))
    if splits is None:
        splits = load_splits(spec.data, lambda key: where(f"task.data.{key}"), job.folder)
    example, outputs = _tried(network, splits.train, where("task.model"))
    _check_inputs_alike(splits, example, where("task.data"))
    if packed is None:  # else it was checked by who packed it
        check_disjoint(splits.train, splits.search, splits.evaluate, where("task.data"))
    loss, divergence = (
        load_callable(named, job.where(f"task.{key}"), job.folder) if named else None
        for key, named in (("loss", spec.loss), ("divergence", spec.divergence))
    )
    _check_recover(job, network)
    score = _score(job, network, splits, outputs, loss, divergence)
    return Task(
        name=job.name,
        network=network,
        example=example,
        train=splits.train,
        search=splits.search,
        evaluate=splits.evaluate,
        score=score,
        fingerprint=fingerprint or _fingerprint(network, splits),
        description={
            "model": spec.model,
            "model_args": dict(spec.model_args),
            "weights": spec.weights,
            "params": sum(p.numel() for p in network.parameters()),
            "data": spec.data.dataset or spec.data.kind,
            "input": list(example.shape[1:]),
            "train": len(splits.train),
            "search": len(splits.search),
            "evaluate": len(splits.evaluate),
            "classes": list(splits.classes),
            "score": spec.score,
        },
        loss=loss,
        divergence=divergence,
    )


def _tried(network: nn.Module, train: AnySplit, where: str) -> tuple[Tensor, Tensor]:
    """(one input, the outputs of up to two inputs), after a trial run."""
    inputs = next(train.batches(2, limit=2))[0]
    try:
        with torch.inference_mode():
            outputs = network(inputs)
    except Exception as error:
        raise InputError(
            where,
            f"the network cannot run on inputs of shape {list(inputs.shape)}: {last_line(error)}",
            "check the size and channels of the data, and model_args",
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(inputs):
        got = (
            f"shape {list(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else type(outputs).__name__
        )
        raise InputError(
            where,
            f"for {len(inputs)} inputs the network gives {got}",
            "it must return one tensor with a row for each input",
        )
    if not bool(torch.isfinite(outputs).all()):
        raise InputError(where, "the network's outputs hold NaN or infinity", "check the weights")
    return inputs[:1].clone(), outputs


def _check_inputs_alike(splits: Splits, example: Tensor, where: str) -> None:
    for split in (splits.search, splits.evaluate):
        shape = next(split.batches(1, limit=1))[0].shape
        if shape != example.shape:
            raise InputError(
                where,
                f"inputs of {split.name!r} are {list(shape[1:])}, of 'train' "
                f"{list(example.shape[1:])}",
                "make them the same shape",
            )


def _check_recover(job: Job, network: nn.Module) -> None:
    """Refuse at once the names that the training after the search would not find."""
    section = job.recover
    if section is None or section.method == "none":
        return
    if section.augment is not None and is_code(section.augment):
        load_callable(section.augment, job.where("recover.augment"), job.folder)
    known = [name for name, _ in network.named_modules() if name]
    for i, name in enumerate(section.features if section.features != "auto" else ()):
        if name not in known:
            where = job.where(f"recover.features[{i}]")
            raise InputError(where, f"no module named {name!r}", nearest(name, known))


def _score(
    job: Job,
    network: nn.Module,
    splits: Splits,
    outputs: Tensor,
    loss: Loss | None,
    divergence: Loss | None,
) -> Score:
    spec, spot = job.task, job.where("task.score")
    if spec.score == "fidelity":

        def original(inputs: Tensor) -> Tensor:
            with torch.inference_mode():
                return network(inputs)  # type: ignore[no-any-return]

        return Fidelity(original, divergence)
    if is_code(spec.score):
        return CallableScore(load_callable(spec.score, spot, job.folder), spot)
    if spec.score != "accuracy":
        raise InputError(
            spot, f"unknown score {spec.score!r:.80}", "known: accuracy, fidelity, module:callable"
        )
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InputError(
            spot,
            f"accuracy needs outputs (n, classes), the network gives {list(outputs.shape)}",
            "use score: fidelity, or your own module:callable",
        )
    for split in (splits.search, splits.evaluate):
        if split.labels is None:
            raise InputError(
                spot,
                f"accuracy needs class numbers, and {split.name!r} has none",
                "use score: fidelity",
            )
    for split in (splits.train, splits.search, splits.evaluate):
        _check_labels(split, outputs.shape[1], job.where("task.data"))
    return Top1(loss)


def _check_labels(split: AnySplit, classes: int, data_spot: str) -> None:
    labels = split.labels
    if labels is None:  # of the training examples: recovery may do without
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            data_spot,
            f"labels of {split.name!r} run from {low} to {high}, the network has {classes} outputs "
            f"(0 to {classes - 1})",
            "correct the labels, or the number of classes in model_args",
        )


def _fingerprint(network: nn.Module, splits: Splits) -> str:
    """sha256 over the tensors (names, shapes, bytes) and the examples of the three splits, with
    their class numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    for split in (splits.train, splits.search, splits.evaluate):
        digest.update(f"{split.name} {len(split)}\n".encode())
        digest.update(split.digest_rows().tobytes())
        if split.labels is not None:
            digest.update(split.labels.tobytes())
    return digest.hexdigest()
