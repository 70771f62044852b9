"""MPI: two programs of one mpiexec, Send and Recv. Both burn a core while they wait.

That is the fastest way here, and not one for a solver and a server that start, fail and restart on their own. Between
turns the consumer looks for a message with pauses, so that it leaves the core to the other peers.
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks.peers.exchange import IDLE_S, Array, Peer, Place, modules_missing, respond

DATA, END = 1, 2
PAUSE_S = 0.002
"""Between two looks of a consumer at rest."""
AWAKE_S, AWAKE_S_PER_BYTE = 0.01, 1.5e-9
"""How long after a message it goes on spinning: a producer sweeps over its array before it puts it again."""


class Sender:
    """Producer: rank 0."""

    def __init__(self, place: Place) -> None:
        from mpi4py import MPI

        self._world, self._answer = MPI.COMM_WORLD, place.empty()

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self._world.Send(array, 1, DATA)

    def get(self) -> Array:
        """See `Exchange.get`. MPI has no time-out: whoever started this program has."""
        self._world.Recv(self._answer, 1, DATA)
        return self._answer

    def close(self) -> None:
        """See `Exchange.close`."""
        self._world.Send(self._answer, 1, END)


def consume(place: Place) -> None:
    """Consumer: rank 1."""
    from mpi4py import MPI

    world, status = MPI.COMM_WORLD, MPI.Status()
    question, out = place.empty(), place.empty()
    awake_s, last = AWAKE_S + AWAKE_S_PER_BYTE * out.nbytes, time.monotonic()
    while (now := time.monotonic()) < last + IDLE_S:
        if not world.Iprobe(0, MPI.ANY_TAG, status):
            if now > last + awake_s:
                time.sleep(PAUSE_S)
            continue
        world.Recv(question, 0, MPI.ANY_TAG, status)
        if status.Get_tag() == END:
            return
        world.Send(respond(question, out), 0, DATA)
        last = time.monotonic()
    raise TimeoutError(f"no array came within {IDLE_S:g} s")


PEERS = (
    Peer(
        "MPI, one mpiexec",
        Sender,
        consume,
        partial(modules_missing, "mpi4py", install="pip install 'coupler[mpi]'"),
        one_mpiexec=True,
    ),
)
