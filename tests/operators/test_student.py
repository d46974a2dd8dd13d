"""Students: smaller networks that learn from the original and serve as a start of their own."""

import pytest
import small_task
import torch
from torch import nn

from paretune.errors import InputError
from paretune.operators.student import train_student
from paretune.spaces.discover import discover
from paretune.tasks.recover_section import RecoverSection
from paretune.tasks.vision import cifar_resnet
from paretune.tasks.weights import load_weights


@pytest.mark.slow
def test_a_student_learns_and_is_a_start_of_its_own(tmp_path):
    """A quarter of the width, from random weights: far above chance, and its file loads again."""
    task = small_task.task()
    torch.manual_seed(0)
    fresh = small_task.Small(width=4)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    file = tmp_path / "student.safetensors"
    section = RecoverSection(epochs=6, lr=0.1, batch=50, features="auto", augment="none")
    done = train_student(task, fresh, section, weights=file)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    again = small_task.Small(width=4).eval()
    load_weights(again, str(file), "weights")
    score = task.score.measure(lambda x: again(x).detach(), task.evaluate).values["accuracy"]
    assert score > 0.6 > 3 * done.first_score
    assert discover(again, task.example).identity.groups["conv1"] == 4


def test_a_student_that_does_not_fit_is_refused():
    task = small_task.task()
    with pytest.raises(InputError, match=r"outputs of \[9\], the original \[10\]"):
        train_student(task, nn.Sequential(nn.Flatten(), nn.Linear(64, 9)))
    with pytest.raises(InputError, match=r"does not take inputs of \[1, 8, 8\]"):
        train_student(task, nn.Conv2d(3, 4, 1))


def test_the_family_has_smaller_members():
    """Depth and width multiply the weights as He et al. 2015, section 4.2, count them."""
    for depth, width in ((8, 16), (20, 8), (14, 12)):
        network, each = cifar_resnet(depth, width=width), (depth - 2) // 6
        found = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))
        counted, inputs = 27 * width, width
        for stage in (1, 2, 4):
            outputs = stage * width
            counted += 9 * outputs * (inputs + (2 * each - 1) * outputs)
            inputs = outputs
        assert found == counted
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(InputError, match="width"):
        cifar_resnet(20, width=0)
