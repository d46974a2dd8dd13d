"""The table of single options: right, resumable, and only for its own network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import Chromium
from scipy.special import log_softmax
from small_networks import build
from torch import nn

from paretune.objectives.problem import Problem
from paretune.objectives.screen import Screen
from paretune.objectives.sensitivity import EXAMPLES, Sensitivity, measure
from paretune.objectives.sensitivity_page import sensitivity_page, sensitivity_rows
from paretune.operators.normalise import input_moments, reestimating
from paretune.operators.replay import Replay
from paretune.tasks.job import load_job

JOB: dict[str, Any] = {
    "name": "sensitivity",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 16},
        "data": {"kind": "digits"},
    },
    "objectives": ["accuracy", "size_bytes"],
    "compress": {"reconstruct": False, "whiten": False},
}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    torch.manual_seed(0)
    problem = Problem.from_job(load_job(JOB))
    return Screen.for_problem(problem, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def table(screen: Screen) -> Sensitivity:
    return measure(screen, 1e9)


@pytest.mark.parametrize("name", ["residual", "dense", "depthwise", "grouped", "padded"])
def test_skipping_what_ran_before_changes_nothing(name: str) -> None:
    network, example = build(name)
    inputs = torch.randn(4, *example.shape[1:])
    replay = Replay(network, inputs)
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    skipped = 0
    for changed in layers:
        other, _ = build(name)
        whole, _ = build(name)
        for copy in (other, whole):
            with torch.no_grad():
                copy.get_submodule(changed).weight.mul_(0.5)
        skipped += len(replay.skip(other, [changed]))
        with torch.no_grad():
            assert torch.equal(other(inputs), whole(inputs))
            assert not torch.equal(whole(inputs), replay.outputs)
    assert skipped


class _Reader(nn.Module):
    """Reads the weights of a layer that never runs by itself, before another one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(nn.functional.linear(x, self.read.weight)))


def test_nothing_is_skipped_after_a_layer_that_only_lends_its_weights() -> None:
    network, inputs = _Reader(), torch.randn(3, 4)
    replay = Replay(network, inputs)
    with torch.no_grad():
        for layer in (network.read, network.last):
            layer.weight.mul_(0.5)
        whole = network(inputs)
        assert not replay.skip(network, ["read", "last"])
        assert torch.equal(network(inputs), whole)


def test_damage_is_the_divergence_of_the_whole_network(screen: Screen, table: Sensitivity) -> None:
    inputs = screen.calibration_inputs[:EXAMPLES]
    compressor = screen.compressor
    with torch.no_grad():
        want = log_softmax(compressor.original(inputs).double().numpy(), axis=1)
    moments = input_moments(compressor.original, inputs)
    for family in ("keep", "rank"):
        name = next(n for n in table.damage if n.startswith(family))
        work = compressor.shape(screen.space.plan({name: 1}))
        with torch.no_grad(), reestimating(work.network, moments, work.lost):
            work.network(inputs)
        with torch.no_grad():
            got = log_softmax(work.network(inputs).double().numpy(), axis=1)
        kl = (np.exp(want) * (want - got)).sum(1).mean()
        assert table.damage[name][1] == pytest.approx(kl, rel=1e-3, abs=1e-7)


def test_rows_start_at_zero_and_never_fall(screen: Screen, table: Sensitivity) -> None:
    assert table.fits(screen.space)
    for name, row in table.damage.items():
        assert row[0] == 0 and (np.diff(row) >= 0).all(), name
        assert table.measured[name] == tuple(range(1, len(row)))
    assert table.seconds > 0 and table.evaluations > 0


def test_json_round_trip(table: Sensitivity) -> None:
    again = Sensitivity.from_json(json.loads(json.dumps(table.to_json())))
    assert again.to_json() == table.to_json()


def test_a_killed_pass_goes_on(screen: Screen, table: Sensitivity, tmp_path: Path) -> None:
    calls: list[int] = []
    whole = measure(screen, 1e9, tmp_path, lambda done, of: calls.append(done))
    (file,) = tmp_path.glob("sensitivity-*.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(calls) == sum(len(row) - 1 for row in whole.damage.values()) == len(lines) - 1
    file.write_text("\n".join(lines[:6]) + "\n" + lines[6][:9], encoding="utf-8")
    calls.clear()
    again = measure(screen, 1e9, tmp_path, lambda done, of: calls.append(done))
    assert len(calls) == len(lines) - 6
    for name, row in table.damage.items():
        assert again.damage[name] == pytest.approx(row, rel=1e-6, abs=1e-9)
    calls.clear()
    assert measure(screen, 1e9, tmp_path).key == again.key
    assert not calls


def test_a_small_budget_interpolates(screen: Screen, table: Sensitivity) -> None:
    sparse = measure(screen, 1.0)
    assert sum(map(len, sparse.measured.values())) < sum(map(len, table.measured.values()))
    assert sparse.fits(screen.space)
    assert all((np.diff(row) >= 0).all() for row in sparse.damage.values())


def test_another_network_has_a_table_of_its_own(screen: Screen, tmp_path: Path) -> None:
    task = {**JOB["task"], "model_args": {**JOB["task"]["model_args"], "width": 12}}
    other = Screen.for_problem(Problem.from_job(load_job({**JOB, "task": task})), tmp_path)
    first, second = measure(screen, 1.0, tmp_path), measure(other, 1.0, tmp_path)
    assert first.key != second.key
    assert len(list(tmp_path.glob("sensitivity-*.jsonl"))) == 2


def test_the_page_needs_no_network(screen: Screen, table: Sensitivity) -> None:
    rows = sensitivity_rows(screen.space, screen.costs, table)
    assert len(rows) == sum(len(row) - 1 for row in table.damage.values())
    page = sensitivity_page(screen.space, rows, "a <job>")
    assert "a &lt;job&gt;" in page and "Plotly" in page and 'src="http' not in page


@pytest.mark.browser
def test_the_text_of_the_picture_follows_the_page_into_the_dark(
    screen: Screen, table: Sensitivity, tmp_path: Path
) -> None:
    rows = sensitivity_rows(screen.space, screen.costs, table)
    file = tmp_path / "page.html"
    file.write_text(sensitivity_page(screen.space, rows, "job"), encoding="utf-8")
    inks = "['.xtick text', '.ytick text', '.cbaxis text', '.cbtitle text'].map(s => [s, ..."
    inks += "new Set([...document.querySelectorAll(s)].map(t => getComputedStyle(t).fill))])"
    with Chromium(tmp_path / "profile") as browser:
        for scheme, ink in (("light", "rgb(31, 35, 40)"), ("dark", "rgb(230, 237, 243)")):
            wanted = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=wanted)
            browser.open(file.as_uri(), "document.querySelector('.cbtitle text') !== null")
            assert [found[1:] for found in browser.evaluate(inks)] == [[ink]] * 4
