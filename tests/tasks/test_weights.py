"""Weights: loaded right, or refused before anything is copied."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paretune.errors import EnvironmentFault, InputError
from paretune.tasks.vision import plain_cnn
from paretune.tasks.weights import load_weights


def network() -> nn.Module:
    return plain_cnn(4, classes=3, channels=1, size=8, width=4)


@pytest.fixture
def good() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {n: t.clone() for n, t in network().state_dict().items()}


def refusal(path: Path | str, model: str = "") -> str:
    net = network()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_weights(net, str(path), "task.weights", model)
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert message.startswith("task.weights: ") and "\n" not in message and len(message) < 1200
    assert "weights_only" not in message and "safe_globals" not in message
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    return message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "old.pt"])
def test_loads_equal_tensors(tmp_path: Path, good, name: str) -> None:
    if name.endswith("safetensors"):
        save_file(good, tmp_path / name)
    else:
        zipped = name != "old.pt"
        torch.save(good, tmp_path / name, _use_new_zipfile_serialization=zipped)
    net = network()
    load_weights(net, str(tmp_path / name), "here")
    assert all(torch.equal(t, good[n]) for n, t in net.state_dict().items())


def test_batch_counts_may_be_absent_and_half_floats_are_widened(tmp_path: Path, good) -> None:
    lean = {n: t.half() for n, t in good.items() if not n.endswith("num_batches_tracked")}
    save_file(lean, tmp_path / "w.safetensors")
    net = network()
    load_weights(net, str(tmp_path / "w.safetensors"), "here")
    name = "features.0.weight"
    assert torch.equal(net.state_dict()[name], good[name].half().float())


def test_a_tied_tensor_may_be_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    save_file({"a.weight": torch.eye(3)}, tmp_path / "w.safetensors")
    net = Tied()
    load_weights(net, str(tmp_path / "w.safetensors"), "here")
    assert torch.equal(net.b.weight, torch.eye(3))


def test_names_that_do_not_fit(tmp_path: Path, good) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"module." + n: t for n, t in good.items()}, file)
    assert "the prefix 'module.'" in refusal(file)
    fewer = dict(good)
    del fewer["classifier.bias"]
    save_file(fewer, file)
    assert "1 of the network's tensors are missing: classifier.bias" in refusal(file)
    save_file(good | {f"extra{i}": torch.zeros(1) for i in range(9)}, file)
    assert "9 are not in the network: extra0, extra1, extra2, extra3, extra4 ..." in refusal(file)
    inner = {n.removeprefix("features."): t for n, t in good.items() if n.startswith("features.")}
    save_file(inner, file)
    assert "the network's names carry the prefix 'features.'" in refusal(file)


def test_shapes_that_do_not_fit(tmp_path: Path, good) -> None:
    file = tmp_path / "w.safetensors"
    save_file(good | {"classifier.weight": torch.zeros(10, 8)}, file)
    told = refusal(file)
    assert "classifier.weight is [10, 8], the network's is [3, 8]" in told
    save_file(good | {"classifier.weight": torch.zeros(3, 8, dtype=torch.int8)}, file)
    assert "classifier.weight holds whole numbers" in refusal(file)


def test_values_that_are_not_finite(tmp_path: Path, good) -> None:
    bad = {n: t.clone() for n, t in good.items()}
    bad["classifier.weight"][0, 0] = float("nan")
    bad["classifier.weight"][1, 1] = float("inf")
    save_file(bad, tmp_path / "w.safetensors")
    assert "2 weights are NaN or infinite, first in 'classifier.weight'" in refusal(
        tmp_path / "w.safetensors"
    )


class _Runs:
    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    code = _Runs()
    code.canary = tmp_path / "canary"
    torch.save({"a": code}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    told = refusal(tmp_path / "w.pt")
    assert "holds code" in told and "system" in told and "safetensors" in told
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(code))
    assert "holds code" in refusal(tmp_path / "plain.pt")
    assert not (tmp_path / "canary").exists()


def test_whole_modules_and_programs_are_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    assert "holds code (paretune.tasks.vision.PlainCnn)" in refusal(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as archive:  # the records of TorchScript
        archive.writestr("s/constants.pkl", b"\x80\x02).")
        archive.writestr("s/code/__torch__.py", "class Linear(Module): pass")
    assert "is a program" in refusal(tmp_path / "s.pt")


def test_nested_checkpoints(tmp_path: Path, good) -> None:
    torch.save({"state_dict": good, "epoch": 3}, tmp_path / "w.pt")
    assert "lie inside 'state_dict'; save only checkpoint['state_dict']" in refusal(
        tmp_path / "w.pt"
    )
    torch.save(good | {"epoch": 3}, tmp_path / "w.pt")
    assert "'epoch' in 'w.pt' is a int" in refusal(tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "w.pt")
    assert "holds a list, not a state_dict" in refusal(tmp_path / "w.pt")
    torch.save({}, tmp_path / "w.pt")
    assert "holds no tensors" in refusal(tmp_path / "w.pt")


def test_an_expanded_tensor_is_refused_by_its_shape(tmp_path: Path, good) -> None:
    torch.save(good | {"classifier.bias": torch.zeros(1).expand(10**11)}, tmp_path / "w.pt")
    assert "classifier.bias is [100000000000], the network's is [3]" in refusal(tmp_path / "w.pt")


def test_a_zip_bomb_is_refused_unread(tmp_path: Path, good) -> None:
    torch.save(good, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
        packed.writestr("w/data/99", b"\0" * 200_000_000)
    assert "unfolds to 200," in refusal(tmp_path / "bomb.pt")


def test_files_that_are_something_else(tmp_path: Path, good) -> None:
    save_file(good, tmp_path / "good.safetensors")
    assert "did you mean 'good.safetensors'?" in refusal(tmp_path / "god.safetensors")
    assert "is a folder" in refusal(tmp_path)
    torch.save(good, tmp_path / "good.pt")
    for suffix in (".safetensors", ".pt"):
        file = tmp_path / f"w{suffix}"
        file.write_bytes(b"")
        assert "is empty" in refusal(file)
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert "git-lfs pointer; run `git lfs pull`" in refusal(file)
        file.write_bytes(b"<!DOCTYPE html><html></html>")
        assert "is a web page" in refusal(file)
        whole = (tmp_path / f"good{suffix}").read_bytes()
        for part in (3, 50, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:part])
            told = refusal(file)
            assert "cut off" in told or "not a" in told or "damaged" in told
        file.write_bytes(b"some text that is no weights at all")
        assert "cut off" in refusal(file)
    (tmp_path / "w.h5").write_bytes(b"x")
    assert "is no weights file" in refusal(tmp_path / "w.h5")


def test_hostile_safetensors_headers(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"

    def write(header: bytes, data: bytes = b"", length: int | None = None) -> Path:
        file.write_bytes(
            struct.pack("<Q", len(header) if length is None else length) + header + data
        )
        return file

    assert "cut off" in refusal(write(b"{}", length=2**62))
    assert "broken safetensors header" in refusal(write(b"{" * 100))
    assert "broken safetensors header" in refusal(write(b"[1]"))
    assert "broken safetensors header" in refusal(write(b'{"a": 3}'))
    assert "broken safetensors header" in refusal(write(b"[" * 100_000))
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    assert "cut off" in refusal(write(json.dumps({"a": entry}).encode()))
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
    assert "100,001 tensors, over 100,000" in refusal(write(json.dumps(many).encode()))
    huge = {"a": {"dtype": "F32", "shape": [0, 10**15], "data_offsets": [0, 0]}}
    assert "missing" in refusal(write(json.dumps(huge).encode()))


def test_torchvision_weights_need_a_torchvision_model(monkeypatch) -> None:
    assert "fit torchvision's networks only" in refusal("torchvision:IMAGENET1K_V1")
    told = refusal("torchvision:IMAGENET1K_V9", "torchvision:resnet18")
    assert "did you mean 'IMAGENET1K_V1'?" in told


def test_a_download_that_fails_is_the_environments_fault(monkeypatch, tmp_path) -> None:
    import torch.hub

    def no_network(*args: object, **named: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="cannot be downloaded .*Network is unreachable"):
        load_weights(network(), "torchvision:IMAGENET1K_V1", "here", "torchvision:resnet18")


def test_torchvision_weights_from_the_local_store(monkeypatch, tmp_path) -> None:
    """With the file in place nothing is downloaded and names are torchvision's."""
    import torchvision
    from torchvision.models._api import WeightsEnum

    source = torchvision.models.squeezenet1_1()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *a, **k: source.state_dict())
    net = torchvision.models.squeezenet1_1()
    load_weights(net, "torchvision:IMAGENET1K_V1", "here", "torchvision:squeezenet1_1")
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in net.state_dict().items())


def test_code_in_the_local_store_is_refused_and_not_run(monkeypatch, tmp_path) -> None:
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    store = tmp_path / "hub" / "checkpoints"
    store.mkdir(parents=True)
    code = _Runs()
    code.canary = tmp_path / "canary"
    torch.save({"a": code}, store / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    told = refusal("torchvision:IMAGENET1K_V1", "torchvision:resnet18")
    assert "holds code, not only weights" in told
    assert not (tmp_path / "canary").exists()
