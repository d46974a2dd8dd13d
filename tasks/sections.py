"""The sections of a job file: their keys, types, bounds and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from .cluster_section import ClusterSection
from .compress_section import CompressSection
from .recover_section import RecoverSection
from .section import Arguments, Count, Section, Several, Share, Text, distinct
from .tracker_section import TrackerSection

LEAST_CALIBRATION = 8
"""Fewer examples give no usable activation ranges."""


class DataSection(Section):
    """The data: ``kind`` says where it comes from, the rest how it is read and divided.

    kind: digits, imagefolder, torchvision, or a callable (``module:callable``,
        ``file.py:callable``) that returns the data sets.
    train: what calibration and recovery read. For imagefolder a folder with a folder a class, for
        digits a number of images.
    evaluate: what the final figures are reported on, like ``train``. For imagefolder a number
        takes that many images, class-balanced, out of ``train`` (which the network must then not
        have been trained on).
    search: what scores the search, like ``train``. A number takes that many examples,
        class-balanced, out of ``evaluate`` (default: 1000, at most half of it), and the figures
        are then reported on the rest.
    train_count: use only that many training examples (a class-balanced part).
    size: pixels. Images of another size have their shorter side resized and the centre cropped to
        ``size`` x ``size``.
    resize: pixels of the shorter side before the crop (default: ``size``).
    channels: 3 (default) or 1, for imagefolder.
    mean, std: one number a channel, for pixels / 255.
    dataset: for torchvision, which set. root: its folder. download: whether it may be downloaded.
    args: arguments of the callable.
    """

    kind: Text
    train: Text | Count | None = None
    search: Text | Count | None = None
    evaluate: Text | Count | None = None
    train_count: Count | None = None
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    channels: Literal[1, 3] | None = None
    mean: Annotated[tuple[float, ...], Several] | None = None
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Several] | None = None
    dataset: Text | None = None
    root: Text | None = None
    download: bool = False
    args: Arguments = Field(default_factory=dict)


class TaskSection(Section):
    """WHAT is compressed.

    model: ``module:callable`` or ``file.py:callable`` that returns an nn.Module, or
        ``torchvision:resnet18``. model_args: its arguments.
    weights: a ``.safetensors`` or ``.pt`` file, or ``torchvision:IMAGENET1K_V1``.
    data: where examples come from. score: accuracy, fidelity (no labels needed), or a callable
        ``(predict, batches) -> float``.
    loss: a callable ``(outputs, targets) -> scalar`` (default: cross-entropy). divergence: a
        callable ``(original, candidate) -> scalar`` (default: KL).
    """

    model: Text
    model_args: Arguments = Field(default_factory=dict)
    weights: Text | None = None
    data: DataSection
    score: Text = "accuracy"
    loss: Text | None = None
    divergence: Text | None = None


class Prune(Section):
    """How far channels may be cut.

    smallest_keep: the smallest share of a group's channels that is kept. step: of the channels
        offered (default: by the target).
    """

    smallest_keep: Share = 0.25
    step: Annotated[int, Field(ge=1, le=1024)] | None = None


RANK_METHODS = Literal["svd", "spatial_svd", "tucker2", "cp", "depthwise"]


class Rank(Section):
    """Ranks offered, and by which factorisations.

    ratios: for svd and tucker2 shares of the surviving channels, for the others shares of the
        layer's weights (default: 0.75, 0.5, 0.25, or none where energies are given).
    energy: shares of the squared weights that the factors keep; the ranks follow layer by layer.
    methods: each layer takes those that fit it; absent = svd for linear layers and 1x1
        convolutions, tucker2 for k x k ones.
    """

    ratios: (
        Annotated[tuple[Share, ...], Field(strict=False, min_length=1, max_length=32)] | None
    ) = None
    energy: Annotated[tuple[Share, ...], Field(strict=False, max_length=32)] = ()
    methods: Annotated[tuple[RANK_METHODS, ...], Field(strict=False, min_length=1)] | None = None


_PAIR = r"^w\d+a\d+$"  # bits of the weights and of the activations, e.g. w4a32


class SpaceSection(Section):
    """What may change.

    prune: whether channels may be cut, and how far. bits: weight bits, 32 among them, e.g.
        ``[4, 8, 32]``; ``w4a32`` names those of the activations too (default: what the target
        runs best, 8 and 32 on most). rank: whether layers may be factorised, and how. zeros:
        shares of zero weights in per cent, and "2:4"; these only make a packed file smaller.
        freeze: module names left alone (default: the classifier).
    """

    prune: bool | Prune = True
    bits: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=32)] | Annotated[str, Field(pattern=_PAIR)], ...],
            Field(strict=False, min_length=1, max_length=16),
        ]
        | None
    ) = None
    rank: bool | Rank = True
    zeros: Annotated[
        tuple[Annotated[int, Field(ge=1, le=99)] | Literal["2:4"], ...],
        Field(strict=False, max_length=16),
    ] = ()
    freeze: Annotated[tuple[Text, ...], Several] | None = None

    @field_validator("zeros", mode="before")
    @classmethod
    def _per_cent(cls, items: Any) -> Any:
        for item in items if isinstance(items, list | tuple) else ():
            if isinstance(item, float):
                meant = f"; did you mean {item * 100:g}?" if 0 < item < 1 else ""
                raise PydanticCustomError("per_cent", f"{item!r} is no whole per cent{meant}")
        return items

    @field_validator("bits", "zeros")
    @classmethod
    def _no_twins(cls, items: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if items is None else distinct(items)


class RemoteSection(Section):
    """What a ``remote:https://board:8765`` target needs.

    runtime: the target that the board is. token_file: a copy of the agent's. fingerprint: of its
    certificate, as the agent prints it (a list for several boards). ca: a file of authorities
    instead. boards: further addresses of identical boards. patience: seconds that all boards may
    be gone.
    """

    runtime: Text = "onnxruntime-cpu"
    token_file: Text | None = None
    fingerprint: Text | Annotated[tuple[Text, ...], Several] | None = None
    ca: Text | None = None
    boards: Annotated[tuple[Text, ...], Field(strict=False, max_length=64)] = ()
    patience: Annotated[float, Field(gt=0, le=1e6)] = 300.0


class TargetSection(Section):
    """WHERE it runs.

    name: of the target (default: the one the objectives name, else onnxruntime-cpu).
    also: further targets that every plan is measured on (objectives may name them too). options:
        what only some targets take, by target: ``{openvino-cpu: {precision: bfloat16}}``.
    format: how 8-bit layers are written; ``dynamic`` finds activation ranges at each call.
    calibration: training inputs that set activation ranges, channel importance and BatchNorm
        statistics (with fewer than 32 no layer is refitted). batch: examples in a timed call.
        threads: of a timed call. remote: the board, where the target is one.
    """

    name: Text | None = None
    also: Annotated[tuple[Text, ...], Field(strict=False, max_length=7)] = ()
    options: dict[Text, dict[str, Any]] = Field(default_factory=dict)
    format: Literal["qoperator", "qdq", "dynamic"] = "qoperator"
    calibration: Annotated[int, Field(ge=LEAST_CALIBRATION, le=100_000)] = 256
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    remote: RemoteSection | None = None


class PatienceSection(Section):
    """Stop when the hypervolume has hardly grown for a while.

    trials: the while. growth: per cent that count as hardly.
    """

    trials: Annotated[int, Field(ge=1, le=100_000)]
    growth: Annotated[float, Field(ge=0, le=1000)] = 0.1


class SearchSection(Section):
    """Budget and sampler.

    trials: plans that are measured. timeout: minutes for one run of the search. patience: when to
        stop before the budget is spent. sampler: who proposes plans. screen: candidates tried
        cheaply for each trial that is measured (default: 8 with guided, else 0). seed: the same
        seed gives the same first proposals. workers: processes that measure. window: trials in
        flight at once (default: two a worker). deadline: seconds for one candidate. memory_gb:
        memory of one worker. population: of nsga2 and nsga3.
    """

    trials: Annotated[int, Field(ge=1, le=100_000)] = 100
    timeout: Annotated[float, Field(gt=0, le=1e6)] | None = None
    patience: PatienceSection | None = None
    sampler: Text = "guided"
    screen: Annotated[int, Field(ge=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    window: Annotated[int, Field(ge=1, le=1024)] | None = None
    deadline: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    memory_gb: Annotated[float, Field(gt=0, le=1e5)] | None = None
    population: Annotated[int, Field(ge=2, le=10_000)] | None = None


class JobSections(Section):
    """A job: what is compressed, what may change, what counts and how long to search.

    name: of the study. folder: what relative paths start from (default: the file's own). task:
        network, weights, data and score. space: what may change, layer by layer. compress: how a
        plan is carried out. target: where the model will run. objectives: the values that
        are traded against each other, each a name or ``{name: {target: ..., batch: ...}}``.
        constraints: what a point must meet to be on the front, e.g. ``"accuracy >= 0.90"``.
        search: budget and sampler. recover: training of the best points (default: none). cluster:
        what a worker holds on a Ray cluster. tracker: who remembers besides the study folder.
    """

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f/\\]+$")]
    folder: Annotated[Path, Field(strict=False)] = Path()
    task: TaskSection
    space: SpaceSection = Field(default_factory=SpaceSection)
    compress: CompressSection = Field(default_factory=CompressSection)
    target: TargetSection = Field(default_factory=TargetSection)
    objectives: Annotated[
        tuple[Text | dict[str, dict[str, Any] | None], ...],
        Field(strict=False, min_length=1, max_length=8),
    ] = ("accuracy", "size_bytes", "latency_ms")
    constraints: Annotated[tuple[Text, ...], Field(strict=False, max_length=64)] = ()
    search: SearchSection = Field(default_factory=SearchSection)
    recover: RecoverSection | None = None
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    tracker: TrackerSection | None = None

    @field_validator("objectives")
    @classmethod
    def _one_key_each(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        for item in items:
            if isinstance(item, dict) and len(item) != 1:
                raise PydanticCustomError("one_key", "an objective is a name or one name: options")
        return distinct(items)
