"""The sections of a job file: their keys, types, bounds and defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a job: frozen, strictly typed, no unknown keys, finite numbers only."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


Text = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]
Arguments = dict[str, Any]
Several = Field(strict=False)  # a tuple that takes a list


class DataSection(Section):
    """The data: ``kind`` says where it comes from, the rest how it is read and divided.

    kind: digits, imagefolder, torchvision, or a callable (``module:callable``,
        ``file.py:callable``) that returns the data sets; ``args`` are its arguments.
    train, search, evaluate: imagefolder: folders with a folder a class. digits: numbers of images.
        ``search`` as a number takes that many examples, class-balanced, out of the evaluation data
        (default: 1000, at most half of it); the figures are then reported on the rest.
    train_count: use only that many training examples (a class-balanced part).
    size, resize: pixels. Images of another size have their shorter side resized to ``resize``
        (default: size) and the centre cropped to ``size`` x ``size``.
    channels: 3 (default) or 1, for imagefolder. mean, std: one number a channel, for pixels / 255.
    dataset, root, download: torchvision: which set, its folder, whether it may be downloaded.
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
        ``torchvision:resnet18``; model_args: its arguments.
    weights: a ``.safetensors`` or ``.pt`` file, or ``torchvision:IMAGENET1K_V1``.
    score: accuracy, fidelity (no labels needed), or a callable ``(predict, batches) -> float``.
    loss, divergence: callables ``(outputs, targets) -> scalar`` and ``(original, candidate) ->
        scalar``; default cross-entropy and KL.
    """

    model: Text
    model_args: Arguments = Field(default_factory=dict)
    weights: Text | None = None
    data: DataSection
    score: Text = "accuracy"
    loss: Text | None = None
    divergence: Text | None = None


class Prune(Section):
    """How far channels may be cut: the smallest share kept, and the step in channels."""

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
    """What may change. freeze: module names left alone; absent = the classifier.

    zeros: shares of zero weights in per cent, and "2:4"; these only make a packed file smaller.
    bits: weight bits, e.g. ``[4, 8, 32]``; ``w4a32`` names those of the activations too.
    """

    prune: bool | Prune = True
    bits: Annotated[
        tuple[Annotated[int, Field(ge=1, le=32)] | Annotated[str, Field(pattern=_PAIR)], ...],
        Field(strict=False, min_length=1, max_length=16),
    ] = (8, 32)
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
    def _no_twins(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return _distinct(items)


class CompressSection(Section):
    """HOW a plan is carried out, for all layers alike.

    importance: which channels stay: activation (what they contribute to their readers), l1, l2,
        bn_scale, fpgm, taylor, activation_mean, weight_activation or random.
    importance_mix: weight_activation: from weights alone (0) to activations alone (1).
    importance_seed: random: the draw.
    zeros: which weights become zero: the smallest (magnitude), or the smallest weight times
        gradient (gradient).
    normalise: how BatchNorm statistics are re-estimated after a cut: differential, plain or none.
    whiten: low-rank factors that change a layer's outputs on the calibration inputs least, instead
        of its weights.
    reconstruct: layers that were factorised or read cut channels are refitted to the original's
        outputs.
    refine: gradient steps after that, which draw the answers to the original's on the calibration
        inputs (`target.calibration` of them, unlabelled); 0 = none.
    ranges: how the range of rounded weights is chosen: minmax, percentile, mse (least squared
        error) or entropy; absent: mse up to 4 bits, else minmax. activation_ranges: the same for
        8-bit activations. rounding: weights go to the nearest value, or to the one learned against
        the layer's results (seconds a layer). bias_correction: layers of low bits get the mean
        results of the float network back. symmetric, scales: of weights whose activations stay
        float32: with a zero point or without, and one scale for the ``tensor``, a ``channel``, or
        so many neighbouring weights. linears: ``blocks`` leaves a transformer's low-bit linear
        layers to ONNX Runtime's own rounding, stored as MatMulNBits.
    """

    importance: Literal[
        "activation",
        "l1",
        "l2",
        "bn_scale",
        "fpgm",
        "taylor",
        "activation_mean",
        "weight_activation",
        "random",
    ] = "activation"
    importance_mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    importance_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    zeros: Literal["magnitude", "gradient"] = "magnitude"
    normalise: Literal["differential", "plain", "none"] = "differential"
    whiten: bool = False
    reconstruct: bool = False
    refine: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    ranges: Literal["minmax", "percentile", "mse", "entropy"] | None = None
    activation_ranges: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    rounding: Literal["nearest", "learned"] = "nearest"
    bias_correction: bool = True
    symmetric: bool = True
    linears: Literal["packed", "blocks"] = "packed"
    scales: Literal["channel", "tensor"] | Annotated[int, Field(ge=2, le=65536)] = "channel"


class RemoteSection(Section):
    """What a ``remote:https://board:8765`` target needs; see targets/remote.py.

    token_file: a copy of the agent's. fingerprint: of its certificate, as the agent prints it (a
    list for several boards); ca: a file of authorities instead. boards: further addresses of
    identical boards. patience: seconds that all boards may be gone.
    """

    runtime: Text = "onnxruntime-cpu"
    token_file: Text | None = None
    fingerprint: Text | Annotated[tuple[Text, ...], Several] | None = None
    ca: Text | None = None
    boards: Annotated[tuple[Text, ...], Field(strict=False, max_length=64)] = ()
    patience: Annotated[float, Field(gt=0, le=1e6)] = 300.0


class TargetSection(Section):
    """WHERE it runs. name: absent = the one the objectives name, else onnxruntime-cpu.

    format: how 8-bit layers are written; ``dynamic`` finds activation ranges at each call.
    also: further targets that every plan is measured on (objectives may name them too). options:
        what only some targets take, by target: ``{openvino-cpu: {precision: bfloat16}}``.
    """

    name: Text | None = None
    also: Annotated[tuple[Text, ...], Field(strict=False, max_length=7)] = ()
    options: dict[Text, dict[str, Any]] = Field(default_factory=dict)
    format: Literal["qoperator", "qdq", "dynamic"] = "qoperator"
    calibration: Annotated[int, Field(ge=1, le=100_000)] = 256
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    remote: RemoteSection | None = None


class PatienceSection(Section):
    """Stop when the hypervolume grew by at most ``growth`` per cent over ``trials`` trials."""

    trials: Annotated[int, Field(ge=1, le=100_000)]
    growth: Annotated[float, Field(ge=0, le=1000)] = 0.1


class SearchSection(Section):
    """Budget and sampler. timeout in minutes, deadline in seconds for one candidate.

    screen: candidates tried cheaply for each trial that is measured (default: 8 with guided, else
        0). patience: when to stop before the budget is spent.
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


