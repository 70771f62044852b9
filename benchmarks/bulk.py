"""What it costs to hand a state over and to get one back: `python -m benchmarks bulk`.

- `push`: the stall of a state that asks for nothing, by slots of shared memory, with a real server that takes it. It
  takes turns with memcpy of the same bytes into a warm slot of as many, at the same point of the same loop: the host
  sweeps over its state for some time before each, which empties the caches of everything else.
- `push, lent`: the same for a state that was computed in a lent slot.
- `learned state back`: an Ask at a learned state, to the adopted state H steps on.

Where the time of each goes is in `benchmarks.promises`.
"""

from __future__ import annotations

import itertools
import mmap
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.coupled import by_slots, client, hand_over, integrate, learned, met, serving, snapshot_at
from benchmarks.links import child
from benchmarks.table import Row, Rows, timing
from coupler.links.zeromq import LinkLimits, connect
from schemas.fields import Array

LIMITS = LinkLimits(max_message_bytes=100_000_000, queue_bytes=400_000_000)
SIZES = {64: (400, 0.002), 8_000: (400, 0.002), 800_000: (200, 0.005), 8_000_000: (80, 0.02), 80_000_000: (16, 0.2)}
"""Bytes of a state, number of pushes, and seconds that the host integrates between two of them."""
BACK = {64: 2000, 8_000_000: 100}
RING = 12
"""Slots that memcpy takes turns with, as many as a ring has."""
COPY_S, BACK_S, LENT_S = 30e-6, 200e-6, 40e-6


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group."""
    made: Rows = []
    for size, (count, between_s) in SIZES.items():
        say(f"push of {size} bytes")
        with tempfile.TemporaryDirectory() as folder:
            made += pushes(size, count, between_s, Path(folder))
    for size, count in BACK.items():
        say(f"a learned state of {size} bytes")
        with tempfile.TemporaryDirectory() as folder:
            made += back(size, count, Path(folder))
    return made


@contextmanager
def warm(size: int):  # type: ignore[no-untyped-def]
    """Slots of warm memory to copy a state into, in turn."""
    memory = mmap.mmap(-1, RING * max(size, 4096), flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    slots = [np.frombuffer(memory, "<f8", size // 8, n * max(size, 4096)) for n in range(RING)]
    yield itertools.cycle(slots)


def serve(address: str, folder: str) -> None:
    """Child: a server that takes states and has nothing to say."""
    with serving(address, folder, act=False, limits=LIMITS, shared=True) as server:
        server.serve()


def pushes(size: int, count: int, between_s: float, folder: Path) -> Rows:
    """The stall of a push, copied and lent, against memcpy, in turns."""
    address, state = f"ipc://{folder}/s", np.zeros(size // 8)
    copied, lent, copies = [], [], []
    with child(serve, address, str(folder)), warm(size) as slots:
        link = connect(address, identity=b"rank-0", limits=LIMITS)
        with client(link, size, folder, by_slots(str(folder), "rank-0")) as coupling:
            step = met(coupling, state)
            for lends in orders(count):  # at random: some pushes take in what others left unread
                step += 1
                mine = coupling.allocate("state") if lends else state
                integrate(mine, between_s)
                (lent if lends else copied).append(pushed(coupling, step, mine))
                del mine
                integrate(state, between_s)
                began = time.perf_counter()
                np.copyto(next(slots), state)
                copies.append(time.perf_counter() - began)
            framed = coupling._channel.outbox.framed["state"] if coupling._channel else 0
    return [
        timing("memcpy into a warm slot", size, copies),
        against(timing("push", size, copied, copies, "memcpy"), 1.1 * float(np.median(copies)) + COPY_S) | {"n": count},
        against(timing("push, lent slot", size, lent, copies, "memcpy"), LENT_S) | {"in frames": framed},
    ]


def orders(count: int) -> list[bool]:
    """Which of the pushes are of lent slots: `count`, among as many that are not."""
    lends = np.arange(2 * count) % 2 == 1
    np.random.default_rng(0).shuffle(lends)
    return lends.tolist()


def against(made: Row, allowed_s: float) -> Row:
    """The row with the time allowed to its median, and whether it keeps it."""
    return made | {"target": f"<= {1e6 * allowed_s:.0f} us", "met": made["p50_us"] <= 1e6 * allowed_s}


def pushed(coupling, step: int, state: Array) -> float:  # type: ignore[no-untyped-def]
    """Seconds that a push holds the host."""
    snapshot = snapshot_at(step, state)
    began = time.perf_counter()
    coupling.push(snapshot)
    return time.perf_counter() - began


def act(address: str, folder: str) -> None:
    """Child: a server whose model leads from the first."""
    with serving(address, folder, act=True, limits=LIMITS, shared=True) as server:
        server.serve()


def back(size: int, count: int, folder: Path) -> Rows:
    """Learned steps, each with its state back, against memcpy of that state."""
    address, trips, copies = f"ipc://{folder}/a", [], []
    with child(act, address, str(folder)), warm(size) as slots:
        link = connect(address, identity=b"rank-0", limits=LIMITS)
        with client(link, size, folder, by_slots(str(folder), "rank-0")) as coupling:
            snapshot = hand_over(coupling, size)
            for turn in range(count + 20):
                began = time.perf_counter()
                snapshot = learned(coupling, snapshot)
                took = time.perf_counter() - began
                state = np.array(snapshot["state"])  # what the host does with it
                began = time.perf_counter()
                np.copyto(next(slots), state)
                if turn >= 20:
                    trips.append(took)
                    copies.append(time.perf_counter() - began)
    made = timing("Ask to learned state back", size, trips, copies, "memcpy")
    allowed_s = 2.5 * float(np.median(copies)) + BACK_S
    return [against(made, allowed_s) if size > 4096 else made]
