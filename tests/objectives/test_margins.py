"""Right answers told from a few examples: exact where nothing changes, close where it is known."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_a_few_stand_for_all() -> None:
    """Deviations of known size: nearer to what all give than a count, nearly without bias."""
    errors = []
    for seed in range(60):
        outputs, labels = drawn(seed)
        noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed + 1000))
        broken = 0.8 * outputs + (0.2 + seed / 40) * noise
        margins = Margins(outputs, labels)
        at = margins.spread(64)
        truth = right(outputs, labels) - right(broken, labels)
        counted = right(outputs[at], labels[at]) - right(broken[at], labels[at])
        errors.append([margins.lost(broken[at], at) - truth, counted - truth])
    told, counted = np.sqrt(np.square(errors).mean(0))
    assert told < 0.8 * counted
    assert abs(np.mean(errors, axis=0)[0]) < 0.03


def test_where_little_is_lost_it_is_told_better_still() -> None:
    """Deviations that grow with the margin and move nothing on the whole, as in mild plans."""
    errors = []
    for seed in range(40):
        outputs, labels = drawn(seed)
        random = torch.Generator().manual_seed(seed + 1000)
        mild = outputs * (1 + (0.02 + seed / 400) * torch.randn(outputs.shape, generator=random))
        margins = Margins(outputs, labels)
        at = margins.spread(64)
        truth = right(outputs, labels) - right(mild, labels)
        counted = right(outputs[at], labels[at]) - right(mild[at], labels[at])
        errors.append([margins.lost(mild[at], at) - truth, counted - truth])
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
