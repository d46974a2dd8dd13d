"""Every augmented image is a window of the mirrored original, flipped or not."""

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.operators.augment import crop_flip, make_augment, unchanged

IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("black", [None, torch.tensor([-2.0, 0.5])])
def test_outputs_are_windows_of_the_padded_image(black):
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 2, 16, 24))).float()
    out = crop_flip(images, torch.Generator().manual_seed(3), black).numpy()
    seen = set()
    for image, made in zip(images.numpy(), out, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="reflect")
        if black is not None:
            padded = np.stack(
                [
                    np.pad(c, ((2, 2), (3, 3)), constant_values=b)
                    for c, b in zip(image, black.tolist(), strict=True)
                ]
            )
        windows = {
            (y, x, flip): padded[:, y : y + 16, x : x + 24][:, :, :: -1 if flip else 1]
            for y in range(5)
            for x in range(7)
            for flip in (False, True)
        }
        matches = [key for key, window in windows.items() if np.allclose(window, made, atol=1e-6)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20 and {flip for _, _, flip in seen} == {False, True}


def test_the_generator_decides_alone():
    images = torch.randn(8, 3, 8, 8)
    first, again = (crop_flip(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, crop_flip(images, torch.Generator().manual_seed(2)))


def test_defaults_and_words():
    images = torch.randn(4, 3, 16, 16)
    random = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(make_augment(None, IMAGE)(images, random[0]), crop_flip(images, random[1]))
    assert make_augment(None, torch.zeros(1, 20)) is unchanged
    assert make_augment("none", IMAGE) is unchanged
    with pytest.raises(
        InputError, match="unknown augmentation 'cropflip'; did you mean 'crop_flip'"
    ):
        make_augment("cropflip", IMAGE)
    with pytest.raises(InputError, match="crop_flip is for images"):
        make_augment("crop_flip", torch.zeros(1, 20))


def test_a_users_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def noisy(inputs, generator):\n    return inputs + 1\n"
        "def small(inputs, generator):\n    return inputs[:, :, 1:]\n"
    )
    noisy = make_augment("mine.py:noisy", IMAGE, "job.yaml:9", tmp_path)
    assert torch.equal(noisy(IMAGE, torch.Generator()), IMAGE + 1)
    small = make_augment("mine.py:small", IMAGE, "job.yaml:9", tmp_path)
    with pytest.raises(InputError, match=r"job.yaml:9: 'mine.py:small' returned \[1, 3, 15, 16\]"):
        small(IMAGE, torch.Generator())
    with pytest.raises(InputError, match="has no 'noisi'"):
        make_augment("mine.py:noisi", IMAGE, "job.yaml:9", tmp_path)
