"""The ``recover`` section of a job file: how the front's best points are trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from .section import Section, Several, Text


class RecoverSection(Section):
    """Training that wins accuracy back, after the search, for the front's most promising points.

    method: distil (from the original network), finetune (on the labels alone) or none.
    epochs, minutes: when training ends, for one point, whichever comes first (default: 3 epochs).
    top: how many points. temperature: of the softened outputs. mix: their weight against the
        labels.
    features: module names whose outputs are matched too, or auto, which is the last feature map of
        each resolution. feature_weight: their weight.
    optimiser, momentum, weight_decay, schedule, batch: as in torch. lr: default 0.01 for sgd,
        0.001 for adamw. warmup: share of the training.
    augment: crop_flip (absent: for images), none, or ``module:callable``, ``file.py:callable``:
        (inputs (n, ...), torch.Generator) -> inputs.
    device: auto, cpu, cuda or cuda:1. precision: auto = bf16 where the device computes in it.
    patience: stop after so many epochs without a better score on ``holdout`` training examples.
    holdout: training examples that only score. seed: of the order of examples and augmentation.
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
    augment: Literal["crop_flip", "none"] | Annotated[Text, Field(pattern=":")] | None = None
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
