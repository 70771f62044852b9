"""After the tenth step no page is touched for the first time on the step path: every buffer is used again.

So it is in slots, whatever the size. Frames are in the hands of libzmq and malloc, which may give their memory back to
the kernel in between; that is why `auto` takes slots where it can.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from faults import allowed, faults_a_step

from coupler.bulks.choice import BulkRules
from coupler.bulks.outbox import Outbox
from schemas.fields import Block

SIZES = pytest.mark.parametrize("size", [800_000, 8_000_000])


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
def test_the_count_sees_fresh_memory(size: int) -> None:
    def step(_: int) -> None:
        with mmap.mmap(-1, size) as memory:
            memory[:] = bytes(size)

    assert faults_a_step(step) > allowed(size)
