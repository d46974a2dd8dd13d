"""Networks that call a layer twice, overwrite what a layer gave, or read it in two places."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paretune.operators import answers, layer_fits, sampling
from paretune.operators.answers import record_answers
from paretune.operators.bias_correction import correct_biases, output_means
from paretune.operators.compress import Compressor
from paretune.operators.curvature import output_curvature
from paretune.operators.fake_quantise import batchnorms_behind, fold_batchnorm
from paretune.operators.importance import gather
from paretune.operators.normalise import input_moments, reestimating
from paretune.operators.trained_file import write_trained
from paretune.spaces.discover import discover


def with_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


class Shared(nn.Module):
    """One convolution and one BatchNorm, both called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = functional.relu(self.bn(self.conv(x)))
        return self.head(x.mean((2, 3)))


class Activated(nn.Module):
    """Branches that end in an activation, as in Darknet; one behind a bare convolution."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.bn_a = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b, self.bn_b = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.act(self.bn_b(self.b(self.act(self.bn_a(self.a(x))))))
        x = x + self.act(self.c(x))
        return self.head(x.mean((2, 3)))


class NormAndActivation(nn.BatchNorm2d):
    """As in timm."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Inside(Activated):
    """The same, its activations inside the BatchNorms."""

    def __init__(self) -> None:
        super().__init__(False)
        self.bn_a, self.bn_b = NormAndActivation(12), NormAndActivation(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.bn_b(self.b(self.bn_a(self.a(x))))
        x = x + self.act(self.c(x))
        return self.head(x.mean((2, 3)))


class TwoReaders(nn.Module):
    """A convolution that a BatchNorm and a shortcut read, as in pre-activation ResNets, and one
    whose output is overwritten before its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn_b = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c, self.bn_c = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.bn_b(self.b(torch.relu(self.bn_a(x))))
        return self.bn_c(torch.relu_(self.c(x)))


@pytest.fixture
def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(48, 3, 8, 8)


def test_only_what_one_batchnorm_alone_reads_is_folded(inputs: Tensor) -> None:
    for network, expected in ((TwoReaders(), {"b": "bn_b"}), (Shared(), {}), (Inside(), {})):
        with_statistics(network)
        assert batchnorms_behind(network, inputs[:1]) == expected
        folded = fold_batchnorm(network, inputs[:1])
        with torch.no_grad():
            torch.testing.assert_close(folded(inputs), network(inputs), atol=1e-4, rtol=1e-4)


def test_statistics_of_a_batchnorm_called_twice_stay_where_nothing_changed(inputs: Tensor) -> None:
    network = with_statistics(Shared())
    before = copy.deepcopy(network.bn.state_dict())
    with reestimating(network, input_moments(network, inputs), {}), torch.no_grad():
        network(inputs)
    for name, tensor in network.bn.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_a_layer_called_twice_that_did_not_change_is_not_corrected(inputs: Tensor) -> None:
    network = with_statistics(Shared())
    before = network.conv.bias.clone()
    means = output_means(network, ["conv"], inputs)
    correct_biases(network, means, inputs, {})
    torch.testing.assert_close(network.conv.bias, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("trained", [True, False])
def test_activations_in_place_or_inside_change_nothing(inputs: Tensor, trained: bool) -> None:
    networks = []
    for make in (lambda: Activated(False), lambda: Activated(True), Inside):
        torch.manual_seed(1)
        networks.append(with_statistics(make()).requires_grad_(trained))
        networks[-1].load_state_dict(networks[0].state_dict())
    found = [output_curvature(network, inputs) for network in networks]
    for name, matrix in found[0].items():
        torch.testing.assert_close(found[1][name], matrix)
        torch.testing.assert_close(found[2][name], matrix)
    outputs = []
    for network in networks:
        space = discover(network, inputs[:1])
        strongest = space.parameters["rank:b"] - 1
        plan = space.plan({"keep:a": 1, "rank:b": strongest, "rank:c": 1})
        assert plan.layers["b"].method
        small = Compressor(network, inputs[:1], space, inputs).compress(plan).network
        with torch.no_grad():
            outputs.append(small(inputs))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def test_importance_looks_at_as_many_inputs_as_fit(
    inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = with_statistics(TwoReaders()), []
    network.a.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    gather(network, "activation", inputs)
    monkeypatch.setattr(sampling, "_OUTPUT_BYTES", 10 * 4 * 6 * 8 * 8)
    gather(network, "activation", inputs)
    assert [n for n in seen if n > 1] == [48, 10]


def test_a_weight_that_two_layers_share_is_written_and_read_back(tmp_path) -> None:
    from safetensors.torch import load_file

    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    write_trained(tmp_path / "a.safetensors", network)
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(network.state_dict())
    assert torch.equal(found["1.weight"], network[0].weight)


class StandardisedConv(nn.Conv2d):
    """Its weights are standardised first, as in Big Transfer's networks."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class PaddedConv(nn.Conv2d):
    """Pads as TensorFlow does: more than its ``padding`` says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 2, 1, 2)))


@pytest.mark.parametrize("kind", [StandardisedConv, PaddedConv])
def test_a_convolution_with_a_forward_of_its_own_is_left_alone(
    inputs: Tensor, kind: type[nn.Conv2d]
) -> None:
    torch.manual_seed(0)
    network = with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            kind(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3),
        )
    )
    space = discover(network, inputs[:1])
    assert kind.__name__ in space.frozen["4"]
    assert "4" not in {layer.name for layer in space.layers}
    assert {group.name for group in space.groups} == {"0", "7"}  # it makes 4 and reads 2
    assert batchnorms_behind(network, inputs[:1]) == {}
    plan = space.plan({name: count - 1 for name, count in space.parameters.items()})
    small = Compressor(network, inputs[:1], space, inputs).compress(plan).network
    assert torch.equal(small[4].weight, network[4].weight)
    with torch.no_grad():
        assert torch.isfinite(small(inputs)).all()


class ChannelsLast(nn.Module):
    """Linear layers over an image, (n, h, w, channels), as in ConvNeXt and Swin; ``flat``: the same
    over tokens, (n, h w, channels)."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.stem, self.flat = nn.Conv2d(3, 8, 3, padding=1), flat
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).permute(0, 2, 3, 1)
        x = x.flatten(1, 2) if self.flat else x
        x = functional.gelu(self.down(functional.gelu(self.up(x))))
        return self.head(x.mean(1) if self.flat else x.mean((1, 2)))


