"""How much accuracy does training win back? CIFAR-10 ResNets, pruned or of few bits.

    PARETUNE_DATA=... python benchmarks/recover.py --depth 56 --macs 0.5 --epochs 10 --out runs/r56

Prunes the inner channels of every residual block so that the network keeps the given share of its
multiply-accumulates and the outputs change least (one divergence a block and option on 128 training
images, then the exact best combination), and trains it from the original. Nothing is chosen on
``val``: it is scored before and after. With ``--bits 4 8`` every layer gets 4-bit weights and 8-bit
activations instead, and the exported file is scored. The training is kept in ``--out`` and goes on
from there when it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from cifar import resnet, whole_val
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.objectives.counts import count_macs, count_params
from paretune.operators.compress import Compressed, Compressor
from paretune.operators.recover import recover
from paretune.operators.train import TrainingProgress
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.spaces.space import SearchSpace
from paretune.targets.catalogue import make_target
from paretune.targets.target import Grid
from paretune.tasks.recover_section import RecoverSection
from paretune.tasks.task import Task


def pruned_plan(task: Task, space: SearchSpace, keep_macs: float) -> CompressionPlan:
    """The plan of inner channels at ``keep_macs`` of the MACs that changes the outputs least."""
    inputs = torch.cat(task.calibration(128))
    compressor = Compressor(task.network, task.example, space, inputs)
    identity = space.identity
    whole = count_macs(compressor.compress(identity).network, task.example)
    with torch.inference_mode():
        wanted = task.network(inputs).log_softmax(1)
    options: list[list[tuple[int, int, float]]] = []  # a group's (kept, MACs saved, divergence)
    groups = [g for g in identity.groups if g.endswith(".conv1")]
    for group in groups:
        full = identity.groups[group]
        rows, worst = [(full, 0, 0.0)], 0.0
        for kept in (3 * full // 4, full // 2, full // 4):
            plan = CompressionPlan({**identity.groups, group: kept}, identity.layers)
            made = compressor.compress(plan).network
            with torch.inference_mode():
                got = made(inputs).log_softmax(1)
            worst = max(worst, float(F.kl_div(got, wanted, reduction="batchmean", log_target=True)))
            rows.append((kept, whole - count_macs(made, task.example), worst))
        options.append(rows)
    unit = 100_000  # MACs; every combination of savings, the least divergence for each
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for rows in options:
        grown: dict[int, tuple[float, tuple[int, ...]]] = {}
        for saved, (damage, chosen) in best.items():
            for kept, more, harm in rows:
                key, total = saved + more // unit, damage + harm
                if key not in grown or total < grown[key][0]:
                    grown[key] = total, (*chosen, kept)
        best = grown
    needed = (whole - keep_macs * count_macs(task.network, task.example)) / unit
    _, chosen = min(entry for saved, entry in best.items() if saved >= needed)
    return CompressionPlan(
        {**identity.groups, **dict(zip(groups, chosen, strict=True))}, identity.layers
    )


def exported(task: Task, network: nn.Module, made: Compressed, grids: Mapping[str, Grid]) -> Any:
    """(the exported file, run by ONNX Runtime; its bytes)."""
    target = make_target("onnxruntime-cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{target.format}"
        batches = (b.numpy() for b in task.calibration(256))
        more = {"grids": grids} if grids else {}
        target.export(network, task.example, made.bits, batches, path, **more)
        runtime, size = target.load(path), path.stat().st_size
    return lambda inputs: torch.from_numpy(runtime.predict(inputs.numpy())), size


def on_val(task: Task, network: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    """Accuracy on all of ``val``, and the class that each image is taken for."""
    classes: list[Tensor] = []

    def predict(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs = network(inputs)
        classes.append(outputs.argmax(1))
        return outputs

    found = task.score.measure(predict, whole_val(task))
    return round(found.values["accuracy"], 4), torch.cat(classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs kept")
    parser.add_argument("--bits", type=int, nargs=2, metavar=("WEIGHT", "ACTIVATION"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--features", default="auto", help="auto or none")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def say(**facts: object) -> None:
        print(json.dumps({"at_s": round(time.monotonic() - begun, 1), **facts}), flush=True)

    task = resnet(given.depth)
    space = discover(task.network, task.example, freeze=[])
    path = given.out / "plan.json"
    if given.bits:
        choice = LayerChoice(*given.bits)
        plan = CompressionPlan(space.identity.groups, dict.fromkeys(space.identity.layers, choice))
    elif path.exists():
        plan = CompressionPlan.from_json(json.loads(path.read_text()))
    else:
        plan = pruned_plan(task, space, given.macs)
    path.write_text(json.dumps(plan.to_json()))
    inputs = torch.cat(task.calibration(256))
    made = Compressor(task.network, task.example, space, inputs).compress(plan)
    whole = count_macs(task.network, task.example)
    macs = count_macs(made.network, task.example)
    say(
        kept=[plan.groups[g] for g in plan.groups],
        macs=macs,
        macs_ratio=round(whole / macs, 3),
        params=count_params(made.network),
    )
    told = 0.0

    def watch(at: TrainingProgress) -> None:
        nonlocal told
        if at.step % at.steps_an_epoch == 0 or time.monotonic() - told > 60:
            told = time.monotonic()
            left = None if at.seconds_left is None else round(at.seconds_left)
            say(
                epoch=round(at.step / at.steps_an_epoch, 2),
                loss=round(at.loss, 4),
                score=at.score,
                left_s=left,
            )

    options = RecoverSection(
        epochs=given.epochs,
        minutes=given.minutes,
        lr=given.lr,
        features="auto" if given.features == "auto" else (),
    )
    done = recover(made, task, options, state=given.out / "state.safetensors", watcher=watch)
    save_file(done.network.state_dict(), given.out / "recovered.safetensors")
    before, after = made.network, done.network
    sizes: dict[str, object] = {}
    if given.bits:
        before, first = exported(task, made.network, made, {})
        after, size = exported(task, done.network, made, done.grids)
        sizes = {"bytes_before": first, "bytes": size}
    (original, _), (first_score, _) = on_val(task, task.network), on_val(task, before)
    recovered, classes = on_val(task, after)
    if done.rounded is not None:
        trained, same = on_val(task, done.rounded)
        agreement = float((classes == same).float().mean())
        sizes |= {"trained": trained, "agreement": round(agreement, 4)}
    say(
        held_out=[done.first_score, *done.scores],
        best_epoch=done.best_epoch,
        epochs=round(done.steps / (49_000 // options.batch), 2),
        training_s=round(done.seconds),
        original=original,
        before=first_score,
        recovered=recovered,
        drop=round(original - recovered, 4),
        **sizes,
    )


if __name__ == "__main__":
    main()
