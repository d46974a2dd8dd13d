"""Right answers told from a few examples: exact where nothing changes, close where it is known."""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paretune.objectives.margins import Margins, evenly


def drawn(seed: int, count: int = 1000, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    outputs = torch.randn(count, classes, generator=random)
    return outputs + 3 * torch.nn.functional.one_hot(labels, classes), labels


def right(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.integers(2, 12), st.integers(3, 300))
def test_the_network_itself_loses_nothing(seed: int, classes: int, wanted: int) -> None:
    outputs, labels = drawn(seed, 200, classes)
    margins = Margins(outputs, labels)
    at = margins.spread(wanted)
    assert margins.share_right == right(outputs, labels)
    assert len(at) == min(wanted, 200) == len(set(at.tolist()))
    assert abs(margins.lost(outputs[at], at)) < 1e-9
    assert abs(margins.lost(4 * outputs[at], at)) < 1e-9  # as sure of everything, only more so


def told_and_counted(seeds: int, candidate: Callable[[int, Tensor, Tensor], Tensor]) -> np.ndarray:
    """(seeds, 2): errors of the share lost as told from 64 examples, and as counted on them.

    candidate: (seed, outputs, normal noise) -> its outputs.
    """
    errors = []
    for seed in range(seeds):
        outputs, labels = drawn(seed)
        noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed + 1000))
        changed = candidate(seed, outputs, noise)
        margins = Margins(outputs, labels)
        at = margins.spread(64)
        truth = right(outputs, labels) - right(changed, labels)
        counted = right(outputs[at], labels[at]) - right(changed[at], labels[at])
        errors.append([margins.lost(changed[at], at) - truth, counted - truth])
    return np.array(errors)


def test_a_few_stand_for_all() -> None:
    """Deviations of known size: nearer to what all give than a count, nearly without bias."""
    errors = told_and_counted(60, lambda seed, x, noise: 0.8 * x + (0.2 + seed / 40) * noise)
    told, counted = np.sqrt(np.square(errors).mean(0))
    assert told < 0.8 * counted
    assert abs(errors[:, 0].mean()) < 0.03


def test_where_little_is_lost_it_is_told_better_still() -> None:
    """Deviations that grow with the margin and move nothing on the whole, as in mild plans."""
    errors = told_and_counted(40, lambda seed, x, noise: x * (1 + (0.02 + seed / 400) * noise))
    told, counted = np.sqrt(np.square(errors).mean(0))
    assert told < 0.5 * counted


def test_what_answers_at_random_is_worth_little() -> None:
    outputs, labels = drawn(0)
    margins = Margins(outputs, labels)
    at = margins.spread(64)
    lost = margins.lost(torch.randn(64, 10, generator=torch.Generator().manual_seed(1)), at)
    assert abs(margins.share_right - lost - 0.1) < 0.1


def test_classes_are_drawn_as_often_as_they_occur() -> None:
    outputs, labels = drawn(3)
    at = Margins(outputs, labels).spread(100)
    drawn_share = np.bincount(labels[at].numpy(), minlength=10) / 100
    assert np.abs(drawn_share - np.bincount(labels.numpy()) / 1000).max() <= 0.01


def test_equal_margins_are_no_line() -> None:
    outputs = torch.eye(3).repeat(10, 1)
    margins = Margins(outputs, torch.arange(3).repeat(10))
    at = margins.spread(9)
    assert margins.lost(outputs[at], at) == 0
    assert margins.lost(outputs[at].flip(1), at) > 0.3


def test_evenly_takes_all_where_there_are_few() -> None:
    assert evenly(torch.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly(torch.arange(100), 4).tolist() == [12, 37, 62, 87]
