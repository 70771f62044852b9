"""Checks that a Link keeps its contract. Needs no test framework: call it from any test of your own link."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from coupler.contracts import Frames, Link
from coupler.errors import PluginError

Connect = Callable[[bytes], Link]
MakePair = Callable[[], tuple[Link, Connect]]

BIG_FRAME_BYTES = 8 * 2**20
_FILL_BYTES = 2**18
_PATIENCE_S = 20.0


def check_link(make_pair: MakePair, *, capacity_bytes: int) -> None:
    """Runs every check on freshly opened links and closes them.

    The link must carry messages of 8 MiB and some more. Takes about a second; waits at most 20 s for any one message.

    Args:
        make_pair: Opens a listening side on an unused address; returns it with the function that opens a connecting
            side of a given identity.
        capacity_bytes: Bytes that the link may take at most while nobody reads, the buffers of the system included.

    Raises:
        PluginError: The contract is broken; the sentence says how.
    """
    bounds_a_slow_reader = partial(_bounds_a_slow_reader, capacity_bytes=capacity_bytes)
    for check in (
        _carries,
        _carries_in_place,
        bounds_a_slow_reader,
        _keeps_peers_apart,
        _hands_over_an_identity,
        _ends,
    ):
        listener, connect = make_pair()
        opened: list[Link] = [listener]

        def connect_and_keep(identity: bytes, connect: Connect = connect, opened: list[Link] = opened) -> Link:
            opened.append(connect(identity))
            return opened[-1]

        try:
            check(listener, connect_and_keep)
        finally:
            for link in opened:
                link.close()


def _carries(listener: Link, connect: Connect) -> None:
    """Order, empty and many frames, a big frame, the caller's right to its array, time-outs."""
    link = connect(b"one")
    _meet(listener, link, b"one")
    for start in range(0, 200, 4):
        for number in range(start, start + 4):
            _send(link, listener, [b"%d" % number, b"", memoryview(b"x" * number)])
        for number in range(start, start + 4):
            _expect(listener, b"one", [b"%d" % number, b"", b"x" * number])
    many = [b"%d" % number for number in range(300)]
    _send(listener, link, list(many), b"one")
    _expect(link, b"", many)
    for sender, receiver, to, by in ((link, listener, b"", b"one"), (listener, link, b"one", b"")):
        array = np.arange(BIG_FRAME_BYTES // 8)
        _send(sender, receiver, [b"head", array.data.cast("B")], to)
        array[:] = -1
        _, frames = _receive(receiver, by)
        _require(
            np.array_equal(np.frombuffer(frames[1], np.int64), np.arange(array.size)),
            "a frame changed when the caller reused its array after send",
        )
        _require(all(frame.readonly for frame in frames), "received frames must be read-only")
    for receiver in (link, listener):
        _require(receiver.receive(0) is None, "receive(0) gave a message that nobody sent")
        began = time.monotonic()
        _require(receiver.receive(0.02) is None, "receive(0.02) gave a message that nobody sent")
        _require(time.monotonic() - began >= 0.02, "receive(0.02) gave up before its time-out")


def _carries_in_place(listener: Link, connect: Connect) -> None:
    """Where it can: order among other messages, a big frame, a peer that is not there."""
    link = connect(b"one")
    _meet(listener, link, b"one")
    array = np.arange(BIG_FRAME_BYTES // 8)
    frames = [b"head", array.data.cast("B"), b"", memoryview(b"x" * 100)]
    for sender, receiver, to, by in ((link, listener, b"", b"one"), (listener, link, b"one", b"")):
        in_place = getattr(sender, "send_in_place", None)
        if in_place is None:
            continue
        _send(sender, receiver, [b"before"], to)
        _require(in_place(frames, to), "send_in_place said False though the peer is there and there is room")
        _send(sender, receiver, [b"after"], to)
        _expect(receiver, by, [b"before"])
        _expect(receiver, by, [bytes(frame) for frame in frames])
        _expect(receiver, by, [b"after"])
    in_place = getattr(listener, "send_in_place", None)
    _require(in_place is None or not in_place(frames, b"nobody"), "a message to an unknown peer was taken in place")


def _bounds_a_slow_reader(listener: Link, connect: Connect, capacity_bytes: int) -> None:
    """While nobody reads, send says False within the capacity; what it took arrives whole and in order."""
    link = connect(b"one")
    _meet(listener, link, b"one")
    for sender, receiver, to, by in ((link, listener, b"", b"one"), (listener, link, b"one", b"")):
        taken = 0
        while sender.send([b"%d" % taken, bytes([taken % 256]) * _FILL_BYTES], to):
            taken += 1
            _require(
                taken * _FILL_BYTES <= capacity_bytes, f"{taken} unread messages of {_FILL_BYTES} bytes were taken"
            )
        for number in range(taken):
            _expect(receiver, by, [b"%d" % number, bytes([number % 256]) * _FILL_BYTES])
        _require(receiver.receive(0) is None, "a message arrived that send had not taken")
        _send(sender, receiver, [b"again"], to)
        _expect(receiver, by, [b"again"])


def _keeps_peers_apart(listener: Link, connect: Connect) -> None:
    """Each peer gets its own messages under its own name, and a stuffed one does not hold up the other."""
    one, two = connect(b"one"), connect(b"two")
    _meet(listener, one, b"one")
    _meet(listener, two, b"two")
    _require(not listener.send([b"lost"], b"nobody"), "a message to an unknown peer was taken")
    _send(listener, two, [b"for two"], b"two")
    _send(listener, one, [b"for one"], b"one")
    _expect(one, b"", [b"for one"])
    _expect(two, b"", [b"for two"])
    while listener.send([b"fill", b"." * _FILL_BYTES], b"one"):
        pass
    _send(listener, two, [b"still there"], b"two")
    _expect(two, b"", [b"still there"])
    while one.send([b"fill", b"." * _FILL_BYTES]):
        pass
    _until(lambda: two.send([b"me too"]), two, "send said False because another peer's queue is full")
    while (message := _receive(listener))[0] == b"one":
        pass
    _require(
        message[0] == b"two" and bytes(message[1][0]) == b"me too", f"peer {message[0]!r} sent what it did not send"
    )


def _hands_over_an_identity(listener: Link, connect: Connect) -> None:
    """A connecting side that restarts takes its name over from one that is still there."""
    old = connect(b"one")
    _meet(listener, old, b"one")
    new = connect(b"one")
    _meet(listener, new, b"one")
    _send(listener, new, [b"for the new one"], b"one")
    _expect(new, b"", [b"for the new one"])
    _require(old.receive(0) is None, "the older of two peers with one identity got a message")


def _ends(listener: Link, connect: Connect) -> None:
    """Close may be called twice, a peer that is gone is told from one that is there, and nothing raises."""
    link, other = connect(b"one"), connect(b"two")
    _meet(listener, link, b"one")
    _meet(listener, other, b"two")
    link.close()
    link.close()
    _until(lambda: not listener.send([b"anyone?"], b"one"), listener, "send went on taking messages for a closed peer")
    listener.close()
    listener.close()
    _until(lambda: not other.send([b"anyone?"]), other, "send went on taking messages for a closed listener")


def _meet(listener: Link, link: Link, identity: bytes) -> None:
    """Passes one message each way, which a link may need to establish itself."""
    _send(link, listener, [b"hello", identity])
    _expect(listener, identity, [b"hello", identity])
    _send(listener, link, [b"welcome"], identity)
    _expect(link, b"", [b"welcome"])


def _send(sender: Link, receiver: Link, frames: Frames, peer: bytes = b"") -> None:
    """Sends, and tries again while the link says False; a listener may need to run its receive to let a peer in."""
    end = time.monotonic() + _PATIENCE_S
    while not sender.send(frames, peer):
        early = receiver.receive(0.001)
        _require(early is None, f"a message of {early and early[0]!r} arrived that send had not taken")
        _require(time.monotonic() < end, f"send said False for {_PATIENCE_S} s though the peer is there and reads")


def _receive(receiver: Link, peer: bytes | None = None) -> tuple[bytes, list[memoryview]]:
    message = receiver.receive(_PATIENCE_S)
    if message is None:
        raise PluginError(f"a message that send had taken did not arrive within {_PATIENCE_S} s")
    _require(peer is None or message[0] == peer, f"a message of peer {peer!r} arrived under the name {message[0]!r}")
    return message


def _expect(receiver: Link, peer: bytes, frames: list[bytes]) -> None:
    _, received = _receive(receiver, peer)
    intact = len(received) == len(frames) and all(a == b for a, b in zip(received, frames, strict=True))
    _require(intact, f"frames came torn, changed or out of order where {frames[0][:20]!r} was next")


def _until(condition: Callable[[], bool], link: Link, complaint: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        link.receive(0.001)
        _require(time.monotonic() < end, f"{complaint} for {_PATIENCE_S} s")


def _require(kept: bool, complaint: str) -> None:
    if not kept:
        raise PluginError(f"the Link broke its contract: {complaint}")
