"""The ranks of one simulation: serial or MPI. The only place of the coupler that imports mpi4py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI

Operation = Literal["sum", "max", "min"]


class Ranks:
    """The serial case: one rank, no MPI. `MpiRanks` has the same methods over a communicator.

    Attributes:
        rank: This rank, from 0.
        size: Number of ranks.
        comm: The mpi4py communicator of the simulation, or None when serial.
    """

    rank: int = 0
    size: int = 1
    comm: Any = None

    def allreduce(self, values: NDArray[np.float64], operation: Operation) -> NDArray[np.float64]:  # noqa: ARG002
        """Combines a float64 vector of shape (n,) over all ranks, element by element; collective."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """Gathers small Python values to rank 0 (None elsewhere); collective, not for the step path."""
        return [value]

    def bcast(self, value: Any, root: int = 0) -> Any:  # noqa: ARG002
        """Sends one rank's small Python value to all; collective, not for the step path."""
        return value

    def abort(self, code: int) -> None:
        """Ends the whole job at once with an exit code. Returns when serial."""


class MpiRanks(Ranks):
    """Ranks over a duplicate of an MPI communicator, so that our messages never meet the simulation's."""

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        """Args: comm: The simulation's communicator; MPI_COMM_WORLD when None. Collective."""
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD if comm is None else comm
        self._own = self.comm.Dup()
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self._ops = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}

    def allreduce(self, values: NDArray[np.float64], operation: Operation) -> NDArray[np.float64]:
        """See `Ranks.allreduce`."""
        out = np.empty_like(values)
        self._own.Allreduce(values, out, self._ops[operation])
        return out

    def gather(self, value: Any) -> list[Any] | None:
        """See `Ranks.gather`."""
        gathered: list[Any] | None = self._own.gather(value, 0)
        return gathered

    def bcast(self, value: Any, root: int = 0) -> Any:
        """See `Ranks.bcast`."""
        return self._own.bcast(value, root)

    def abort(self, code: int) -> None:
        """See `Ranks.abort`."""
        self._own.Abort(code)
