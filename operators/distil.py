"""What a training minimises: the labels' loss, the original's softened outputs, its features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..tasks.task import Loss


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over examples, in nats.

    student, teacher: outputs (n, classes, ...); further axes are averaged like examples. Outputs
    that are no classes ((n,) or (n, 1)) are compared by their mean squared error. The factor T^2
    keeps the gradient's size when T changes (Hinton, Vinyals and Dean 2015, section 2).
    """
    if student.ndim < 2 or student.shape[1] < 2:
        return F.mse_loss(student.float(), teacher.float())
    classes = student.shape[1]
    soft = (teacher.float() / temperature).movedim(1, -1).reshape(-1, classes).log_softmax(1)
    mine = (student.float() / temperature).movedim(1, -1).reshape(-1, classes).log_softmax(1)
    return F.kl_div(mine, soft, reduction="batchmean", log_target=True) * temperature**2


@dataclass(frozen=True)
class TrainingLoss:
    """mix * distillation + (1 - mix) * labels.

    mix: 0 = labels alone, 1 = the original's outputs alone. loss, divergence: the user's own
    instead of cross-entropy (of class numbers; squared error of float targets) and of
    :func:`softened_divergence`.
    """

    mix: float
    temperature: float = 4.0
    loss: Loss | None = None
    divergence: Loss | None = None

    def __call__(self, outputs: Tensor, targets: Tensor | None, original: Tensor | None) -> Tensor:
        """A scalar for one batch. original: the teacher's outputs, None where mix is 0."""
        total = torch.zeros((), device=outputs.device)
        if self.mix > 0 and original is not None:
            if self.divergence is not None:
                apart = self.divergence(original, outputs)
            else:
                apart = softened_divergence(outputs, original, self.temperature)
            total = total + self.mix * apart
        if self.mix < 1:
            total = total + (1 - self.mix) * self._labelled(outputs, targets)
        return total

    def _labelled(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            raise InputError(
                "recover.mix",
                "the training data have no labels",
                "use method: distil with mix: 1.0",
            )
        if self.loss is not None:
            return self.loss(outputs, targets)  # type: ignore[no-any-return]
        if targets.is_floating_point():
            if outputs.numel() != targets.numel():
                given, wanted = list(outputs.shape), list(targets.shape)
                raise InputError(
                    "recover",
                    f"a batch of outputs has shape {given}, its labels {wanted}",
                    "give labels of the outputs' shape, or a loss of your own",
                )
            return F.mse_loss(outputs.float(), targets.reshape(outputs.shape))
        return F.cross_entropy(outputs.float(), targets)
