"""What one request may cost the board."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that hold whatever a request says.

    body_bytes: of one request. store_bytes: of all models kept; the least recently used go first.
    memory_bytes: that a child may take beyond what its libraries hold. wall_s: for one job, then
    its process is killed. threads: of one job. connections: open at a time. idle_s: without a byte
    from a client. receive_s: for a whole request to arrive.
    """

    body_bytes: int = 256 << 20
    store_bytes: int = 1 << 30
    memory_bytes: int = 2 << 30
    wall_s: float = 300.0
    threads: int = 1
    connections: int = 16
    idle_s: float = 10.0
    receive_s: float = 120.0

    def to_json(self) -> dict[str, float]:
        """The limits as plain JSON, for the status."""
        return asdict(self)
