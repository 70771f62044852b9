"""ZeroMQ links between processes that die, stop, come late and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from coupler.contracts import Link
from coupler.errors import LinkError
from coupler.links.zeromq import LinkLimits, connect, listen

LIMITS = LinkLimits(max_message_bytes=100_000, queue_bytes=800_000, heartbeat_s=0.1, reconnect_max_s=0.02)
MOST_TAKEN = 2 * LIMITS.queue_messages + 40  # both queues, and what the buffers of the system hold

CHILD = """
import sys
from coupler.links.zeromq import LinkLimits, connect, listen
role, address = sys.argv[1:]
limits = LinkLimits(max_message_bytes=100_000, queue_bytes=800_000, heartbeat_s=0.1, reconnect_max_s=0.02)
if role == "server":
    link = listen(address, limits=limits)
else:
    link = connect(address, identity=b"child", limits=limits)
    while not link.send([b"hello"]):
        link.receive(0.01)
while True:
    peer, frames = link.receive(60)
    if frames[0] == b"stop":
        break
    while not link.send(frames, peer):
        link.receive(0.001)
link.close()
"""

Start = Callable[[str, str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children as server or client of an address, and ends them by pid."""
    with ExitStack() as stack:

        def start_one(role: str, address: str) -> subprocess.Popen[bytes]:
            child = stack.enter_context(subprocess.Popen([sys.executable, "-c", CHILD, role, address]))
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        yield start_one


@pytest.fixture
def address(ends_its_threads: None, tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/run/s"


def asked(link: Link, word: bytes, peer: bytes = b"") -> None:
    """Asks an echoing peer until it answers this word; what was asked of a peer that died meanwhile is lost."""
    for _ in range(2000):
        link.send([word], peer)
        message = link.receive(0.01)
        while message is not None:
            if message[0] == peer and message[1][0] == word:
                return
            message = link.receive(0)
    pytest.fail("no answer")


def quiet(link: Link) -> None:
    """Reads what is still on its way."""
    while link.receive(0.1) is not None:
        pass


def refused(link: Link, peer: bytes = b"") -> int:
    """Sends until send says False three times in a row, 10 ms apart; returns how many were taken."""
    taken = said_no = 0
    while said_no < 3:
        assert taken <= MOST_TAKEN
        if link.send([b"%d" % taken, b"." * 90_000], peer):
            taken, said_no = taken + 1, 0
        else:
            said_no += 1
            assert link.receive(0.01) is None
    return taken


def numbers(link: Link, count: int) -> list[int]:
    messages = [link.receive(20) for _ in range(count)]
    assert all(message is not None and len(message[1][1]) == 90_000 for message in messages)
    return [int(bytes(message[1][0])) for message in messages if message is not None]


def test_server_comes_late(start: Start, address: str) -> None:
    with closing(connect(address, identity=b"a", limits=LIMITS)) as link:
        assert not link.send([b"nobody there"])
        assert link.receive(0.01) is None
        start("server", address)
        asked(link, b"now")


def test_server_is_killed_and_comes_back_on_the_same_path(start: Start, address: str) -> None:
    with closing(connect(address, identity=b"a", limits=LIMITS)) as link:
        for life in (b"one", b"two", b"three"):
            server = start("server", address)
            asked(link, life)
            quiet(link)
            server.kill()
            server.wait()
            assert refused(link) <= MOST_TAKEN
            assert Path(address.removeprefix("ipc://")).is_socket()  # stale; the next server replaces it


def test_server_ends_and_comes_back(start: Start, address: str) -> None:
    with closing(connect(address, identity=b"a", limits=LIMITS)) as link:
        for life in (b"one", b"two"):
            server = start("server", address)
            asked(link, life)
            quiet(link)
            assert link.send([b"stop"])
            assert server.wait(20) == 0
            assert not Path(address.removeprefix("ipc://")).exists()


def test_server_is_stopped_and_goes_on(start: Start, address: str) -> None:
    """On ipc nothing is lost: the queue fills, send says False, and all that was taken is answered afterwards."""
    with closing(connect(address, identity=b"a", limits=LIMITS)) as link:
        server = start("server", address)
        asked(link, b"before")
        quiet(link)
        os.kill(server.pid, signal.SIGSTOP)
        taken = refused(link)
        assert taken >= LIMITS.queue_messages // 2
        os.kill(server.pid, signal.SIGCONT)
        assert numbers(link, taken) == list(range(taken))
        asked(link, b"after")


def test_stopped_server_is_noticed_on_tcp_and_found_again(start: Start, address: str) -> None:
    with closing(listen("tcp://127.0.0.1:0", limits=LIMITS)) as probe:
        tcp = probe.address
    with closing(connect(tcp, identity=b"a", limits=LIMITS)) as link:
        server = start("server", tcp)
        asked(link, b"before")
        quiet(link)
        os.kill(server.pid, signal.SIGSTOP)
        while link.send([b"into the void"]):  # a trickle that no queue would refuse: only the heartbeat tells
            assert link.receive(0.05) is None
        os.kill(server.pid, signal.SIGCONT)
        asked(link, b"after")


def test_client_is_killed_and_a_new_one_takes_its_name(start: Start, address: str) -> None:
    with (
        closing(listen(address, limits=LIMITS)) as listener,
        closing(connect(address, identity=b"other", limits=LIMITS)) as other,
    ):
        while not other.send([b"hello"]):
            other.receive(0.001)
        for _ in range(2):
            client = start("client", address)
            while (message := listener.receive(20)) is not None and message[0] != b"child":
                pass
            asked(listener, b"there?", b"child")
            quiet(listener)
            client.kill()
            client.wait()
            refused(listener, b"child")
            assert listener.send([b"still there"], b"other")
            assert other.receive(20) is not None


def test_stopped_client_holds_up_nobody(start: Start, address: str) -> None:
    with (
        closing(listen(address, limits=LIMITS)) as listener,
        closing(connect(address, identity=b"other", limits=LIMITS)) as other,
    ):
        client = start("client", address)
        message = listener.receive(20)
        assert message is not None and message[0] == b"child"
        while not other.send([b"hello"]):
            other.receive(0.001)
        assert listener.receive(20) is not None
        os.kill(client.pid, signal.SIGSTOP)
        taken = refused(listener, b"child")
        for _ in range(20):
            assert listener.send([b"still there"], b"other")
            assert other.receive(20) is not None
        os.kill(client.pid, signal.SIGCONT)
        assert numbers(listener, taken) == list(range(taken))


def test_a_link_says_that_it_does_not_survive_fork(address: str) -> None:
    with closing(listen(address, limits=LIMITS)) as listener:
        child = os.fork()
        if child == 0:
            try:
                listener.receive(0)
            except LinkError:
                listener.close()  # leaves the parent's socket and file alone
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        with closing(connect(address, identity=b"a", limits=LIMITS)) as link:
            while not link.send([b"parent is well"]):
                link.receive(0.001)
            assert listener.receive(20) is not None
