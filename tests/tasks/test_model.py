"""Networks that a job names: built right, or refused with one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from paretune.errors import InputError
from paretune.tasks.model import build_network
from paretune.tasks.user_code import load_callable

SOURCE = """\
import torch
from torch import nn
from beside_the_net import WIDTH

def make(classes=10):
    net = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, classes)).train().double()
    net[1].weight.requires_grad_(False)
    return net

def raises():
    raise RuntimeError("no weights here\\nsecond line")

def leaves():
    raise SystemExit(3)

def nothing():
    return {"a": 1}

def empty():
    return nn.Sequential(nn.ReLU())

def meta():
    with torch.device("meta"):
        return nn.Linear(2, 2)

NUMBER = 3
"""


@pytest.fixture
def net_file(tmp_path: Path) -> Path:
    (tmp_path / "beside_the_net.py").write_text("WIDTH = 12\n")
    sys.modules.pop("beside_the_net", None)
    (tmp_path / "net.py").write_text(SOURCE)
    yield tmp_path / "net.py"
    sys.modules.pop("beside_the_net", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def refusal(spec: str, args: dict | None = None, folder: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        build_network(spec, args or {}, "job.yaml:3: task.model", folder)
    message = str(caught.value)
    assert message.startswith("job.yaml:3: task.model: ") and "\n" not in message
    return message


def test_a_factory_in_a_file(net_file: Path) -> None:
    network = build_network("net.py:make", {"classes": 4}, "here", net_file.parent)
    assert not network.training
    assert network(torch.zeros(1, 3, 2, 2)).shape == (1, 4)
    assert network[1].weight.dtype == torch.float32
    assert not network[1].weight.requires_grad and network[1].bias.requires_grad
    again = build_network(f"{net_file}:make", {}, "here")
    assert type(again) is type(network)


def test_a_changed_file_is_read_again(net_file: Path) -> None:
    net_file.write_text("VALUE = 1\ndef f(): return VALUE\n")
    assert load_callable(f"{net_file}:f", "here")() == 1
    net_file.write_text("VALUE = 22\ndef f(): return VALUE\n")
    assert load_callable(f"{net_file}:f", "here")() == 22


def test_a_factory_in_a_module() -> None:
    network = build_network("paretune.tasks.vision:plain_cnn", {"convs": 4, "width": 4}, "here")
    assert isinstance(network, nn.Module) and not network.training


def test_a_module_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "my_own_nets_q.py").write_text(
        "from torch import nn\nclass Nets:\n"
        "    @staticmethod\n    def small(): return nn.Linear(2, 2)\n"
    )
    network = build_network("my_own_nets_q:Nets.small", {}, "here", tmp_path)
    assert isinstance(network, nn.Linear)
    sys.path.remove(str(tmp_path))


def test_what_is_wrong_with_a_factory_is_told(net_file: Path) -> None:
    here = net_file.parent
    assert "'no_such_module_x'" in refusal("no_such_module_x:make")
    assert "no such file" in refusal("absent.py:make", folder=here)
    assert "did you mean 'make'?" in refusal("net.py:mak", folder=here)
    assert "is a int, not a callable" in refusal("net.py:NUMBER", folder=here)
    assert "RuntimeError: no weights here" in refusal("net.py:raises", folder=here)
    assert "raised SystemExit" in refusal("net.py:leaves", folder=here)
    assert "returned a dict; return a torch.nn.Module" in refusal("net.py:nothing", folder=here)
    assert "has no parameters" in refusal("net.py:empty", folder=here)
    assert "cannot be moved to the CPU" in refusal("net.py:meta", folder=here)
    assert "unexpected keyword argument" in refusal("net.py:make", {"depth": 3}, here)
    assert "unexpected keyword argument 'spec'" in refusal("net.py:make", {"spec": 3}, here)
    assert "is not module:callable" in refusal("make")
    assert "is not a module's name" in refusal("a b:make")
    assert "there is no depth 21; known: 8, 14, 20, 32" in refusal(
        "paretune.tasks.vision:cifar_resnet", {"depth": 21}
    )


def test_broken_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = (\n")
    assert "SyntaxError" in refusal("bad.py:make", folder=tmp_path)
    (tmp_path / "bad.py").write_text("import no_such_dependency_y\n")
    assert "No module named 'no_such_dependency_y'" in refusal("bad.py:make", folder=tmp_path)
    (tmp_path / "mod_needs_more.py").write_text("import no_such_dependency_y\n")
    assert "importing 'mod_needs_more' raised" in refusal("mod_needs_more:make", folder=tmp_path)
    sys.path.remove(str(tmp_path))


def test_torchvision_names() -> None:
    network = build_network("torchvision:squeezenet1_1", {"num_classes": 5}, "here")
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert "did you mean 'resnet18'?" in refusal("torchvision:resnet81")
    assert "no classifier" in refusal("torchvision:fasterrcnn_resnet50_fpn")
    assert "use task.weights" in refusal("torchvision:resnet18", {"weights": "DEFAULT"})
    assert "raised TypeError" in refusal("torchvision:resnet18", {"clases": 3})


def test_the_package_is_never_importable_as_loose_folders() -> None:
    """A job beside the package must not load a second copy of it."""
    code = (
        "import sys, paretune; from pathlib import Path;"
        "from paretune.tasks.user_code import load_callable;"
        "root = Path(paretune.__file__).parent;"
        "load_callable('math:sqrt', 'x', root); assert str(root) not in sys.path"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
