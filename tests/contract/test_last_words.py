"""The last word of a side that closes is read by a peer that is busy, and nobody waits for a side that has gone."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from coupler.contracts import Link
from coupler.links.memory import MemoryHub
from coupler.links.security import make_keys
from coupler.links.zeromq import LinkLimits, ZmqConnection, ZmqListener, connect, listen

LIMITS = LinkLimits(max_message_bytes=1000, queue_bytes=64_000)


def pair_of(kind: str, tmp_path: Path) -> tuple[Link, Link]:
    if kind == "memory":
        hub = MemoryHub(capacity_bytes=10_000)
        return hub.listen(), hub.connect(b"a")
    keys = make_keys(tmp_path / "keys.json") if kind == "tcp+curve" else None
    address = f"ipc://{tmp_path}/run/s" if kind == "ipc" else "tcp://127.0.0.1:0"
    listener = listen(address, limits=LIMITS, keys=keys and keys.server())
    return listener, connect(listener.address, identity=b"a", limits=LIMITS, keys=keys and keys.client())


def met(listener: Link, link: Link) -> None:
    while not link.send([b"hello"]):
        assert listener.receive(0.001) is None
    assert listener.receive(10) is not None


@pytest.mark.parametrize("kind", ["memory", "ipc", "tcp", "tcp+curve"])
def test_a_last_word_waits_for_a_busy_peer(tmp_path: Path, kind: str) -> None:
    listener, link = pair_of(kind, tmp_path)
    with closing(listener), closing(link):
        met(listener, link)
        assert listener.send([b"halt"], b"a")
        listener.close(10.0)
        while link.send([b"I am busy"]):  # until it has noticed that the listener is gone
            pass
        message = link.receive(10)
        assert message is not None and message[1][0] == b"halt"
        assert not link.send([b"too late"]) and link.receive(0) is None


def zeromq_pair(tmp_path: Path) -> tuple[ZmqListener, ZmqConnection]:
    listener = listen(f"ipc://{tmp_path}/run/s", limits=LIMITS)
    return listener, connect(listener.address, identity=b"a", limits=LIMITS)


def test_a_connection_knows_whether_there_is_a_listener(tmp_path: Path) -> None:
    listener, link = zeromq_pair(tmp_path)
    with closing(link):
        met(listener, link)
        for _ in range(3):
            assert link.connected
            listener.close()
            while link.connected:
                pass
            listener = listen(f"ipc://{tmp_path}/run/s", limits=LIMITS)
            met(listener, link)
        listener.close()


def filled(link: ZmqConnection) -> int:
    """Sends until nothing more is taken, also when libzmq has had time to pass on what it can; how many were taken."""
    taken = said_no = 0
    while said_no < 5:
        if link.send([b"old %d" % taken, b"." * 900]):
            taken, said_no = taken + 1, 0
        else:
            said_no += 1
            assert link.receive(0.01) is None
    return taken


def test_closing_waits_for_no_listener_that_has_gone(tmp_path: Path) -> None:
    listener, link = zeromq_pair(tmp_path)
    met(listener, link)
    filled(link)
    listener.close()
    while link.connected:
        pass
    began = time.monotonic()
    link.close(linger_s=30.0)
    assert time.monotonic() - began < 15.0


def test_what_is_left_for_a_listener_that_has_gone_is_bounded(tmp_path: Path) -> None:
    """It reaches the one that comes in its place, at most a queue of it, in order and before anything new."""
    listener, link = zeromq_pair(tmp_path)
    with closing(link):
        met(listener, link)
        taken = filled(link)
        listener.close()
        while link.connected:
            pass
        with closing(listen(f"ipc://{tmp_path}/run/s", limits=LIMITS)) as successor:
            while not link.send([b"new"]):
                link.receive(0.001)
            heads: list[bytes] = []
            while not heads or heads[-1] != b"new":
                message = successor.receive(10)
                assert message is not None
                heads.append(bytes(message[1][0]))
            assert 1 < len(heads) <= LIMITS.queue_messages + 1
            assert heads[:-1] == [b"old %d" % number for number in range(taken)][taken - len(heads) + 1 :]
