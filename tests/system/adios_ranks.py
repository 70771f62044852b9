"""M writers or N readers of one SST stream: `mpiexec -n M python adios_ranks.py write|read FOLDER DISTRIBUTION`.

Every value says which one it is, so that a reader's part can be checked without the writers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from coupler.bulks.adios import AdiosReader, AdiosWriter
from coupler.bulks.courier import KNOCKED_S
from coupler.distribution import Share, cut
from schemas.fields import Array, Block, FieldSpec

STEPS = 6
PATIENCE_S = 30.0
FIELDS = (
    FieldSpec("slab", "<f8", (13, 4), "m"),
    FieldSpec("brick", "<f4", (8, 9, 2), "m"),
    FieldSpec("ragged", "<i4", (10,), "1"),
    FieldSpec("atoms", "<f8", (11, 3), "m", "particle"),
    FieldSpec("mask", "|u1", (12,), "1"),
    FieldSpec("energy", "<f8", (), "J", "scalar", "observable"),
)


def truth(spec: FieldSpec, step: int) -> Array:
    count = int(np.prod(spec.shape, dtype=np.int64))
    return (1000 * step + np.arange(count)).astype(spec.dtype).reshape(spec.shape)


def written(rank: int, ranks: int, step: int) -> dict[str, Block]:
    """The Blocks of one writer: slabs, bricks, a decomposition with an empty rank, and particles that wander."""
    slab, brick, ragged, atoms, mask, energy = (truth(spec, step) for spec in FIELDS)
    begin, length = cut(13, ranks, rank)
    rows = 2 if ranks % 2 == 0 else ranks
    (top, high), (left, wide) = cut(8, rows, rank % rows), cut(9, ranks // rows, rank // rows)
    filled = [r for r in range(ranks) if r != 1 or ranks == 1]  # rank 1 holds nothing of it
    left_off, long = cut(12, ranks, rank)
    low, few = cut(10, len(filled), filled.index(rank)) if rank in filled else (0, 0)
    ids = np.array([i for i in range(11) if (i + step) % ranks == rank and (step != 3 or ranks == 1 or rank)], np.int64)
    if step == 3 and ranks > 1 and rank == ranks - 1:  # what rank 0 would have held
        ids = np.concatenate([ids, [i for i in range(11) if (i + step) % ranks == 0]]).astype(np.int64)
    return {
        "slab": Block(slab[begin : begin + length], (begin, 0)),
        "brick": Block(brick[top : top + high, left : left + wide], (top, left, 0)),
        "ragged": Block(ragged[low : low + few].astype(">i4"), (low,)),
        "atoms": Block(atoms[ids], (), ids),
        "mask": Block(mask[left_off : left_off + long], (left_off,)),
        "energy": Block(np.asarray(energy), ()),
    }


def write(folder: Path, comm: Any) -> None:
    writer = AdiosWriter(folder / "stream", FIELDS, comm=comm)
    end = time.monotonic() + PATIENCE_S
    while comm.allreduce(not writer.wanted()):
        assert time.monotonic() < end, "no reader came"
    visits = [time.monotonic() + later for later in KNOCKED_S]  # so few that they do not fill the queue
    while comm.allreduce(not (folder / "open").exists()):  # the readers' open ends when the writers come by
        assert time.monotonic() < end, "the readers did not open the stream"
        if comm.bcast(bool(visits) and time.monotonic() > visits[0]):
            visits.pop(0)
            writer.come_by()
    for step in range(STEPS):
        assert writer.put(step, 0.5 * step, written(comm.Get_rank(), comm.Get_size(), step)) == step
    # The readers leave first: where both sides close at once, SST ended a reader with an error once in 42 runs.
    while comm.allreduce(not (folder / "read").exists()):
        assert time.monotonic() < end, "the readers did not leave"
    writer.close()


def read(folder: Path, comm: Any, distribution: Any) -> None:
    reader = AdiosReader(folder / "stream", FIELDS, comm=comm, open_timeout_s=PATIENCE_S)
    comm.Barrier()
    (folder / "open").touch()
    share = Share(distribution, comm.Get_size(), comm.Get_rank())
    taken: dict[str, list[list[int]]] = {spec.name: [] for spec in FIELDS}
    for number in range(STEPS):
        found = reader.next(PATIENCE_S, share)
        assert found is not None, f"step {number} did not come"
        assert (found.number, found.step, found.time) == (number, number, 0.5 * number)
        for spec in FIELDS:
            values = found.blocks[spec.name].array.ravel().tolist() if found.blocks else []
            taken[spec.name].append([int(value) for value in values])
    reader.close()
    comm.Barrier()
    (folder / "read").touch()
    everyone = comm.gather(taken)
    if comm.Get_rank() == 0:
        sys.stdout.write(json.dumps(everyone))


if __name__ == "__main__":
    from mpi4py import MPI  # here only: the test imports what is above, and is no rank

    role, where, how = sys.argv[1:]
    if role == "write":
        write(Path(where), MPI.COMM_WORLD)
    else:
        read(Path(where), MPI.COMM_WORLD, how)
