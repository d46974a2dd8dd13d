"""Workers that load while the driver is still preparing."""

from __future__ import annotations

from collections.abc import Callable

from .jobs import Workers


class HeadStart:
    """Starts workers before anyone asks for them; ends them if no one ever does.

    Loading a network and its data keeps a core busy for a while, so it must not begin while
    anything is timed.
    """

    def __init__(self) -> None:
        self._made: Workers | None = None

    def begin(self, make: Callable[[], Workers]) -> None:
        """Start them now, by ``make``."""
        self._made = self._made or make()

    def take(self, make: Callable[[], Workers]) -> Workers:
        """Those that were started, or new ones; from now on it is the caller who ends them."""
        made, self._made = self._made or make(), None
        return made

    def __enter__(self) -> HeadStart:
        return self

    def __exit__(self, *_: object) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None
