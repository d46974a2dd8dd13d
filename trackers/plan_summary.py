"""A plan in a handful of numbers that a person can compare."""

from __future__ import annotations

from statistics import fmean

from ..spaces.plan import CompressionPlan


def plan_summary(
    plan: CompressionPlan, identity: CompressionPlan | None = None
) -> dict[str, float | int]:
    """Mean and least bits, mean and least share of kept channels, factorised layers.

    identity: the plan that changes nothing; without it the shares of kept channels are left out.
    Shares and means weigh every layer and group alike.
    """
    out: dict[str, float | int] = {}
    layers = list(plan.layers.values())
    if layers:
        out["mean_weight_bits"] = round(fmean(c.weight_bits for c in layers), 3)
        out["least_weight_bits"] = min(c.weight_bits for c in layers)
        out["mean_activation_bits"] = round(fmean(c.activation_bits for c in layers), 3)
        out["factorised_layers"] = sum(c.method is not None for c in layers)
    if identity is not None:
        whole = identity.groups
        shares = [plan.groups.get(name, kept) / kept for name, kept in whole.items()]
        if shares:
            out["mean_kept_share"] = round(fmean(shares), 4)
            out["least_kept_share"] = round(min(shares), 4)
    return out


def plan_parameters(plan: CompressionPlan) -> dict[str, int]:
    """Every choice of the plan under a name of its own, e.g. ``"layer1.0.conv1 keep": 12``."""
    out = {f"{name} keep": kept for name, kept in plan.groups.items()}
    for name, choice in plan.layers.items():
        out[f"{name} weight_bits"] = choice.weight_bits
        out[f"{name} activation_bits"] = choice.activation_bits
        for place, rank in enumerate(choice.ranks):
            out[f"{name} rank{place}"] = rank
    return out
