"""A smaller network of its own that learns from the original: another place to start a search."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..tasks.recover_section import RecoverSection
from ..tasks.task import Task
from .compress import Compressed
from .recover import Recovered, recover
from .train import Watcher
from .trained_file import write_trained


def train_student(
    task: Task,
    student: nn.Module,
    options: RecoverSection | None = None,
    *,
    weights: Path | None = None,
    state: Path | None = None,
    watcher: Watcher | None = None,
) -> Recovered:
    """Train ``student``, a smaller network (fewer layers or channels), from the task's own.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), section 2, and with
    ``options.features`` "auto" Romero et al., "FitNets" (ICLR 2015), section 2.2: the feature maps
    of each resolution are matched through learned 1x1 projections where widths differ.

    student: freshly initialised or not; not modified; takes the task's inputs and gives outputs of
    the original's shape. options: as in a job's ``recover`` section; a network that starts from
    nothing wants more epochs and a larger ``lr`` than a compressed one. weights: where the trained
    tensors are written: name the file as ``task.weights`` of a job whose ``task.model`` is the
    student, and a search starts from it. state: a file in which the training is kept, to go on
    from when it is interrupted.

    Raises InputError when the student does not fit the task.

    >>> small = cifar_resnet(depth=8, width=12)
    >>> train_student(task, small, RecoverSection(epochs=30, lr=0.1, features="auto"),
    ...               weights=Path("student.safetensors"))
    """
    _check_fit(task, student)
    done = recover(Compressed(student), task, options, state=state, watcher=watcher)
    if weights is not None:
        write_trained(weights, done.network)
    return done


def _check_fit(task: Task, student: nn.Module) -> None:
    with torch.no_grad():
        wanted = task.network(task.example).shape
        training = student.training
        try:
            found = student.eval()(task.example).shape
        except (RuntimeError, ValueError, TypeError) as error:
            given = list(task.example.shape[1:])
            raise InputError(
                "student", f"it does not take inputs of {given}: {error}", "build it for the task"
            ) from error
        finally:
            student.train(training)
    if found != wanted:
        raise InputError(
            "student",
            f"it gives outputs of {list(found[1:])}, the original {list(wanted[1:])}",
            "give it the same outputs",
        )
