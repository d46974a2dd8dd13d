"""The standard error of a difference on the same examples, beside the plain sample variance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.objectives.paired import packed, paired_error


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=300))
@settings(deadline=None)
def test_it_is_the_deviation_of_the_examples_differences(pairs):
    mine, theirs = (torch.tensor(side) for side in zip(*pairs, strict=True))
    difference = mine.numpy().astype(float) - theirs.numpy().astype(float)
    wanted = difference.std() / np.sqrt(len(pairs))
    found = paired_error(mine, packed(theirs))
    assert found == pytest.approx(max(wanted, 1 / len(pairs)))


def test_it_is_far_surer_than_the_shares():
    rng = np.random.default_rng(0)
    theirs = torch.from_numpy(rng.random(1000) < 0.92)
    flipped = torch.from_numpy(rng.permutation(1000) < 20)
    share = 0.92
    assert (
        paired_error(theirs ^ flipped, packed(theirs)) < 0.6 * (share * (1 - share) / 1000) ** 0.5
    )


def test_other_examples_cannot_be_compared():
    right = torch.ones(100, dtype=torch.bool)
    assert paired_error(right, packed(right[:50])) is None
    assert paired_error(right, None) is None
