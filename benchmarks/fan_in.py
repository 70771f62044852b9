"""64 ranks send to one server: `python -m benchmarks fan_in`.

Each rank is a process with a real `Coupling` over ZeroMQ and ipc. In every step it asks with its Block, 8 kB of one
global field, of a real server process that joins the Blocks of all ranks and answers each. Beside them are as many
processes with a bare DEALER that send the same frames to a bare ROUTER, which acknowledges each. The two sides take
turns in laps of some steps; the side that waits sleeps. A rank sends as long as fewer than the credit window of its
states are unanswered.

What is not as in a run: there is no MPI. The votes of `Coupling` go to nobody, so a rank goes on when its own window
has room, where in a run it would wait for the slowest rank. Its window is counted in answers, not in acknowledgements,
and since an answer needs all ranks, none gets further ahead of another than the window. There is no solver either, and
so nothing but the messages: the figures are those of the whole machine at full load, clients included.

"Lost" is what any of the books says that is not "admitted": those of the clients (produced, admitted, in flight,
dropped) and those of the server (lost, incomplete, states that were joined).
"""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zmq

from benchmarks.coupled import LAST_STEP, LIMITS, RUN, serve
from benchmarks.crew import Crew, Lap, Orders, Report, cpu_of, crew
from benchmarks.links import child
from benchmarks.table import BenchmarkFailed, Row, Rows, judged, row
from coupler.contracts import Frames, Link
from coupler.coupling import Coupling
from coupler.links.zeromq import connect
from coupler.ranks import Ranks
from coupler.terms import Terms
from ml_servers.server import SUMMARY
from schemas import wire
from schemas.fields import Block, FieldSpec, Snapshot
from schemas.messages import Ack, Ask, Stamp

RANKS = 64
VALUES = 1000
"""Float64 values in a Block: 8 kB."""
WINDOW = 8
"""States of a rank that may be unanswered: the server's default credit."""
LAPS, STEPS = 8, 150
"""Laps of each side, and steps of each rank in one."""
ANSWER_S = 60.0
"""Longest wait for an answer."""
AIM = 0.6
"""Smallest share of bare pyzmq's states per second."""


class Apart(Ranks):
    """A rank of several, without MPI: what it votes is what all vote, as far as it knows."""

    def __init__(self, rank: int, size: int) -> None:
        """Args: rank: This rank. size: Number of ranks."""
        self.rank, self.size = rank, size


