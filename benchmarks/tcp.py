"""A state across tcp loopback, there and back: `python -m benchmarks tcp`.

- `state there`: a push in frames, from the call to the acknowledgement of a real server in another process.
- `state there, lent`: the same of an array from `allocate`, which is not copied.
- `states there, in a row`: as many pushes as the window holds, to the last acknowledgement.
- `learned state back`: an Ask at a learned state, to the adopted state H steps on.

Bare pyzmq without copies (`copy=False` on both sides, DEALER here and ROUTER there) takes turns with ours, with frames
of the same sizes both ways, served by one thread of one child. It does not look at what it carries, and the solver may
not change its array before the transfer ends, as one that is lent. Ours is measured with the digest and without.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zmq

from benchmarks.coupled import Stamped, client, hand_over, learned, met, serving, snapshot_at
from benchmarks.links import child
from benchmarks.peers.exchange import announce, announced
from benchmarks.table import BenchmarkFailed, Row, Rows, judged, timing
from coupler.bulks.bulk import frames_only
from coupler.coupling import Coupling
from coupler.links.zeromq import LinkLimits, connect

ANY = "tcp://127.0.0.1:0"
SIZE, TURNS, WARM_UP = 8_000_000, 150, 10
WINDOW = 8
"""States in a row; the window of `CoreSettings`."""
PATIENCE_S = 60.0
SHARE = 0.9
"""Of the bytes a second of bare pyzmq."""
BARE = "bare pyzmq, zero copy"


def limits_for(size: int) -> LinkLimits:
    """Bounds of a link for states of a size: queues that hold twice the window."""
    return LinkLimits(max_message_bytes=size + 4096, queue_bytes=4 * WINDOW * (size + 4096))


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group."""
    made: Rows = []
    for digest in (True, False):
        for measure in (there, lent, in_a_row, back):
            say(f"{measure.__name__.replace('_', ' ')}, {'with' if digest else 'without'} digest")
            with tempfile.TemporaryDirectory() as folder:
                made += measure(SIZE, TURNS, digest, Path(folder))
    return made