class RecoverSection(Section):
    """Training that wins accuracy back, after the search, for the front's most promising points.

    method: distil (from the original network), finetune (on the labels alone) or none.
    epochs, minutes: when training ends, for one point, whichever comes first (default: 3 epochs).
    top: how many points. temperature, mix: softened outputs, and their weight against the labels.
    features: module names whose outputs are matched too, or auto: the last feature map of each
        resolution; feature_weight: their weight.
    optimiser, lr, momentum, weight_decay, schedule, warmup (share of the training), batch: as in
        torch; lr absent = 0.01 for sgd, 0.001 for adamw.
    augment: crop_flip (absent: for images), none, or ``module:callable``, ``file.py:callable``:
        (inputs (n, ...), torch.Generator) -> inputs.
    device: auto, cpu, cuda or cuda:1; precision: auto = bf16 where the device computes in it.
    patience: stop after so many epochs without a better score on ``holdout`` training examples.
    """

    method: Literal["finetune", "distil", "none"] = "distil"
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    top: Annotated[int, Field(ge=1, le=1000)] = 5
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    mix: Annotated[float, Field(ge=0, le=1)] = 0.9
    features: Literal["auto"] | Annotated[tuple[Text, ...], Several] = ()
    feature_weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=100)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    batch: Annotated[int, Field(ge=2, le=65_536)] = 128
    augment: Text | None = None
    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = None
    holdout: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
            raise PydanticCustomError("device", "write auto, cpu, cuda or cuda:1")
        return device


class MlflowSection(Section):
    """Where MLflow keeps the runs. experiment: absent = the job's name."""

    uri: Text = "sqlite:///mlflow.db"
    experiment: Text | None = None
    artifacts: Literal["front", "none"] = "front"

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        if uri.startswith("http") and "@" in urlsplit(uri).netloc:
            raise PydanticCustomError(
                "secret",
                "the address carries a password; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment instead",
            )
        return uri


class TrackerSection(Section):
    """WHO remembers, besides the study on disk."""

    mlflow: MlflowSection | None = None


class JobSections(Section):
    """A whole job file. folder: what relative paths start from (default: the file's own folder)."""

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
    tracker: TrackerSection | None = None

    @field_validator("objectives")
    @classmethod
    def _one_key_each(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        for item in items:
            if isinstance(item, dict) and len(item) != 1:
                raise PydanticCustomError("one_key", "an objective is a name or one name: options")
        return _distinct(items)


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, item in enumerate(items):
        if item in items[:index]:
            raise PydanticCustomError("twin", f"{str(item)[:60]!r} is listed twice; remove one")
    return items
