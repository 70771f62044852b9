"""After the tenth step a coupling's step touches no page of a state for the first time, with a server in its process.

The pages are counted for the host's thread while states travel by slots of shared memory. In frames they are in the
hands of libzmq and malloc, which may give their memory back to the kernel between two steps; nothing is promised
there, and nothing is tested.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bulk
from benchmarks.coupled import by_slots, client, learned, snapshot_at
from benchmarks.links import child
from coupler.coupling import Coupling
from coupler.links.zeromq import connect
from schemas.fields import Snapshot
from schemas.messages import Action

resource_tracker.ensure_running()  # it outlives the first child, on purpose

SIZES = pytest.mark.parametrize("size", [800_000, 8_000_000])
FIRST, LAST = 10, 50
WAIT_S = 30.0


def faults_a_step(step: Callable[[], object]) -> float:
    """Pages that this thread touches for the first time in a step, after the tenth."""
    before = 0
    for number in range(LAST):
        if number == FIRST:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        step()
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / (LAST - FIRST)


def allowed(size: int) -> float:
    """One page for each 256 kB; touching all of the state anew would take 64 times as many."""
    return size / (1 << 18)


def settled(coupling: Coupling) -> None:
    """Waits until every state was acknowledged, so that its slot is free again."""
    assert coupling._channel is not None
    for _ in range(100):
        if not coupling.books["in_flight"]:
            return
        coupling._channel.drain(WAIT_S / 100)
    raise AssertionError("a state was not acknowledged")


def met(coupling: Coupling, state: np.ndarray) -> int:
    """Shows states until the server has taken one; the next step."""
    assert coupling._channel is not None
    for step in range(3000):
        coupling.exchange(snapshot_at(step, state))
        if coupling.books["admitted"]:
            settled(coupling)
            return step + 1
        coupling._channel.drain(WAIT_S / 3000)
    raise AssertionError("the server did not come")


@SIZES
@pytest.mark.parametrize("lent", [False, True])
def test_a_state_is_handed_over_in_memory_that_is_there(tmp_path: Path, size: int, lent: bool) -> None:
    address, state = f"ipc://{tmp_path}/s", np.ones(size // 8)
    with child(bulk.serve, address, str(tmp_path)):
        link = connect(address, identity=b"rank-0", limits=bulk.LIMITS)
        with client(link, size, tmp_path, by_slots(str(tmp_path), "rank-0")) as coupling:
            assert coupling._channel is not None
            at = met(coupling, state)

            def step() -> None:
                nonlocal at
                mine = coupling.allocate("state") if lent else state
                mine += 1.0
                coupling.push(snapshot_at(at, mine))
                settled(coupling)
                at += 1

            assert faults_a_step(step) < allowed(size)
            assert coupling.books["admitted"] >= LAST and not coupling._channel.outbox.crowded


@SIZES
def test_a_learned_state_comes_back_in_memory_that_is_there(tmp_path: Path, size: int) -> None:
    address, state = f"ipc://{tmp_path}/a", np.ones(size // 8)
    with child(bulk.act, address, str(tmp_path)):
        link = connect(address, identity=b"rank-0", limits=bulk.LIMITS)
        with client(link, size, tmp_path, by_slots(str(tmp_path), "rank-0")) as coupling:
            snapshot = taken_over(coupling, state)

            def step() -> None:
                nonlocal snapshot
                snapshot = learned(coupling, snapshot)
                state[:] = snapshot["state"]

            assert faults_a_step(step) < allowed(size)


def taken_over(coupling: Coupling, state: np.ndarray) -> Snapshot:
    """Shows states until the model takes over; the state that it leads to."""
    assert coupling._channel is not None
    for step in range(3000):
        advice = coupling.exchange(snapshot_at(step, state), until=step + 50)
        if advice.action is Action.LEARNED:
            assert advice.snapshot is not None
            return advice.snapshot
        coupling._channel.drain(WAIT_S / 3000)
    raise AssertionError("the model never took over")
