"""A packed task is the task: same network, same examples, same fingerprint, nothing loaded anew."""

import dataclasses
import tracemalloc

import pytest
import torch

from paretune.errors import InputError
from paretune.tasks.load import load_task
from paretune.tasks.split import ImageSplit
from paretune.tasks.travel import pack_task

DIGITS = {
    "name": "digits",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 4},
        "data": {"kind": "digits", "mean": [0.3], "std": [0.35]},
    },
}


def test_a_packed_task_equals_the_task(tmp_path):
    torch.manual_seed(1)
    task = load_task(DIGITS)
    path = tmp_path / "task.safetensors"
    pack_task(task, path)
    torch.manual_seed(2)  # the network is built anew with other weights, then filled
    again = load_task(DIGITS, path)
    assert again.fingerprint == task.fingerprint
    assert again.description == task.description
    assert torch.equal(again.network_predict(task.example), task.network_predict(task.example))
    for name in ("train", "search", "evaluate"):
        first, second = getattr(task, name), getattr(again, name)
        assert first.digests() == second.digests()
        for (a, b), (c, d) in zip(first.batches(100), second.batches(100), strict=True):
            assert torch.equal(a, c) and torch.equal(b, d)
    images = task.train.images.nbytes
    assert path.stat().st_size < 1.5 * images + 100_000  # shared by the splits, once in the file
    wider = {**DIGITS["task"], "model_args": {**DIGITS["task"]["model_args"], "convs": 5}}
    with pytest.raises(InputError, match="the network built here is another than the packed one"):
        load_task({**DIGITS, "task": wider}, path)


def test_packing_copies_no_images(tmp_path):
    """What Python allocates meanwhile is a small part of what is written."""
    images = torch.zeros(8192, 1, 32, 32, dtype=torch.uint8)
    split = ImageSplit("train", images, torch.zeros(8192, dtype=torch.int64), [0.5], [0.5])
    split.digest_rows()
    task = dataclasses.replace(load_task(DIGITS), train=split, search=split, evaluate=split)
    tracemalloc.start()
    try:
        pack_task(task, tmp_path / "task.safetensors")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "task.safetensors").stat().st_size > images.nbytes
    assert peak < images.nbytes / 4
