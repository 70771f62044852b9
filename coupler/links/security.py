"""Who may join a link, and where one may listen: addresses, per-run CURVE keys and the allow-list of keys.

ZeroMQ sockets get their security here and nowhere else. Three rules, each of which fails closed:

- An ipc socket lives in a directory that belongs to this user and has mode 0700.
- A tcp socket listens on loopback, or it uses CURVE keys; it never listens on a wildcard.
- A listener with keys admits the public keys on its list and nobody else (ZAP, ZeroMQ RFC 27). Knowing the server's
  public key is not enough. The list is answered by the listener's own thread inside `receive`: as long as nobody
  answers, nobody gets in.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from coupler.errors import LinkError

IPC_PATH_BYTES = 107
"""Longest path of a Unix domain socket on Linux: `sun_path` is 108 bytes with the closing zero (unix(7))."""

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_DOMAIN = b"coupler"


@dataclass(frozen=True, slots=True, repr=False)
class ServerKeys:
    """What a listener needs: its own key pair, and the public keys it admits. Keys are 40 bytes of Z85 text."""

    public: bytes
    secret: bytes
    allowed: frozenset[bytes]


@dataclass(frozen=True, slots=True, repr=False)
class ClientKeys:
    """What a connecting side needs: its own key pair and the public key of the server it expects."""

    public: bytes
    secret: bytes
    server: bytes


class RunKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of one run, as they lie in its key file. Shown without the secrets."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str

    def __repr__(self) -> str:
        return f"RunKeys(server_public={self.server_public!r}, client_public={self.client_public!r})"

    def server(self) -> ServerKeys:
        """The part for the listening side."""
        allowed = frozenset([self.client_public.encode()])
        return ServerKeys(self.server_public.encode(), self.server_secret.encode(), allowed)

    def client(self) -> ClientKeys:
        """The part for connecting sides; all simulations of a run share it."""
        return ClientKeys(self.client_public.encode(), self.client_secret.encode(), self.server_public.encode())


def make_keys(path: Path) -> RunKeys:
    """Makes the keys of a run and writes them to a new file of mode 0600, whole or not at all.

    Raises:
        LinkError: The file exists already or cannot be written.
    """
    server_public, server_secret = (key.decode() for key in zmq.curve_keypair())
    client_public, client_secret = (key.decode() for key in zmq.curve_keypair())
    keys = RunKeys(server_public, server_secret, client_public, client_secret)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(msgspec.json.encode(keys))
        try:
            os.link(draft, path)  # unlike a rename, a link never replaces the keys of a run that is under way
        finally:
            draft.unlink()
    except FileExistsError:
        raise LinkError(f"key file {path} exists already; load it, or remove it when its run has ended") from None
    except OSError as error:
        raise LinkError(f"key file {path} cannot be written: {error.strerror}") from error
    return keys


def load_keys(path: Path) -> RunKeys:
    """Reads a key file written by `make_keys`.

    Raises:
        LinkError: The file is missing, is readable by others, belongs to somebody else, or holds no valid keys.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise LinkError(
                    f"key file {path} has mode {mode:04o} and owner {status.st_uid}; it must be a plain file of yours "
                    "with mode 0600. Its secrets may be known to others: remove it and make new keys"
                )
            keys = msgspec.json.decode(file.read(4096), type=RunKeys)
        for text in msgspec.structs.astuple(keys):
            if len(text) != 40 or len(z85.decode(text.encode())) != 32:
                raise ValueError("a key is not 40 characters of Z85 text")
        return keys
    except OSError as error:
        raise LinkError(f"key file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise LinkError(f"key file {path} holds no valid keys ({error}); remove it and make new keys") from error


class AllowList:
    """Answers the ZAP requests of one context: yes to the public keys on the list, no to everything else.

    Without a thread of its own: whoever owns the listener polls `socket` and calls `answer`. It must exist before
    the listener binds, because libzmq admits every holder of the server key while no ZAP socket is there.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: frozenset[bytes]) -> None:
        """Args: context: The listener's own; ZAP is one per context. allowed: Public keys, 40 bytes of Z85 each."""
        self.refused = 0
        self._allowed = allowed
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)

    def answer(self) -> None:
        """Answers every request that has arrived; does not wait."""
        while self.socket.poll(0):
            reply = zap_reply(self.socket.recv_multipart(), self._allowed)
            self.refused += reply[2] != b"200"
            self.socket.send_multipart(reply)


def zap_reply(request: Sequence[bytes], allowed: frozenset[bytes]) -> list[bytes]:
    """The ZAP reply to one request: version, request id, status, text, user, metadata (ZeroMQ RFC 27).

    Only a complete CURVE request of our domain with one 32-byte key that is on the list gets status 200.
    """
    request_id = request[1] if len(request) > 1 else b""
    match request:
        case [version, _, domain, _, _, mechanism, key] if (
            (version, domain, mechanism) == (_ZAP_VERSION, _DOMAIN, b"CURVE")
            and len(key) == 32
            and z85.encode(key) in allowed
        ):
            return [_ZAP_VERSION, request_id, b"200", b"OK", b"", b""]
    return [_ZAP_VERSION, request_id, b"400", b"not on the list", b"", b""]


