"""What the targets of this processor share: how many examples one call computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paretune.targets.clocked import ClockedTarget, Run


class Counting(ClockedTarget):
    """Gives its inputs back and notes how many came at once."""

    name = "counting"

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        self.calls: list[int] = []

        def run(inputs: np.ndarray) -> np.ndarray:
            self.calls.append(len(inputs))
            return inputs

        return run


@pytest.mark.parametrize(
    ("batch", "calls"), [(1, [100, 100, 60]), (100, [100, 100, 60]), (250, [250, 10]), (260, [260])]
)
def test_a_batch_is_one_call_also_where_it_is_large(
    batch: int, calls: list[int], tmp_path: Path
) -> None:
    """Peak memory and energy are measured by ``predict`` of one batch."""
    (tmp_path / "a").write_bytes(b"")
    target = Counting(batch=batch)
    inputs = np.arange(260, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(target.load(tmp_path / "a").predict(inputs), inputs)
    assert target.calls == calls
