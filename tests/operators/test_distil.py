"""Distillation against scipy, closed forms and the limit given in the paper."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch.nn import functional as F

from paretune.errors import InputError
from paretune.operators.distil import TrainingLoss, softened_divergence


def drawn(*shape, seed=0, scale=3.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * scale)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 8.0])
def test_softened_divergence_is_scipys_relative_entropy(temperature):
    student, teacher = drawn(7, 5), drawn(7, 5, seed=1)
    p = softmax(teacher.numpy() / temperature, axis=1)
    q = softmax(student.numpy() / temperature, axis=1)
    expected = temperature**2 * rel_entr(p, q).sum() / 7
    assert float(softened_divergence(student, teacher, temperature)) == pytest.approx(
        expected, rel=1e-5
    )


def test_gradient_at_high_temperature_is_that_of_the_logits_difference():
    """Hinton et al. 2015, equation 4: with zero-mean logits, dC/dz -> (z - v) / N."""
    student = drawn(1, 4, scale=0.5)
    teacher = drawn(1, 4, seed=1, scale=0.5)
    student, teacher = (t - t.mean(1, keepdim=True) for t in (student, teacher))
    student.requires_grad_(True)
    softened_divergence(student, teacher, 80.0).backward()
    expected = (student.detach() - teacher) / 4
    assert torch.allclose(student.grad, expected, atol=5e-3)


def test_pixels_count_like_examples_and_single_outputs_by_squares():
    student, teacher = drawn(2, 4, 3, 3), drawn(2, 4, 3, 3, seed=1)
    flat = [t.permute(0, 2, 3, 1).reshape(18, 4) for t in (student, teacher)]
    assert float(softened_divergence(student, teacher, 2.0)) == pytest.approx(
        float(softened_divergence(*flat, 2.0)), rel=1e-6
    )
    one, other = drawn(5, 1), drawn(5, 1, seed=1)
    expected = float(np.mean((one.numpy() - other.numpy()) ** 2))
    assert float(softened_divergence(one, other, 4.0)) == pytest.approx(expected, rel=1e-5)


def test_mix_weighs_both_parts():
    outputs, teacher = drawn(6, 3), drawn(6, 3, seed=1)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    labels = float(F.cross_entropy(outputs.float(), targets))
    soft = float(softened_divergence(outputs, teacher, 3.0))
    for mix in (0.0, 0.3, 1.0):
        got = float(TrainingLoss(mix, 3.0)(outputs, targets, teacher))
        assert got == pytest.approx(mix * soft + (1 - mix) * labels, rel=1e-5)


def test_missing_labels_are_named():
    with pytest.raises(InputError, match=r"recover.mix: the training data have no labels"):
        TrainingLoss(0.5)(drawn(2, 3), None, drawn(2, 3))
    TrainingLoss(1.0)(drawn(2, 3), None, drawn(2, 3))


def test_a_users_loss_and_divergence_are_taken():
    outputs, targets, teacher = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    loss = TrainingLoss(0.25, 1.0, lambda o, t: (o - t).abs().mean(), lambda a, b: (a - b).sum())
    expected = 0.25 * float((teacher - outputs).sum()) + 0.75 * float(
        (outputs - targets).abs().mean()
    )
    assert float(loss(outputs, targets, teacher)) == pytest.approx(expected, rel=1e-5)
    squared = TrainingLoss(0.0)(outputs, targets.float(), None)
    assert float(squared) == pytest.approx(
        float(np.mean((outputs - targets).numpy() ** 2)), rel=1e-5
    )


def test_labels_of_numbers_meet_outputs_one_by_one():
    outputs, targets = drawn(5, 1), drawn(5, seed=1).float()
    found = TrainingLoss(0.0)(outputs, targets, None)
    expected = np.square(outputs[:, 0].numpy() - targets.numpy()).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(
        InputError, match=r"recover: .*outputs has shape \[5, 2\], its labels \[5\]"
    ):
        TrainingLoss(0.0)(drawn(5, 2), targets, None)
