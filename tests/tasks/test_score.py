"""Scores against independent references: scikit-learn, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score, log_loss

from paretune.errors import CandidateError, InputError
from paretune.tasks.score import CallableScore, Fidelity, Top1
from paretune.tasks.split import DatasetSplit

COUNT, CLASSES = 103, 5


class _Pairs:
    def __init__(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        return self.x[index] if self.y is None else (self.x[index], self.y[index])


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(4)) * 2


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, CLASSES, (COUNT,), generator=torch.Generator().manual_seed(5))


def split_of(x: torch.Tensor, y: torch.Tensor | None = None) -> DatasetSplit:
    return DatasetSplit("search", _Pairs(x, y), "here")


def same(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize("batch", [1, 10, 100, 200])
def test_top1_agrees_with_scikit_learn(logits, labels, batch: int) -> None:
    result = Top1().measure(same, split_of(logits, labels), batch)
    probabilities = softmax(logits.double().numpy(), axis=1)
    accuracy = accuracy_score(labels, logits.argmax(1))
    assert result.count == COUNT
    assert result.values["accuracy"] == pytest.approx(accuracy)
    assert result.values["loss"] == pytest.approx(
        log_loss(labels, probabilities, labels=list(range(CLASSES))), rel=1e-5
    )
    assert result.errors["accuracy"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / COUNT))
    each = -np.log(probabilities[np.arange(COUNT), labels])
    assert result.errors["loss"] == pytest.approx(each.std(ddof=1) / math.sqrt(COUNT), rel=1e-4)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_class_numbers_of_any_width(logits, labels, kind: torch.dtype) -> None:
    want = Top1().measure(same, split_of(logits, labels)).values
    assert Top1().measure(same, split_of(logits, labels.to(kind))).values == want


def test_a_loss_of_the_users_own(logits, labels) -> None:
    def zero_one(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) != targets).float().mean()

    result = Top1(zero_one).measure(same, split_of(logits, labels), 10)
    assert result.values["loss"] == pytest.approx(1 - result.values["accuracy"])


def test_fidelity_agrees_with_scipy(logits) -> None:
    noise = torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(6))

    def candidate(x: torch.Tensor) -> torch.Tensor:
        return x + noise[[int((logits == row).all(1).nonzero()[0, 0]) for row in x]]

    result = Fidelity(same).measure(candidate, split_of(logits), 10)
    want, got = (softmax(t.double().numpy(), axis=1) for t in (logits, logits + noise))
    assert result.values["divergence"] == pytest.approx(rel_entr(want, got).sum(1).mean(), rel=1e-5)
    agreed = float((want.argmax(1) == got.argmax(1)).mean())
    assert result.values["fidelity"] == pytest.approx(agreed)
    assert result.errors["fidelity"] == pytest.approx(math.sqrt(agreed * (1 - agreed) / COUNT))


def test_the_original_is_run_once_a_split(logits) -> None:
    calls: list[int] = []

    def original(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    score, split = Fidelity(original), split_of(logits)
    first = score.measure(same, split, 10)
    second = score.measure(same, split, 50)
    assert sum(calls) == COUNT
    assert first.values["fidelity"] == second.values["fidelity"] == 1.0
    assert first.values["divergence"] == pytest.approx(0, abs=1e-9)
    score.measure(same, split_of(logits))
    assert sum(calls) == 2 * COUNT


def test_fidelity_of_regressions_is_explained_variance() -> None:
    x = torch.randn(60, 1, 3, generator=torch.Generator().manual_seed(7))
    result = Fidelity(same).measure(lambda t: t * 0.9, split_of(x), 7)
    mse = float(((0.1 * x.double()) ** 2).mean())
    assert result.values["divergence"] == pytest.approx(mse, rel=1e-5)
    want = 1 - mse / float(x.double().numpy().var())
    assert result.values["fidelity"] == pytest.approx(want, rel=1e-5)
    assert not result.errors

    def absolute(original: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        return (original - candidate).abs().mean()

    own = Fidelity(same, absolute).measure(lambda t: t * 0.9, split_of(x), 7)
    assert own.values["divergence"] == pytest.approx(float((0.1 * x).abs().mean()), rel=1e-4)
    assert own.values["fidelity"] == pytest.approx(want, rel=1e-5)


def test_fidelity_is_refused_on_two_predicted_classes(logits) -> None:
    def two(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :2] + 100, x[:, 2:]], 1)

    with pytest.raises(InputError, match="predicts 2 of 5 classes on 'search', too few"):
        Fidelity(two).measure(two, split_of(logits))
    few = DatasetSplit("screen 0", _Pairs(logits, None), "here")  # a slice of a split
    assert Fidelity(two).measure(two, few).values["fidelity"] == 1.0


def test_a_score_of_the_users_own(logits, labels) -> None:
    def top2(predict, batches) -> torch.Tensor:
        assert len(list(batches)) == len(list(batches)) == 11
        hits = total = 0
        for inputs, targets in batches:
            best = predict(inputs).topk(2).indices
            hits += int((best == targets[:, None]).any(1).sum())
            total += len(inputs)
        return torch.tensor(hits / total, dtype=torch.float64)

    result = CallableScore(top2, "task.score").measure(same, split_of(logits, labels), 10)
    from sklearn.metrics import top_k_accuracy_score

    want = top_k_accuracy_score(labels, logits.numpy(), k=2, labels=list(range(CLASSES)))
    assert result.values == {"accuracy": pytest.approx(want)}
    assert result.count == COUNT


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (lambda p, b: float("nan"), CandidateError, "returned nan"),
        (lambda p, b: float("inf"), CandidateError, "returned inf"),
        (lambda p, b: "good", InputError, "it returned a str; return one number"),
        (lambda p, b: None, InputError, "it returned a NoneType"),
        (lambda p, b: torch.zeros(2), InputError, "it returned a Tensor"),
        (lambda p, b: 1 / 0, CandidateError, "the score raised ZeroDivisionError"),
    ],
)
def test_wrong_scores_are_told(logits, labels, function, kind, message: str) -> None:
    with pytest.raises(kind, match=message):
        CallableScore(function, "task.score").measure(same, split_of(logits, labels))


@pytest.mark.parametrize("score", [Top1(), Fidelity(same)], ids=["top1", "fidelity"])
def test_broken_outputs_break_the_candidate_only(score, logits, labels) -> None:
    split = split_of(logits, labels)
    with pytest.raises(CandidateError, match="NaN or infinity"):
        score.measure(lambda x: x * float("nan"), split)
    with pytest.raises(CandidateError, match=r"outputs are \[1, 5\] for 100 inputs"):
        score.measure(lambda x: x[:1], split)
    with pytest.raises(CandidateError, match="outputs are list"):
        score.measure(lambda x: x.tolist(), split)
    with pytest.raises(CandidateError, match="the original network's"):
        Fidelity(same).measure(lambda x: x[:, :3], split)


def test_accuracy_needs_class_numbers(logits) -> None:
    with pytest.raises(InputError, match="accuracy needs class numbers"):
        Top1().measure(same, split_of(logits))
    with pytest.raises(InputError, match="accuracy needs class numbers"):
        Top1().measure(same, split_of(logits, logits))
    with pytest.raises(InputError, match=r"accuracy needs outputs \(n, classes\)"):
        Top1().measure(lambda x: x[:, 0], split_of(logits, torch.zeros(COUNT, dtype=torch.long)))