def secure_server(context: zmq.Context[zmq.Socket[bytes]], sock: zmq.Socket[bytes], keys: ServerKeys) -> AllowList:
    """Makes a socket that has not bound yet demand CURVE, and gives the list that admits its peers."""
    allow_list = AllowList(context, keys.allowed)
    sock.curve_server = True
    sock.curve_publickey, sock.curve_secretkey = keys.public, keys.secret
    sock.zap_domain = _DOMAIN
    return allow_list


def secure_client(sock: zmq.Socket[bytes], keys: ClientKeys) -> None:
    """Makes a socket that has not connected yet speak CURVE, and only to the holder of the server's secret key."""
    sock.curve_publickey, sock.curve_secretkey = keys.public, keys.secret
    sock.curve_serverkey = keys.server


def listen_address(address: str, *, encrypted: bool) -> str:
    """The address that libzmq may bind, after every rule above has been checked.

    An ipc directory is made (mode 0700) when missing. A socket file left by a dead process is left for libzmq to
    replace; one that still answers is refused.

    Raises:
        LinkError: The address breaks a rule or is in use; the sentence says what to write instead.
    """
    if address.startswith("ipc://"):
        path = _ipc_path(address)
        if path.exists() and not path.is_socket():
            raise LinkError(f"{address} names a file that is no socket; it is not touched. Choose another path")
        if _answers(path):
            raise LinkError(f"{address} is in use by a running process; stop it or choose another path")
        return address
    host, port = _tcp_parts(address)
    if host in ("*", "0.0.0.0", "::", ""):
        raise LinkError(
            f"{address} would listen on every network interface; name one address, such as tcp://127.0.0.1:0"
        )
    return f"tcp://{_tcp_host(address, host, encrypted=encrypted)}:{'*' if port == 0 else port}"


def connect_address(address: str, *, encrypted: bool) -> str:
    """The address that libzmq may connect to. The listener need not be there yet.

    Raises:
        LinkError: The address is malformed, or a tcp host beyond loopback is named without keys.
    """
    if address.startswith("ipc://"):
        _ipc_path(address)
        return address
    host, port = _tcp_parts(address)
    if port == 0:
        raise LinkError(f"{address} has no port to connect to; use the `address` that the listener reports")
    return f"tcp://{_tcp_host(address, host, encrypted=encrypted)}:{port}"


def _ipc_path(address: str) -> Path:
    """The path of an ipc address, in a directory that only this user can enter."""
    path = Path(address.removeprefix("ipc://"))
    size = len(os.fsencode(path))
    if not path.is_absolute():
        raise LinkError(f"{address} is not absolute; write ipc:///directory/name")
    if size > IPC_PATH_BYTES:
        raise LinkError(
            f"{address} is {size} bytes long and a socket path may have {IPC_PATH_BYTES}; put the sockets into a "
            "directory with a shorter path, such as one under /tmp, or use tcp://127.0.0.1:PORT"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.parent.stat()
    except OSError as error:
        raise LinkError(f"directory {path.parent} for {address} cannot be used: {error.strerror}") from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise LinkError(
            f"directory {path.parent} has mode {stat.S_IMODE(status.st_mode):04o} and owner {status.st_uid}; sockets "
            "go only into a directory of yours with mode 0700. Name a new directory, or run chmod 700 on this one"
        )
    return path


def _answers(path: Path) -> bool:
    """Whether a process listens on a socket file. A refused connection is the sign of a dead one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its queue of connections is full, so it exists
        except OSError as error:
            raise LinkError(f"socket file {path} cannot be used: {error.strerror}") from error
    return True


def _tcp_parts(address: str) -> tuple[str, int]:
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    port = "0" if port == "*" else port
    if not address.startswith("tcp://") or not colon or not port.isdecimal() or int(port) > 65535:
        raise LinkError(f"{address!r} is no address; write ipc:///directory/name or tcp://host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _tcp_host(address: str, host: str, *, encrypted: bool) -> str:
    """The numeric form of a host name or IP address, in brackets for IPv6."""
    try:
        name = "127.0.0.1" if host == "localhost" else host
        ip = ipaddress.ip_address(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, ValueError) as error:
        raise LinkError(f"host {host!r} of {address} cannot be resolved; write its IP address") from error
    if not encrypted and not ip.is_loopback:
        raise LinkError(
            f"{address} leaves this machine ({ip}) without encryption; give CURVE keys, or use tcp://127.0.0.1:PORT or ipc://"
        )
    return f"[{ip}]" if ip.version == 6 else str(ip)
