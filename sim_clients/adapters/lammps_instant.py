"""An instant of a LAMMPS instance: taken from it, and put into it or into another one that came as far in its deck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupler.ranks import Ranks
from schemas.fields import Block
from sim_clients.adapters.lammps_engine import Box, Engine

VARYING = ("omega", "angmom", "mu", "q", "sp")
"""What atoms of some styles have besides position and velocity."""


class Instant(NamedTuple):
    """This rank's atoms, and the box, step, time and dt, which all ranks share.

    Attributes:
        tags: Ids of the atoms from 1, shape (n,).
        arrays: `x` (wrapped as LAMMPS left it), `v`, `image`, and those of `VARYING` that the atoms have, by name.
        box: The box.
        step: MD step.
        time: Simulated time, as LAMMPS's variables see it.
        dt: dt of an MD step.
    """

    tags: NDArray[np.int64]
    arrays: Mapping[str, NDArray[Any]]
    box: Box
    step: int
    time: float
    dt: float


class Instants:
    """Takes and puts instants of one set of atoms. Collective.

    Attributes:
        count: Atoms on all ranks.
    """

    def __init__(self, ranks: Ranks, engine: Engine) -> None:
        """Reads which atoms there are.

        Raises:
            ValueError: Two of them have one id, or one has none.
        """
        self._ranks = ranks
        self._names = ["x", "v", "image", *(name for name in VARYING if engine.has(name))]  # as the atom style has them
        self._ids = np.sort(np.concatenate(ranks.bcast(ranks.gather(engine.tags()))))
        self.count = len(self._ids)
        if self.count and (self._ids[0] < 1 or (np.diff(self._ids) == 0).any()):
            raise ValueError("atoms are told apart by their ids, and some have none: take out `atom_modify id no`")

    def take(self, engine: Engine) -> Instant:
        """Copies; cheap beside a step."""
        arrays = {name: engine.read(name) for name in self._names}
        return Instant(engine.tags(), arrays, engine.box, int(engine.number("ntimestep")), engine.time, engine.dt)

    def put(self, engine: Engine, instant: Instant) -> None:
        """Overwrites the atoms. They may be spread over the ranks in another way now, and lie on the wrong ones."""
        ids = self.index(instant.tags)
        for name, values in instant.arrays.items():
            engine.write(name, self.spread(engine, Block(values, ids=ids)))
        if instant.box != engine.box:
            engine.set_box(instant.box)

    def index(self, tags: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of atoms from 0, without gaps, from LAMMPS's tags."""
        return np.searchsorted(self._ids, tags)

    def spread(self, engine: Engine, block: Block) -> NDArray[Any]:
        """The rows for this rank's atoms, in LAMMPS's order, of values that the ranks hold together by id."""
        whole = np.zeros((self.count, *block.array.shape[1:]), block.array.dtype)
        whole[block.ids] = block.array
        if self._ranks.comm is not None:
            total = np.empty_like(whole)
            self._ranks.comm.Allreduce(whole, total)
            whole = total
        return whole[self.index(engine.tags())]
