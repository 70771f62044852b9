"""After the tenth step a coupling's step touches no page of a state for the first time, with a real server.

The pages are counted for the host's thread while states travel by slots of shared memory, and while they leave in
frames. Frames that arrive are in the hands of libzmq and malloc, which may give their memory back to the kernel between
two steps; nothing is promised there, and nothing is tested.
"""

from __future__ import annotations

from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
from faults import LAST, allowed, faults_a_step

from benchmarks import bulk
from benchmarks.coupled import by_slots, client, hand_over, learned, met, serving, snapshot_at
from benchmarks.links import child
from benchmarks.peers.exchange import announced
from benchmarks.tcp import ANY, limits_for, settle
from coupler.bulks.bulk import frames_only
from coupler.links.zeromq import connect

resource_tracker.ensure_running()  # it outlives the first child, on purpose

SIZES = pytest.mark.parametrize("size", [800_000, 8_000_000])


@SIZES
@pytest.mark.parametrize("lent", [False, True])
def test_a_state_is_handed_over_in_memory_that_is_there(tmp_path: Path, size: int, lent: bool) -> None:
    address, state = f"ipc://{tmp_path}/s", np.ones(size // 8)
    with child(bulk.serve, address, str(tmp_path)):
        link = connect(address, identity=b"rank-0", limits=bulk.LIMITS)
        with client(link, size, tmp_path, by_slots(str(tmp_path), "rank-0")) as coupling:
            first = met(coupling, state)
            settle(coupling)

            def step(number: int) -> None:
                mine = coupling.allocate("state") if lent else state
                mine += 1.0
                coupling.push(snapshot_at(first + number, mine))
                settle(coupling)

            assert faults_a_step(step) < allowed(size)
            assert coupling.books["admitted"] >= LAST
            assert coupling._channel is not None and not coupling._channel.outbox.framed


@SIZES
@pytest.mark.parametrize("lent", [False, True])
def test_a_state_leaves_in_frames_from_memory_that_is_there(tmp_path: Path, size: int, lent: bool) -> None:
    state = np.ones(size // 8)
    with child(serve_frames, str(tmp_path), str(size)):
        link = connect(announced(tmp_path), identity=b"rank-0", limits=limits_for(size))
        with client(link, size, tmp_path, frames_only(digest=True), limits_for(size)) as coupling:
            first = met(coupling, state)
            settle(coupling)

            def step(number: int) -> None:
                mine = coupling.allocate("state") if lent else state
                mine[:] = number
                coupling.push(snapshot_at(first + number, mine))
                settle(coupling)

            assert faults_a_step(step) < allowed(size)
            assert coupling.books["admitted"] >= LAST


def serve_frames(folder: str, size: str) -> None:
    """Child: a server on tcp."""
    with serving(ANY, folder, act=False, limits=limits_for(int(size))) as server:
        server.serve()


@SIZES
def test_a_learned_state_comes_back_in_memory_that_is_there(tmp_path: Path, size: int) -> None:
    address, state = f"ipc://{tmp_path}/a", np.ones(size // 8)
    with child(bulk.act, address, str(tmp_path)):
        link = connect(address, identity=b"rank-0", limits=bulk.LIMITS)
        with client(link, size, tmp_path, by_slots(str(tmp_path), "rank-0")) as coupling:
            snapshot = hand_over(coupling, size)

            def step(_: int) -> None:
                nonlocal snapshot
                snapshot = learned(coupling, snapshot)
                state[:] = snapshot["state"]

            assert faults_a_step(step) < allowed(size)
