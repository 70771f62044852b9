"""After the tenth step no page is touched for the first time on the step path: every buffer is used again.

So it is in slots, whatever the size, in a coupling and in the outbox alone. Frames are in the hands of libzmq and
malloc, which may give their memory back to the kernel in between; that is why `auto` takes slots where it can.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bulk
from benchmarks.links import child
from benchmarks.step import by_slots, client, met, snapshot_at
from coupler.bulks.choice import BulkRules
from coupler.bulks.outbox import Outbox
from coupler.links.zeromq import connect
from schemas.fields import Block

resource_tracker.ensure_running()  # it outlives the first child that is started, on purpose

SIZES = pytest.mark.parametrize("size", [800_000, 8_000_000])
FIRST, LAST = 10, 60


def faults_a_step(step: Callable[[int], object]) -> float:
    """Pages that this thread touches for the first time in a step, after the tenth."""
    before = 0
    for number in range(LAST):
        if number == FIRST:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        step(number)
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / (LAST - FIRST)


def allowed(size: int) -> float:
    """One page for each 256 kB; touching all of the state anew would take 64 times as many."""
    return size / (1 << 18)


@SIZES
def test_slots_are_there_already(tmp_path: Path, size: int) -> None:
    outbox, state = Outbox(BulkRules(use="shared"), folder=tmp_path, stem="rank-0", slots=6), np.ones(size // 8)
    outbox.near = ""

    def step(number: int) -> None:
        outbox.sent(outbox.put(number, 0.0, {"x": Block(state, (0,))}), number)
        lent = outbox.lend("x", state.shape, "<f8")
        lent[:] = 2.0
        outbox.free(number - 1)

    assert faults_a_step(step) < allowed(size)
    outbox.close()


@SIZES
@pytest.mark.parametrize("lends", [False, True])
def test_a_coupling_uses_its_memory_again(tmp_path: Path, size: int, lends: bool) -> None:
    address, own = f"ipc://{tmp_path}/s", np.zeros(size // 8)
    with child(bulk.serve, address, str(tmp_path)):
        link = connect(address, identity=b"rank-0", limits=bulk.LIMITS)
        with client(link, size, tmp_path, by_slots(str(tmp_path), "rank-0")) as coupling:
            first = met(coupling, own) + 1
            channel, books = coupling._channel, coupling._protocol.books
            assert channel is not None

            def step(number: int) -> None:
                state = coupling.allocate("state") if lends else own
                state[:] = number
                coupling.push(snapshot_at(first + number, state))
                while books.in_flight:
                    channel.drain(1.0)

            assert faults_a_step(step) < allowed(size)
            assert channel.outbox.crowded == 0 and channel.outbox.routes["state"].use == "shared"


@SIZES
def test_the_count_sees_fresh_memory(size: int) -> None:
    def step(_: int) -> None:
        with mmap.mmap(-1, size) as memory:
            memory[:] = bytes(size)

    assert faults_a_step(step) > allowed(size)