@dataclass
class Meeting:
    """Both connections of the parent to one child.

    Attributes:
        bare: Socket of bare pyzmq.
        link: Ours.
        coupling: A host on it.
        bare_s: Seconds of each turn of bare pyzmq.
        our_s: Seconds of each turn of ours.
        wire_s: Of these, from the last frame sent to the answer's arrival.
    """

    bare: zmq.Socket[bytes]
    link: Stamped
    coupling: Coupling
    bare_s: list[float] = field(default_factory=list)
    our_s: list[float] = field(default_factory=list)
    wire_s: list[float] = field(default_factory=list)

    def takes_turns(
        self,
        question: Sequence[memoryview],
        ours: Callable[[], None],
        turns: int,
        messages: int,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Each side sends, and waits for the answers; the first turns are not timed.

        Args:
            question: Frames that bare pyzmq sends.
            ours: The same over ours.
            prepare: Called before each turn.
            turns: Number of turns that are timed.
            messages: Messages in a row in each turn; the child answers as many.
        """
        self.bare.send(json.dumps([self.link.received, messages]).encode())
        for turn in range(turns + WARM_UP):
            prepare()
            began = time.perf_counter()
            for _ in range(messages):
                self.bare.send_multipart(question, copy=False)
            for _ in range(messages):
                self.bare.recv_multipart(copy=False)
            between = time.perf_counter()
            ours()
            ended = time.perf_counter()
            if turn >= WARM_UP:
                self.bare_s.append(between - began)
                self.our_s.append(ended - between)
                self.wire_s.append(self.link.arrived - self.link.left)
        self.bare.send_multipart([b""])


@contextmanager
def meeting(size: int, digest: bool, act: bool, folder: Path) -> Iterator[Meeting]:
    """Connects to a child that serves both; with `act` its model leads from the first."""
    (folder / "bare").mkdir()
    flags = [word for word, wanted in (("act", act), ("digest", digest)) if wanted]
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as bare,
        child(serve_both, str(folder), str(size), ",".join(flags)),
    ):
        bare.linger = 0
        bare.rcvtimeo = round(1000 * PATIENCE_S)
        bare.connect(announced(folder / "bare"))
        link = Stamped(connect(announced(folder), identity=b"rank-0", limits=limits_for(size)))
        with client(link, size, folder, frames_only(digest), limits_for(size)) as coupling:
            yield Meeting(bare, link, coupling)


def serve_both(folder: str, size: str, flags: str) -> None:
    """Child: a real server; once told so, bare pyzmq and the server answer in turn until an empty message comes."""
    limits = limits_for(int(size))
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as bare,
    ):
        bare.bind("tcp://127.0.0.1:*")
        announce(Path(folder) / "bare", bare.last_endpoint.decode())
        with serving(ANY, folder, act="act" in flags, limits=limits, digest="digest" in flags) as server:
            while not bare.poll(0):
                server.poll(0.01)
            sizes, messages = json.loads(bare.recv_multipart()[1])
            answer = [np.ones(n, np.uint8).data for n in sizes]
            while answered(bare, answer, messages):
                for _ in range(messages):
                    server.poll(PATIENCE_S)
            server.serve()


def answered(bare: zmq.Socket[bytes], answer: Sequence[memoryview], messages: int) -> bool:
    """Takes and answers messages over bare pyzmq; False when an empty one came."""
    for _ in range(messages):
        peer, *question = bare.recv_multipart(copy=False)
        if not len(question[0]):
            return False
        bare.send_multipart([peer, *answer], copy=False)
    return True


def there(size: int, turns: int, digest: bool, folder: Path) -> Rows:
    """One state, to its acknowledgement."""
    return states(f"state there{told(digest)}", size, turns, 1, digest, folder)


def in_a_row(size: int, turns: int, digest: bool, folder: Path) -> Rows:
    """A window of states, to the last acknowledgement."""
    return states(f"{WINDOW} states there, in a row{told(digest)}", size, -(-turns // WINDOW), WINDOW, digest, folder)


def told(digest: bool) -> str:
    """The end of a row's name."""
    return "" if digest else ", no digest"


def lent(size: int, turns: int, digest: bool, folder: Path) -> Rows:
    """One state in an array that was lent, to its acknowledgement."""
    return states(f"state there, lent{told(digest)}", size, turns, 1, digest, folder, lend=True)


def states(case: str, size: int, turns: int, messages: int, digest: bool, folder: Path, *, lend: bool = False) -> Rows:
    """States pushed one behind the other, to the last acknowledgement, against the same messages over bare pyzmq."""
    state = np.zeros(size // 8)
    with meeting(size, digest, False, folder) as both:
        step = met(both.coupling, state)

        def prepare() -> None:
            nonlocal state
            if lend:
                state = both.coupling.allocate("state")
            state[:] = step

        def push(count: int) -> None:
            nonlocal step
            for _ in range(count):
                step += 1
                both.coupling.push(snapshot_at(step, state))
            settle(both.coupling)

        prepare()
        push(1)
        question = [np.ones(n, np.uint8).data for n in both.link.sent]
        both.takes_turns(question, lambda: push(messages), turns, messages, prepare)
        if dropped := both.coupling.books["dropped"].get("no credit", 0):
            raise BenchmarkFailed(f"{dropped} states found no credit although all before had been acknowledged")
    return [compared(case, messages * size, both.our_s, both.bare_s)]


def settle(coupling: Coupling) -> None:
    """Waits until all that is under way was acknowledged."""
    assert coupling._channel is not None  # it has a link
    end = time.perf_counter() + PATIENCE_S
    while coupling.books["in_flight"]:
        coupling._channel.drain(1.0)
        if time.perf_counter() > end:
            raise BenchmarkFailed("a state was never acknowledged")


def back(size: int, turns: int, digest: bool, folder: Path) -> Rows:
    """A learned state, from its Ask to the state that the host adopts; and without what is done with it on arrival."""
    with meeting(size, digest, True, folder) as both:
        snapshot = hand_over(both.coupling, size)

        def step() -> None:
            nonlocal snapshot
            snapshot = learned(both.coupling, snapshot)

        for _ in range(WARM_UP):
            step()
        both.takes_turns([np.ones(n, np.uint8).data for n in both.link.sent], step, turns, 1)
    case = f"learned state back{told(digest)}"
    arrival = compared(f"{case}, to its arrival", size, both.wire_s, both.bare_s)
    return [compared(case, size, both.our_s, both.bare_s), arrival]


def compared(case: str, size: int, ours: Sequence[float], bare: Sequence[float]) -> Row:
    """A row of ours: its bytes a second as `median`, and their ratio to those of bare pyzmq."""
    made = timing(case, size, ours, (), BARE)
    rates = {"ratio": float(np.median(bare) / np.median(ours)), "median": 1e-9 * size / float(np.median(ours))}
    theirs = {"unit": "GB/s", "bare_p50_us": 1e6 * float(np.median(bare))}
    return judged(made | rates | theirs, "ratio", at_least=SHARE)