@pytest.mark.parametrize("chosen", [{"keep:up": 1}, {"rank:down": 1}, {"keep:stem": 1}])
def test_linear_layers_over_an_image_are_fitted_as_over_tokens(
    inputs: Tensor, chosen: dict[str, int]
) -> None:
    outputs = []
    for flat in (True, False):
        torch.manual_seed(1)
        network = ChannelsLast(flat).eval()
        space = discover(network, inputs[:1])
        small = Compressor(network, inputs[:1], space, inputs).compress(space.plan(chosen)).network
        with torch.no_grad():
            outputs.append(small(inputs))
    torch.testing.assert_close(outputs[1], outputs[0])


class Windows(ChannelsLast):
    """The same on four windows of the image, as Swin's attention."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).permute(0, 2, 3, 1)
        x = x.reshape(-1, 4, 16, 8)
        x = x if self.flat else x.flatten(0, 1)
        x = functional.gelu(self.down(functional.gelu(self.up(x))))
        x = x if self.flat else x.unflatten(0, (-1, 4))
        return self.head(x.mean((1, 2)))


def test_layers_that_see_windows_are_fitted_quickly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(48, 3, 8, 8)
    monkeypatch.setattr(layer_fits, "EXAMPLES", 32)
    outputs = []
    for flat in (True, False):
        torch.manual_seed(1)
        network = Windows(flat).eval()
        space = discover(network, inputs[:1])
        compressor = Compressor(network, inputs[:1], space, inputs)
        small = compressor.shape(space.plan({"rank:up": 1, "rank:down": 1})).network
        with torch.no_grad():
            outputs.append(small(inputs))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_answers_take_no_more_memory_than_they_may(
    inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = with_statistics(Activated(False))
    whole = record_answers(network, inputs).outputs
    monkeypatch.setattr(answers, "MOST_BYTES", 200_000)
    noted = record_answers(network, inputs)
    assert sum(out.nbytes for out in noted.outputs.values()) <= 200_000
    assert sum(out.nbytes for out in whole.values()) > 400_000
    assert noted.outputs["head"].shape == (48, 1, 5) and noted.outputs["b"].shape[1] > 10
    space = discover(network, inputs[:1])
    small = Compressor(network, inputs[:1], space, inputs).compress(space.plan({"keep:a": 1}))
    with torch.no_grad():
        assert torch.isfinite(small.network(inputs)).all()