class Awaited:
    """A Link that hands over only what was waited for, and counts it."""

    def __init__(self, link: Link) -> None:
        """Args: link: Connected Link."""
        self.came = 0
        self._link = link
        self._here: deque[tuple[bytes, list[memoryview]]] = deque()

    def wait(self, timeout_s: float) -> bool:
        """Takes in what has come, waiting up to timeout_s seconds for the first message. Whether any came."""
        before = self.came
        while (received := self._link.receive(timeout_s if self.came == before else 0.0)) is not None:
            self._here.append(received)
            self.came += 1
        return self.came > before

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`."""
        return self._link.send(frames, peer)

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """See `Link.receive`."""
        if not self._here and timeout_s > 0.0:
            self.wait(timeout_s)
        return self._here.popleft() if self._here else None

    def close(self, linger_s: float = 0.0) -> None:
        """See `Link.close`."""
        self._link.close(linger_s)


@dataclass(slots=True)
class Side:
    """What one side did.

    Attributes:
        states: States that one of its laps sends.
        laps: Its laps.
        server_s: CPU time of its server in each, seconds.
    """

    states: int
    laps: list[Lap] = field(default_factory=list)
    server_s: list[float] = field(default_factory=list)

    def run(self, members: Crew, server: int, until: int) -> None:
        """One lap."""
        before = cpu_of(server)
        self.laps.append(members.lap(until))
        self.server_s.append(cpu_of(server) - before)

    @property
    def rates(self) -> list[float]:
        """States per second, by lap."""
        return [self.states / lap.seconds for lap in self.laps]

    @property
    def server_us(self) -> float:
        """CPU time of the server for a state, microseconds."""
        return 1e6 * sum(self.server_s) / (self.states * len(self.laps))

    @property
    def client_us(self) -> float:
        """CPU time of a client for a state, microseconds."""
        return 1e6 * sum(lap.cpu_s for lap in self.laps) / (self.states * len(self.laps))


def rows(say: Callable[[str], None] = lambda _: None, ranks: int = RANKS, laps: int = LAPS, steps: int = STEPS) -> Rows:
    """All figures of this group."""
    ours, bare = Side(ranks * steps), Side(ranks * steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with bare_side(folder, ranks) as (bare_crew, bare_server), our_side(folder, ranks) as side:
            for lap in range(laps + 1):  # the first is not counted
                bare.run(bare_crew, bare_server, (lap + 1) * steps)
                ours.run(side.members, side.server, (lap + 1) * steps)
                say(f"lap {lap}: {ours.rates[-1]:.0f} states/s, bare pyzmq {bare.rates[-1]:.0f}")
        for measured in (ours, bare):
            del measured.laps[0], measured.server_s[0]
        lost = side.lost((laps + 1) * steps)
    return [*figures(ours, bare, ranks), judged(row("lost", median=float(lost), unit="states"), "median", at_most=0)]


def figures(ours: Side, bare: Side, ranks: int) -> Rows:
    """The rows of two sides that took turns."""
    against, size = f"bare pyzmq, {ranks} clients", 8 * VALUES
    rate = _row("fan-in", size, ours.rates, "states/s", float(np.median(ours.rates) / np.median(bare.rates)), against)
    return [
        judged(rate, "ratio", at_least=AIM),
        _row(against, size, bare.rates, "states/s"),
        _row("server CPU per state", size, [ours.server_us], "us", ours.server_us / bare.server_us, against),
        _row("client CPU per state", size, [ours.client_us], "us", ours.client_us / bare.client_us, against),
        _row("server CPU per state, bare", size, [bare.server_us], "us"),
        _row("client CPU per state, bare", size, [bare.client_us], "us"),
    ]


def _row(
    case: str, size: int, values: Sequence[float], unit: str, ratio: float | None = None, against: str = ""
) -> Row:
    found = {"median": float(np.median(values)), "low": min(values), "high": max(values)}
    return row(case, against=against, bytes=size, ratio=ratio, unit=unit, n=len(values), **found)


def losses(reports: Sequence[Report], facts: Report, steps: int) -> int:
    """States of all ranks that did not become part of a joined state, as the books of both sides have it."""
    lost = 0
    for books in reports:
        if books["produced"] != books["admitted"] + books["in_flight"] + sum(books["dropped"].values()):
            raise BenchmarkFailed(f"the books of a client do not balance: {books}")
        lost += abs(steps - books["admitted"])
    joined = facts["admitted"]
    return max(lost, facts["lost"] + facts["incomplete"], len(reports) * (steps - joined))


# --------------------------------------------------------------------------------------------------------- our side


@dataclass(slots=True)
class OurSide:
    """A server and its ranks.

    Attributes:
        members: The ranks.
        server: Process id of the server.
        folder: Folder of the server.
        reports: Books of the ranks, once they have ended.
    """

    members: Crew
    server: int
    folder: Path
    reports: list[Report] = field(default_factory=list)

    def lost(self, steps: int) -> int:
        """States that were lost of so many steps of each rank, once all have ended; see `losses`."""
        facts: Report = json.loads((self.folder / SUMMARY).read_text())["samples"]
        return losses(self.reports, facts, steps)


@contextmanager
def our_side(folder: Path, ranks: int) -> Iterator[OurSide]:
    """A server process and its ranks, connected. Both have ended when the block has."""
    address = f"ipc://{folder}/ours"
    with child(serve, address, str(folder)) as server, crew(send_ours, ranks, address, ranks) as members:
        side = OurSide(members, server, folder)
        members.ready()
        yield side
        side.reports = members.end()


def send_ours(rank: int, orders: Orders, report: Report, address: str, ranks: int) -> Iterator[None]:
    """One rank; see `benchmarks.crew.Work`."""
    link = Awaited(connect(address, identity=f"rank-{rank}".encode(), limits=LIMITS))
    array, offset = np.full(VALUES, float(rank)), (rank * VALUES,)
    terms = Terms(run=RUN, first_step=1, last_step=LAST_STEP, dt=1.0, max_message_bytes=LIMITS.max_message_bytes)

    def shown(step: int) -> Snapshot:
        return Snapshot(step, float(step), 1.0, {"state": Block(array, offset)})

    with Coupling(link, declared(ranks), terms, ranks=Apart(rank, ranks)) as coupling:
        while not link.wait(0.05):
            coupling.exchange(shown(0))  # greets; nothing is due before step 1
        step = 0
        yield
        for until in orders:
            while step < until:
                _await(link, step + 1 - WINDOW)
                step += 1
                array[0] = step
                coupling.exchange(shown(step))
            _await(link, step)
            coupling.exchange(shown(step))  # takes the last answers in; they say that nothing is due
            yield
    report |= coupling.books


def _await(link: Awaited, answered: int) -> None:
    """Takes in what has come, and waits until so many states were answered."""
    messages = 1 + answered  # the first is the Welcome
    if link.came >= messages:
        link.wait(0.0)
    while link.came < messages:
        if not link.wait(ANSWER_S):
            raise BenchmarkFailed(f"no answer in {ANSWER_S:g} seconds")


def declared(ranks: int) -> tuple[FieldSpec, ...]:
    """One field, of which each rank has a Block."""
    return (FieldSpec("state", "<f8", (ranks * VALUES,), "1"),)


# -------------------------------------------------------------------------------------------------------- bare side


@contextmanager
def bare_side(folder: Path, ranks: int) -> Iterator[tuple[Crew, int]]:
    """The same with bare pyzmq: its clients, and the process id of its server."""
    address = f"ipc://{folder}/bare"
    with child(serve_bare, address, ranks) as server, crew(send_bare, ranks, address) as members:
        members.ready()
        yield members, server
        members.end()


def send_bare(rank: int, orders: Orders, report: Report, address: str) -> Iterator[None]:  # noqa: ARG001
    """One client; see `benchmarks.crew.Work`."""
    blocks = {"state": Block(np.zeros(VALUES), (rank * VALUES,))}
    table, arrays = wire.block_table(blocks)
    frames = wire.encode(Ask(Stamp(rank, 1, 1, 1, 1.0, 1.0, float("inf"), table), LAST_STEP), arrays)
    sent = answered = 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.connect(address)
        yield
        for until in orders:
            while sent < until:
                while sent - answered >= WINDOW:
                    sock.recv_multipart()
                    answered += 1
                sock.send_multipart(frames)
                sent += 1
            while answered < sent:
                sock.recv_multipart()
                answered += 1
            yield
        sock.send(b"")


def serve_bare(address: str, ranks: int) -> None:
    """Child: acknowledges every message until every client has sent an empty one."""
    ack = bytes(wire.encode(Ack(1, 1, 0, WINDOW))[0])
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.bind(address)
        while ranks:
            peer, *frames = sock.recv_multipart()
            if frames[0]:
                sock.send_multipart([peer, ack])
            else:
                ranks -= 1
        sock.linger = 0
