"""Who may join a link and where one may listen: everything that is not allowed is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from coupler.errors import LinkError
from coupler.links.security import ClientKeys, RunKeys, connect_address, listen_address, load_keys, make_keys, zap_reply
from coupler.links.zeromq import LinkLimits, connect, listen

LIMITS = LinkLimits(max_message_bytes=10_000, queue_bytes=1_000_000, reconnect_max_s=0.01)


def test_keys_come_back_as_written_and_only_the_owner_can_read_them(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys.json")
    assert load_keys(tmp_path / "keys.json") == keys
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["keys.json"]
    assert make_keys(tmp_path / "other.json") != keys


def test_keys_of_a_run_are_never_replaced(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys.json")
    with pytest.raises(LinkError, match="exists already"):
        make_keys(tmp_path / "keys.json")
    assert load_keys(tmp_path / "keys.json") == keys
    assert os.listdir(tmp_path) == ["keys.json"]
    with pytest.raises(LinkError, match="cannot be written"):
        make_keys(tmp_path / "nowhere" / "keys.json")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660])
def test_a_key_file_open_to_others_is_refused(mode: int, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys.json")
    (tmp_path / "keys.json").chmod(mode)
    with pytest.raises(LinkError, match=f"mode {mode:04o}"):
        load_keys(tmp_path / "keys.json")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"server_public": 1}', "0" * 5000, None, "short key", "bad letter", "non-ascii", "extra"]
)
def test_a_key_file_without_valid_keys_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    good = make_keys(path).server_public
    whole = path.read_text()
    match text:
        case "short key":
            text = whole.replace(good, good[:-1])
        case "bad letter":
            text = whole.replace(good, "~" + good[1:])
        case "non-ascii":
            text = whole.replace(good, "ä" + good[1:])
        case "extra":
            text = whole.replace("{", '{"more": "' + good + '", ')
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(LinkError, match="cannot be read" if text is None else "no valid keys"):
        load_keys(path)


def test_a_key_file_behind_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "keys.json")
    with pytest.raises(LinkError, match="cannot be read"):
        load_keys(tmp_path / "link.json")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys.json")
    shown = f"{keys} {keys!r} {keys.server()} {keys.client()!r}"
    assert keys.server_public in shown
    assert keys.server_secret not in shown and keys.client_secret not in shown


REFUSALS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_DISCONNECTED,
}
KEY = bytes(range(32))
GOOD = [b"1.0", b"7", b"coupler", b"127.0.0.1", b"a", b"CURVE", KEY]


def test_zap_admits_the_keys_on_the_list() -> None:
    assert zap_reply(GOOD, frozenset([z85.encode(KEY)])) == [b"1.0", b"7", b"200", b"OK", b"", b""]


@given(
    st.one_of(
        st.lists(st.binary(max_size=40), max_size=9),
        st.tuples(st.sampled_from([0, 2, 5, 6]), st.binary(max_size=40)).map(
            lambda change: [change[1] if n == change[0] else part for n, part in enumerate(GOOD)]
        ),
        st.integers(0, 6).map(lambda n: GOOD[:n]),
        st.binary(max_size=3).map(lambda part: [*GOOD, part]),
    ).filter(lambda request: request != GOOD)
)
def test_zap_refuses_everything_else(request: list[bytes]) -> None:
    reply = zap_reply(request, frozenset([z85.encode(KEY)]))
    assert reply[2] == b"400" and len(reply) == 6


def test_zap_refuses_all_when_the_list_is_empty() -> None:
    assert zap_reply(GOOD, frozenset())[2] == b"400"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770])
@pytest.mark.parametrize("resolve", [listen_address, connect_address])
def test_ipc_needs_a_private_directory(resolve: Callable[..., str], mode: int, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(LinkError, match="mode 0700"):
        resolve(f"ipc://{tmp_path}/open/s", encrypted=True)


def test_ipc_directory_is_made_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        listen_address(f"ipc://{tmp_path}/run/s", encrypted=False)
    finally:
        os.umask(old)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_ipc_path_length(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    fits = 107 - len(os.fsencode(directory)) - 1
    address = f"ipc://{directory}/{'s' * fits}"
    with closing(listen(address, limits=LIMITS)) as listener:
        assert listener.address == address
    with pytest.raises(LinkError, match="108 bytes long and a socket path may have 107"):
        listen(address + "s", limits=LIMITS)


def test_ipc_refuses_what_it_would_destroy_or_cannot_guard(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    (directory / "notes").write_text("precious")
    with pytest.raises(LinkError, match="no socket"):
        listen(f"ipc://{directory}/notes", limits=LIMITS)
    assert (directory / "notes").read_text() == "precious"
    for address in ("ipc://relative/s", "ipc://@abstract", "ipc://*"):
        with pytest.raises(LinkError, match="not absolute"):
            listen(address, limits=LIMITS)
    with pytest.raises(LinkError, match="cannot be used"):
        listen(f"ipc://{directory}/notes/s", limits=LIMITS)


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
        ("tcp://127.8.9.10:77", "tcp://127.8.9.10:77"),
        ("tcp://localhost:5", "tcp://127.0.0.1:5"),
        ("tcp://[::1]:5", "tcp://[::1]:5"),
    ],
)
def test_loopback_needs_no_keys(address: str, bound: str) -> None:
    assert listen_address(address, encrypted=False) == bound


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:5", "tcp://[2001:db8::1]:5", "tcp://8.8.8.8:5"])
def test_leaving_the_machine_needs_keys(address: str) -> None:
    for resolve in (listen_address, connect_address):
        with pytest.raises(LinkError, match="without encryption"):
            resolve(address, encrypted=False)
        assert resolve(address, encrypted=True) == address


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", ""])
def test_wildcards_are_refused_even_with_keys(host: str) -> None:
    with pytest.raises(LinkError, match="every network interface"):
        listen_address(f"tcp://{host}:5", encrypted=True)


@pytest.mark.parametrize(
    "address",
    ["", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:65536", "inproc://a", "udp://a:1"],
)
def test_malformed_addresses_are_refused(address: str) -> None:
    for resolve in (listen_address, connect_address):
        with pytest.raises(LinkError, match="is no address"):
            resolve(address, encrypted=True)


def test_a_connection_needs_a_port() -> None:
    with pytest.raises(LinkError, match="no port"):
        connect_address("tcp://127.0.0.1:0", encrypted=False)


def test_a_taken_port_is_a_link_error() -> None:
    with (
        closing(listen("tcp://127.0.0.1:0", limits=LIMITS)) as listener,
        pytest.raises(LinkError, match="cannot listen"),
    ):
        listen(listener.address, limits=LIMITS)


@pytest.fixture
def run_keys(tmp_path: Path) -> RunKeys:
    return make_keys(tmp_path / "keys.json")


@contextmanager
def intruder(kind: str, address: str, keys: ClientKeys) -> Iterator[None]:
    """Somebody who knocks at the door with a message in hand and should not get in."""
    public, secret = zmq.curve_keypair()
    context = zmq.Context()
    with closing(context.socket(zmq.DEALER)) as sock:
        sock.linger = 0
        match kind:
            case "unknown key":
                sock.curve_publickey, sock.curve_secretkey, sock.curve_serverkey = public, secret, keys.server
            case "wrong server key":
                sock.curve_publickey, sock.curve_secretkey, sock.curve_serverkey = keys.public, keys.secret, public
            case "PLAIN":
                sock.plain_username, sock.plain_password = b"admin", b"admin"
        if kind != "garbage":
            sock.connect(address)
            sock.send(b"from a bad one")
            yield
        else:
            host, port = address.removeprefix("tcp://").split(":")
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                raw.sendall(bytes(range(256)) * 8)
                yield
    context.term()


@pytest.mark.parametrize("kind", ["unknown key", "wrong server key", "NULL", "PLAIN", "garbage"])
def test_only_the_good_peer_gets_through(kind: str, run_keys: RunKeys) -> None:
    with (
        closing(listen("tcp://127.0.0.1:0", limits=LIMITS, keys=run_keys.server())) as listener,
        closing(connect(listener.address, identity=b"good", limits=LIMITS, keys=run_keys.client())) as good,
        closing(listener._socket.get_monitor_socket(zmq.EVENT_ALL)) as monitor,
    ):
        for _ in range(10):
            turned_away = received = 0
            with intruder(kind, listener.address, run_keys.client()):
                while not turned_away or received < 20:
                    good.send([b"from good"])
                    message = listener.receive(0.001)
                    if message is not None:
                        assert message[0] == b"good" and message[1][0] == b"from good"
                        received += 1
                    while monitor.poll(0):
                        turned_away += recv_monitor_message(monitor)["event"] in REFUSALS
            if kind == "unknown key":
                assert listener._allow_list is not None and listener._allow_list.refused
        listener._socket.disable_monitor()


def test_nobody_gets_in_while_nobody_answers(run_keys: RunKeys) -> None:
    """The allow-list fails closed: without a call of receive there is no verdict, and no verdict is no entry."""
    with (
        closing(listen("tcp://127.0.0.1:0", limits=LIMITS, keys=run_keys.server())) as listener,
        closing(connect(listener.address, identity=b"a", limits=LIMITS, keys=run_keys.client())) as link,
    ):
        for _ in range(20):
            assert link.receive(0.01) is None and not link.send([b"let me in"])
        while not link.send([b"let me in"]):
            listener.receive(0.001)


def test_each_listener_has_a_list_of_its_own(run_keys: RunKeys, tmp_path: Path) -> None:
    other_keys = make_keys(tmp_path / "other.json")
    with (
        closing(listen("tcp://127.0.0.1:0", limits=LIMITS, keys=run_keys.server())) as one,
        closing(listen("tcp://127.0.0.1:0", limits=LIMITS, keys=other_keys.server())) as two,
        closing(connect(one.address, identity=b"a", limits=LIMITS, keys=run_keys.client())) as to_one,
        closing(connect(two.address, identity=b"a", limits=LIMITS, keys=other_keys.client())) as to_two,
    ):
        for listener, link in ((one, to_one), (two, to_two)):
            while not link.send([b"hello"]):
                listener.receive(0.001)
            assert listener.receive(10) is not None
