"""The embedded demo: from nothing to a delivered model in a minute or two, without a download."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from ..deploy.pull import pull
from ..deploy.report import print_bundle
from ..objectives.wording import legible
from ..tasks.load import load_task
from .report import print_front
from .run import Search

EPOCHS = 12
JOB = """\
# Written by `paretune quickstart`; change it and run `paretune search {name}` again.
name: quickstart-digits
task:
  model: paretune.tasks.vision:plain_cnn
  model_args: {{convs: 4, channels: 1, size: 8, width: 16}}
  weights: digits.safetensors
  data: {{kind: digits}}
objectives: [accuracy, size_bytes, latency_ms]
search: {{trials: {trials}, sampler: guided, seed: 0, workers: {workers}}}
tracker: {{mlflow: {{uri: "sqlite:///mlflow.db"}}}}
"""


def run_quickstart(folder: Path, trials: int, workers: int) -> None:
    """Train, search, show the front, deliver a model into ``folder`` and say what to do next.

    trials, workers: of the search. Running it again in the same folder starts the search anew only
    as far as it is not done.
    """
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.yaml"
    weights = folder / "digits.safetensors"
    text = JOB.format(name=job, trials=trials, workers=workers)
    if not weights.exists():
        console.print("[bold]1. Training[/] a small CNN on scikit-learn's handwritten digits")
        job.write_text(text.replace("  weights: digits.safetensors\n", ""), encoding="utf-8")
        accuracy, seconds = train(job, weights)
        console.print(f"   {legible('accuracy', accuracy)} correct after {seconds:.0f} s\n")
    job.write_text(text, encoding="utf-8")
    console.print(f"[bold]2. Searching[/] {trials} plans: channels x bits x ranks, each measured")
    with Search(job, folder / "study").run() as study:
        front = study.front()
        print_front(front, study.folder)
        where = "accuracy_drop <= 0.01"
        chosen = front.choose(where, "size_bytes")
    console.print(f"\n[bold]3. Delivering[/] the smallest with {where} (trial {chosen.number})")
    bundle = pull(folder / "study", folder / "model", where=where, best="size_bytes")
    print_bundle(bundle, None, None)
    console.print(
        f"\n[bold]Next[/]  look at the front:   open {folder / 'study' / 'front.html'}\n"
        f"      in MLflow's UI:       paretune ui {folder / 'study'}\n"
        f"      search further:       paretune search {job} --out {folder / 'study'} --trials 100",
        soft_wrap=True,
    )


def train(job: Path, weights: Path) -> tuple[float, float]:
    """Train the job's network on its data from a fixed seed; returns (accuracy, seconds)."""
    start = time.perf_counter()
    torch.manual_seed(0)
    task = load_task(job)
    network = task.network.train()
    inputs, targets = (torch.cat(part) for part in zip(*task.train.batches(256), strict=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(64):  # type: ignore[no-untyped-call]
            if len(rows) < 2:
                continue
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[rows]), targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
    score = task.score.measure(task.network_predict, task.evaluate)
    return score.values["accuracy"], time.perf_counter() - start
