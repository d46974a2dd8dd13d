"""Recovery on real digits: it wins accuracy back, is exact, resumable, and refuses clearly."""

import math
import resource
from dataclasses import replace

import numpy as np
import pytest
import small_task
import torch
from torch.nn import functional as F

from paretune.errors import CandidateError, EnvironmentFault, InputError
from paretune.operators import train
from paretune.operators.augment import unchanged
from paretune.operators.compress import Compressed, Compressor
from paretune.operators.recover import recover
from paretune.operators.train import Training
from paretune.tasks.compress_section import CompressSection
from paretune.tasks.recover_section import RecoverSection


@pytest.fixture(scope="module")
def task():
    return small_task.task()


@pytest.fixture(scope="module")
def made(task):
    space, plan = small_task.quartered(task)
    inputs = torch.cat(task.calibration())
    rough = CompressSection(reconstruct=False, importance="l1")  # leaves something to win back
    return Compressor(task.network, task.example, space, inputs, rough).compress(plan)


def accuracy(task, network):
    return task.score.measure(lambda x: network(x).detach(), task.search).values["accuracy"]


def same(a, b):
    return all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"method": "distil", "features": "auto"},
        {"method": "finetune", "optimiser": "adamw", "lr": 0.005},
        {"method": "distil", "mix": 1.0, "schedule": "step"},
    ],
)
def test_training_wins_accuracy_back(task, made, options):
    before = accuracy(task, made.network)
    section = RecoverSection(epochs=4, batch=50, augment="none", **options)
    done = recover(made, task, section)
    assert accuracy(task, done.network) > before + 0.1
    assert max(done.scores) > done.first_score
    assert accuracy(task, made.network) == before
    assert not done.network.training
    assert done.steps == 4 * (900 // 50)


def test_the_loop_is_plain_sgd(task, made):
    """The same batches through a loop written out with torch give the same tensors."""
    import copy

    batches = []

    def spy(inputs, generator):
        batches.append(inputs.clone())
        return inputs

    network = copy.deepcopy(made.network).requires_grad_(True)
    reference = copy.deepcopy(network)
    options = RecoverSection(
        epochs=2, batch=90, mix=0.5, temperature=3.0, lr=0.02, weight_decay=0.0, warmup=0.1,
        precision="fp32",  # else bfloat16, where the processor has it
    )  # fmt: skip
    training = Training(network, task.network, task, options, spy)
    training.run()
    assert len(batches) == 20
    inputs, labels = task.train.take(np.arange(len(task.train)))
    lookup = {row.numpy().tobytes(): int(label) for row, label in zip(inputs, labels, strict=True)}
    optimiser = torch.optim.SGD(reference.parameters(), lr=1.0, momentum=0.9, nesterov=True)
    reference.train()
    for step, batch in enumerate(batches):
        done = step / 20
        factor = done / 0.1 if done < 0.1 else math.cos(math.pi / 2 * (done - 0.1) / 0.9) ** 2
        optimiser.param_groups[0]["lr"] = 0.02 * factor
        targets = torch.tensor([lookup[row.numpy().tobytes()] for row in batch])
        outputs = reference(batch)
        with torch.no_grad():
            wanted = (task.network(batch) / 3.0).softmax(1)
        soft = 9.0 * F.kl_div((outputs / 3.0).log_softmax(1), wanted, reduction="batchmean")
        optimiser.zero_grad()
        (0.5 * soft + 0.5 * F.cross_entropy(outputs, targets)).backward()
        optimiser.step()
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(network.state_dict()[name], tensor, atol=2e-4), name


@pytest.mark.parametrize(("optimiser", "stop_at"), [("sgd", 7), ("adamw", 18), ("sgd", 29)])
def test_a_resumed_training_equals_an_uninterrupted_one(
    task, made, tmp_path, monkeypatch, optimiser, stop_at
):
    options = RecoverSection(epochs=3, batch=50, features="auto", optimiser=optimiser, patience=9)
    whole = recover(made, task, options)
    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    state = tmp_path / "state.safetensors"

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step == stop_at + 1:
            raise Killed

    with pytest.raises(Killed):
        recover(made, task, options, state=state, watcher=kill)
    seen = []
    torch.manual_seed(99)  # what the process drew in between does not matter
    again = recover(made, task, options, state=state, watcher=lambda p: seen.append(p.step))
    assert seen[0] == stop_at + 1
    assert same(whole.network, again.network)
    assert again.scores == whole.scores and again.steps == whole.steps
    once_more = recover(made, task, options, state=state)  # it is over: nothing is trained
    assert same(whole.network, once_more.network)


def test_a_state_that_is_no_use_is_not_used(task, made, tmp_path):
    options = RecoverSection(epochs=1, batch=100)
    state = tmp_path / "state.safetensors"
    whole = recover(made, task, options, state=state)
    for damage in (b"", b"x" * 100, state.read_bytes()[:-7]):
        state.write_bytes(damage)
        assert same(recover(made, task, options, state=state).network, whole.network)
    other = recover(made, task, RecoverSection(epochs=2, batch=100), state=state)
    assert other.steps == 18  # another training does not go on from this one's state


def test_a_full_disk_is_said(task, made, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(EnvironmentFault, match="state cannot be written .*free space"):
            recover(made, task, RecoverSection(epochs=1), state=tmp_path / "state.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_the_seed_decides(task, made):
    first, again, other = (
        recover(made, task, RecoverSection(epochs=1, seed=seed)) for seed in (1, 1, 2)
    )
    assert same(first.network, again.network)
    assert not same(first.network, other.network)


def test_what_does_not_help_is_not_delivered(task, made):
    good = Compressed(task.network)
    worse = recover(good, task, RecoverSection(epochs=1, lr=3.0, optimiser="adamw", batch=100))
    assert worse.scores[0] < worse.first_score
    assert worse.best_epoch == 0 and same(worse.network, task.network)


def test_held_out_scores_choose_an_epoch_only_with_patience(task, made, monkeypatch):
    """The untrained network may remember the held-out examples: its score there never wins."""
    told = iter([0.99, 0.9, 0.95, 0.94, 0.99, 0.9, 0.95, 0.94])
    monkeypatch.setattr(Training, "_judge", lambda self: next(told))
    last = recover(made, task, RecoverSection(epochs=3, batch=50))
    assert last.first_score == 0.99 and last.scores == (0.9, 0.95, 0.94)
    assert last.best_epoch == 3
    best = recover(made, task, RecoverSection(epochs=3, batch=50, patience=9))
    assert best.best_epoch == 2 and not same(best.network, last.network)


def test_patience_and_minutes_end_it(task, made):
    good = Compressed(task.network)
    tired = recover(good, task, RecoverSection(epochs=50, lr=3.0, optimiser="adamw", patience=2))
    assert 3 <= len(tired.scores) < 50
    assert tired.scores.index(max(tired.scores)) <= len(tired.scores) - 3
    short = recover(made, task, RecoverSection(minutes=0.01))
    assert short.steps and short.seconds < 10
    assert recover(made, task, RecoverSection(method="none")).network is made.network


def test_held_out_examples_are_never_trained_on(task, made):
    seen = set()

    def spy(inputs, generator):
        seen.update(row.numpy().tobytes() for row in inputs)
        return inputs

    import copy

    training = Training(
        copy.deepcopy(made.network).requires_grad_(True), None, task, RecoverSection(epochs=3), spy
    )
    training.run()
    held = training._held_out.take(np.arange(len(training._held_out)))[0]
    assert len(held) == 100
    assert not seen & {row.numpy().tobytes() for row in held}
    for split in (task.search, task.evaluate):
        rows = split.take(np.arange(len(split)))[0]
        assert not seen & {row.numpy().tobytes() for row in rows}


def test_divergence_and_misfits_are_named(task, made):
    with pytest.raises(CandidateError, match="the training diverged in epoch 1"):
        lost = replace(task, loss=lambda outputs, targets: outputs.sum() * math.inf)
        recover(made, lost, RecoverSection(epochs=1))
    with pytest.raises(InputError, match="recover.features: there is no module 'conv9'"):
        recover(made, task, RecoverSection(features=("conv9",)))
    with pytest.raises(InputError, match="'fp16' is for GPUs"):
        recover(made, task, RecoverSection(precision="fp16", device="cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="this machine has 0 CUDA devices"):
            recover(made, task, RecoverSection(device="cuda"))


def test_bfloat16_trains_too(task, made):
    done = recover(made, task, RecoverSection(epochs=1, precision="bf16", batch=100))
    assert done.steps == 9
    assert all(t.dtype != torch.bfloat16 for t in done.network.state_dict().values())
    assert unchanged(task.example, torch.Generator()) is task.example
