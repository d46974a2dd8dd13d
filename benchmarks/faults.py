"""100 kills at random moments, and what became of the trials: ``python benchmarks/faults.py``.

Each row is one search (tests/faults/kills.py) whose processes are killed with SIGKILL while it
runs: its driver, its workers, the database server, the actors, a node or the head of a Ray cluster.
Prints a table; ends with 1 if anything was lost, counted twice or left in flight. ``--only WORD``
runs the rows whose name holds WORD, ``--kills N`` at most N kills a row, ``--seed N`` other moments
(so that a row can be run in parts); ``--json FILE`` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

import kills  # noqa: E402
from postgres_server import PostgresServer, binaries  # noqa: E402
from ray_cluster import RayCluster  # noqa: E402


@contextmanager
def server() -> Iterator[Any]:
    """A PostgreSQL server, its password in the environment."""
    made = PostgresServer()
    os.environ["PGPASSWORD"] = made.password
    try:
        yield made
    finally:
        made.remove()


def on_server(folder: Path, count: int, seed: int, name: str) -> Any:
    with server() as there:
        tracker = {"storage": there.address}
        return kills.kill_driver(folder, count, seed, name, tracker=tracker)


def the_server(folder: Path, count: int, seed: int, name: str) -> Any:
    with server() as there:
        return kills.kill_server(folder, count, there, name, tracker={"storage": there.address})


def on_cluster(folder: Path, count: int, seed: int, name: str) -> Any:
    cluster = RayCluster()
    try:
        cluster.start_head(2)
        where = {"environment": cluster.environment, "ray": cluster.address}
        return kills.kill_workers(folder, count, seed, name, actors=True, **where)
    finally:
        cluster.remove()


ROWS: dict[str, tuple[int, Callable[[Path, int, int, str], Any]]] = {
    "worker of the local pool": (40, kills.kill_workers),
    "driver, study in SQLite": (24, kills.kill_driver),
    "driver, study in PostgreSQL": (10, on_server),
    "PostgreSQL server": (8, the_server),
    "worker or actor on Ray": (12, on_cluster),
    "node of a two-node Ray cluster": (3, kills.kill_nodes),
    "head of a Ray cluster": (3, kills.kill_head),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--kills", type=int, default=100, help="of each row, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and clusters are removed
    found = []
    print("| killed | kills | trials | acknowledged | lost | twice | left | tries | s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for name, (count, scenario) in ROWS.items():
        if options.only not in name:
            continue
        if "PostgreSQL" in name and binaries() is None:
            print(f"| {name} | 0: PostgreSQL is not installed |", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="paretune-kills-") as scratch:
            outcome = scenario(Path(scratch) / "toy", min(count, options.kills), options.seed, name)
        found.append(outcome)
        cells = (outcome.kills, outcome.trials, outcome.acknowledged, outcome.lost, outcome.twice)
        rest = (outcome.left, outcome.most_tries, round(outcome.seconds))
        print(f"| {outcome.name} | {' | '.join(map(str, (*cells, *rest)))} |", flush=True)
    total = [sum(getattr(o, key) for o in found) for key in ("kills", "lost", "twice", "left")]
    print("{} kills: {} finished trials lost, {} counted twice, {} left in flight".format(*total))
    if options.json:
        options.json.write_text(json.dumps([asdict(o) for o in found], indent=1) + "\n")
    return 0 if all(outcome.good for outcome in found) else 1


if __name__ == "__main__":
    sys.exit(main())
