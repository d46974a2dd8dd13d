"""Peak memory of an exported file, in a fresh process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import CandidateError
from .catalogue import make_target, option_names
from .target import Target

CHILD_S = 300.0
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure_memory() -> bool:
    """Whether this system tells the peak memory of a process (Linux does)."""
    return STATUS.exists() and CLEAR.exists()


def peak_memory_bytes(target: Target, path: Path, shape: Sequence[int]) -> int:
    """Bytes that loading the file and one call of a batch take at their peak, imports left out.

    shape: of the batch, (batch, ...). The resident memory's high-water mark (VmHWM) is set back
    after the imports (proc(5), ``clear_refs``). Repeats agree to a few per cent.
    Raises CandidateError when the process fails.
    """
    known = option_names(target.name)
    options = {k: v for k, v in target.description.items() if k in known}
    request = {"target": target.name, "options": options, "path": str(path), "shape": list(shape)}
    command = [sys.executable, "-m", __spec__.name, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_S, check=False)
    except subprocess.TimeoutExpired:
        raise CandidateError(f"{path.name}: no peak memory after {CHILD_S:.0f} s") from None
    lines = done.stdout.split()
    if done.returncode != 0 or not lines or not lines[-1].isdigit():
        cause = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise CandidateError(f"{path.name}: its peak memory cannot be measured ({cause[:200]})")
    return int(lines[-1])


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {field}")


def _main(request: str) -> None:
    asked = json.loads(request)
    target = make_target(asked["target"], asked["options"])
    inputs = np.zeros(asked["shape"], dtype=np.float32)
    CLEAR.write_text("5")  # the peak begins anew
    before = _status_bytes("VmRSS")
    runtime = target.load(Path(asked["path"]))
    runtime.predict(inputs)
    print(max(_status_bytes("VmHWM") - before, 0))


if __name__ == "__main__":
    _main(sys.argv[1])
