"""Where the time of a step goes, and what each promise costs: `python -m benchmarks promises`.

- `state to its acknowledgement`: over tcp loopback in frames, plain; with digests; with CURVE keys; with both. One
  child serves the four in turn.
- `push`: the parts of a push by slots of shared memory with a real server, between two steps of a solver.
- `learned step`: the parts of an Ask at a learned state, to the state that the host adopts.

A part counts without the parts inside it, so that parts and rest add up to the whole. Timing a part costs about a
microsecond, which the part around it bears.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.coupled import by_slots, client, hand_over, integrate, learned, met, serving, snapshot_at
from benchmarks.links import child
from benchmarks.peers.exchange import announced, await_any
from benchmarks.stopwatch import REST, Stopwatch, reads_and_writes
from benchmarks.table import BenchmarkFailed, Row, Rows, row, timing
from benchmarks.tcp import ANY, PATIENCE_S, limits_for, settle
from coupler import coupling as coupling_module
from coupler import soundness
from coupler.bulks.bulk import frames_only
from coupler.coupling import Coupling
from coupler.links.security import load_keys, make_keys
from coupler.links.zeromq import connect
from ml_servers.server import Server
from schemas import wire

SIZES = {8_000: (1000, 300, 0.002), 8_000_000: (60, 100, 0.02)}
"""Bytes of a state, turns of the promises, calls of the profile, and seconds of the solver between two calls."""
WAYS = {"plain": (False, False), "with digest": (True, False), "with keys": (False, True), "with both": (True, True)}
"""Digest and keys."""
KEYS, GO, GONE = "keys", "go", "gone"
WARM_UP = 10
ACKS, FINITE, PUT, ENCODE, SEND = "acknowledgements", "finite?", "into a slot", "encode", "send: copy and system call"
RECEIVE, DECODE, GUARD = "receive: wait and system call", "decode", "guard"


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group."""
    made: Rows = []
    for size, (turns, calls, between_s) in SIZES.items():
        say(f"promises, {size} bytes")
        with tempfile.TemporaryDirectory() as folder:
            made += promises(size, turns, Path(folder))
        say(f"where the time goes, {size} bytes")
        with tempfile.TemporaryDirectory() as folder:
            made += push(size, calls, between_s, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            made += learned_step(size, calls, Path(folder))
    return made


# --------------------------------------------------------------------------------------------------------- promises


def promises(size: int, turns: int, folder: Path) -> Rows:
    """A state to its acknowledgement, with and without each promise, in turns."""
    make_keys(folder / KEYS)
    state, steps = np.zeros(size // 8), {}
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    stalls: dict[str, list[float]] = {way: [] for way in WAYS}
    with child(serve_all, str(folder), str(size)), ExitStack() as open_:
        couplings = {way: open_.enter_context(joined(way, size, folder)) for way in WAYS}
        for way, coupling in couplings.items():
            steps[way] = met(coupling, state)
            settle(coupling)
        (folder / GO).touch()
        await_any([folder / GONE], PATIENCE_S)  # from here on the child waits for each in the order of ours
        for turn in range(turns + WARM_UP):
            for way in rotated(turn):
                coupling = couplings[way]
                began = time.perf_counter()
                coupling.push(snapshot_at(steps[way] + turn, state))
                pushed = time.perf_counter()
                settle(coupling)
                if turn >= WARM_UP:
                    stalls[way].append(pushed - began)
                    took[way].append(time.perf_counter() - began)
    plain = "plain"
    return [
        timing(f"{what}, {way}", size, seconds[way], seconds[plain], plain)
        for what, seconds in (("push in frames over tcp", stalls), ("state to its acknowledgement", took))
        for way in WAYS
    ]


@contextmanager
def joined(way: str, size: int, folder: Path) -> Iterator[Coupling]:
    """A host that is connected one way."""
    digest, keyed = WAYS[way]
    place, limits = folder / way, limits_for(size)
    keys = load_keys(folder / KEYS).client() if keyed else None
    link = connect(announced(place), identity=b"rank-0", limits=limits, keys=keys)
    with client(link, size, place, frames_only(digest), limits) as coupling:
        yield coupling


def serve_all(folder: str, size: str) -> None:
    """Child: a server for each way; they look in turn until all have met their host, then wait for each in turn."""
    with ExitStack() as open_:
        servers: dict[str, Server] = {}
        for way, (digest, keyed) in WAYS.items():
            place = Path(folder) / way
            place.mkdir()
            keys = load_keys(Path(folder) / KEYS).server() if keyed else None
            of_it = serving(ANY, str(place), act=False, limits=limits_for(int(size)), digest=digest, keys=keys)
            servers[way] = open_.enter_context(of_it)
        while not (Path(folder) / GO).exists():
            for server in servers.values():
                server.poll(0.005)
        (Path(folder) / GONE).touch()
        for turn in itertools.count():
            if all(server.core.all_finished for server in servers.values()):
                return
            for way in rotated(turn):
                if not servers[way].core.all_finished:
                    servers[way].poll(PATIENCE_S)


def rotated(turn: int) -> list[str]:
    """The ways in the order of a turn: what went before leaves the caches and the allocator in some state."""
    ways, first = list(WAYS), turn % len(WAYS)
    return ways[first:] + ways[:first]


# ---------------------------------------------------------------------------------------------------------- profile


def push(size: int, calls: int, between_s: float, folder: Path) -> Rows:
    """The parts of a push by slots, the caches cold from the solver's own work as they are in a run."""
    state, watch, took, counts = np.zeros(size // 8), Stopwatch(), [], []
    address = f"ipc://{folder}/s"
    with child(serve_slots, address, str(folder), str(size), ""):
        link = connect(address, identity=b"rank-0", limits=limits_for(size))
        with client(link, size, folder, by_slots(str(folder), "rank-0"), limits_for(size)) as coupling:
            step = met(coupling, state)
            with watched(watch, coupling, link, ACKS):
                for turn in range(calls + WARM_UP):
                    integrate(state, between_s)
                    snapshot = snapshot_at(step + turn, state)
                    before = reads_and_writes()
                    seconds = watch.call(lambda snapshot=snapshot: coupling.push(snapshot))
                    counts.append(between(before, reads_and_writes()))
                    took.append(seconds)
            if coupling.books["dropped"].get("no credit", 0) > 0.5 * calls:
                raise BenchmarkFailed("most states found no credit: the machine is too busy to time them")
    return [*parts("push", size, took, watch), *counted("push", size, counts)]


def learned_step(size: int, calls: int, folder: Path) -> Rows:
    """The parts of an Ask at a learned state, whose answer is waited for."""
    watch, took, counts = Stopwatch(), [], []
    address = f"ipc://{folder}/a"
    with child(serve_slots, address, str(folder), str(size), "act"):
        link = connect(address, identity=b"rank-0", limits=limits_for(size))
        with client(link, size, folder, by_slots(str(folder), "rank-0"), limits_for(size)) as coupling:
            snapshot = hand_over(coupling, size)

            def ask() -> None:
                nonlocal snapshot
                snapshot = learned(coupling, snapshot)

            with watched(watch, coupling, link, REST):
                for _ in range(calls + WARM_UP):
                    before = reads_and_writes()
                    took.append(watch.call(ask))
                    counts.append(between(before, reads_and_writes()))
    return [*parts("learned step", size, took, watch), *counted("learned step", size, counts)]


def serve_slots(address: str, folder: str, size: str, act: str) -> None:
    """Child: a server by slots of shared memory."""
    with serving(address, folder, act=bool(act), limits=limits_for(int(size)), shared=True) as server:
        server.serve()


@contextmanager
def watched(watch: Stopwatch, coupling: Coupling, link: object, draining: str) -> Iterator[None]:
    """Times the parts of a step of a coupling.

    Args:
        watch: Takes the times.
        coupling: The coupling.
        link: Its link.
        draining: The part that taking messages in counts as, besides waiting for them and reading them.
    """
    channel = coupling._channel
    assert channel is not None  # it has a link
    if draining == ACKS:  # nothing else comes
        watch.time(channel, "drain", ACKS)
    else:
        watch.time(link, "receive", RECEIVE)
        watch.time(wire, "decode", DECODE)
    watch.time(soundness, "fault", FINITE)
    watch.time(channel.outbox, "put", PUT)
    watch.time(wire, "encode", ENCODE)
    watch.time(link, "send", SEND)
    watch.time(coupling_module, "objection_to", GUARD)
    try:
        yield
    finally:
        watch.undo()


def parts(what: str, size: int, took: list[float], watch: Stopwatch) -> Rows:
    """The whole and its parts, each against the whole; the calls that warm up are left out."""
    whole = took[WARM_UP:]
    made = [timing(what, size, whole)]
    for part, seconds in sorted(watch.seconds.items(), key=lambda item: -float(np.median(item[1]))):
        late = [0.0] * (len(took) - len(seconds)) + seconds
        made.append(timing(f"{what}: {part}", size, late[WARM_UP:], whole, what))
    return made


def between(before: int | None, after: int | None) -> int | None:
    """Calls between two counts; to count costs two itself."""
    return None if before is None or after is None else after - before


def counted(what: str, size: int, counts: list[int | None]) -> list[Row]:
    """How often the host's thread reads and writes in a call. Nothing where the system does not tell."""
    first = reads_and_writes()
    known = [n for n in counts[WARM_UP:] if n is not None]
    cost = between(first, reads_and_writes())
    if not known or cost is None:
        return []
    return [
        row(f"{what}: reads and writes of its thread", bytes=size, median=float(np.median(known)) - cost, unit="calls")
    ]
