"""After the tenth step no page is touched for the first time on the step path: every buffer is used again.

So it is in slots, whatever the size. Frames of several megabytes are in the hands of libzmq and malloc, which may give
their memory back to the kernel in between; that is why `auto` takes slots where it can.
"""

from __future__ import annotations

import mmap
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coupler.bulks.choice import BulkRules
from coupler.bulks.outbox import Outbox
from coupler.links.zeromq import LinkLimits, connect, listen
from schemas import wire
from schemas.fields import Block
from schemas.messages import Push, Stamp

SIZES = pytest.mark.parametrize("size", [800_000, 8_000_000])
FIRST, LAST = 10, 60
LIMITS = LinkLimits(max_message_bytes=16_000_000, queue_bytes=320_000_000)
PATIENCE_S = 20.0


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


def test_small_frames_are_taken_from_memory_that_was_used_before(tmp_path: Path) -> None:
    size = 800_000
    listener = listen(f"ipc://{tmp_path}/s", limits=LIMITS)
    link, state = connect(listener.address, identity=b"rank-0", limits=LIMITS), np.ones(size // 8)
    read = threading.Event()

    def take() -> None:
        for _ in range(LAST):
            assert listener.receive(PATIENCE_S) is not None
            read.set()

    taker = threading.Thread(target=take)
    taker.start()

    def step(number: int) -> None:
        table, frames = wire.block_table({"x": Block(state, (0,))})
        while not link.send(wire.encode(Push(Stamp(0, 1, number, number, 0.0, 1.0, 0.0, table)), frames)):
            link.receive(0.01)  # until it is connected
        assert read.wait(PATIENCE_S)
        read.clear()

    found = faults_a_step(step)
    taker.join()
    link.close()
    listener.close()
    assert found < allowed(size)


@SIZES
def test_the_count_sees_fresh_memory(size: int) -> None:
    def step(_: int) -> None:
        with mmap.mmap(-1, size) as memory:
            memory[:] = bytes(size)

    assert faults_a_step(step) > allowed(size)
