"""Exchange of the populations that cross from one slab to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coupler.ranks import Ranks

_TO_RIGHT, _TO_LEFT = slice(0, 3), slice(6, 9)


class Halo:
    """Fills the ghost columns between neighbouring slabs: non-blocking, through buffers made once.

    Serial runs have no neighbours: both methods do nothing and mpi4py is not imported.
    """

    def __init__(self, ranks: Ranks, ny: int, dtype: str) -> None:
        """Args: ranks: The slabs in order from left to right. ny: Rows. dtype: Of the populations."""
        self._comm = ranks.comm
        self._sends: list[tuple[int, int, slice, NDArray[Any]]] = []
        self._receives: list[tuple[int, int, slice, NDArray[Any]]] = []
        self._requests: list[Any] = []
        for neighbour, column, ghost, out, into in (
            (ranks.rank - 1, 1, 0, _TO_LEFT, _TO_RIGHT),
            (ranks.rank + 1, -2, -1, _TO_RIGHT, _TO_LEFT),
        ):
            if 0 <= neighbour < ranks.size:
                self._sends.append((neighbour, column, out, np.empty((3, ny), dtype)))
                self._receives.append((neighbour, ghost, into, np.empty((3, ny), dtype)))

    def start(self, f: NDArray[Any]) -> None:
        """Starts sending the outermost inner columns of `f`, shape (columns + 2, 9, ny)."""
        self._requests = [self._comm.Irecv(buffer, neighbour) for neighbour, _, _, buffer in self._receives]
        for neighbour, column, out, buffer in self._sends:
            buffer[...] = f[column, out]
            self._requests.append(self._comm.Isend(buffer, neighbour))

    def finish(self, f: NDArray[Any]) -> None:
        """Waits for the neighbours' columns and writes them to the ghost columns of `f`."""
        for request in self._requests:
            request.Wait()
        for _, ghost, into, buffer in self._receives:
            f[ghost, into] = buffer
