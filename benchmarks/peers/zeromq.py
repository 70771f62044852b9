"""Bare pyzmq: DEALER here, ROUTER there, over tcp or ipc, with copies or without."""

from __future__ import annotations

from functools import partial

import numpy as np
import zmq

from benchmarks.peers.exchange import IDLE_S, PATIENCE_S, Array, Peer, Place, announce, announced, raw, respond


class Dealer:
    """Producer. Without copies it waits until libzmq has let go of the array, for only then may it be changed."""

    def __init__(self, place: Place, *, copy: bool) -> None:
        self._copy = copy
        self._context = zmq.Context()
        self._sock = self._context.socket(zmq.DEALER)
        self._sock.linger, self._sock.rcvtimeo = 0, int(1000 * PATIENCE_S)
        self._sock.connect(announced(place.folder))

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        if self._copy:
            self._sock.send(raw(array))
        else:
            tracker = self._sock.send(raw(array), copy=False, track=True)
            tracker.wait(PATIENCE_S)

    def get(self) -> Array:
        """See `Exchange.get`."""
        frame = self._sock.recv(copy=self._copy)
        return np.frombuffer(frame if self._copy else frame.buffer)

    def close(self) -> None:
        """See `Exchange.close`."""
        self._sock.close()
        self._context.term()


def consume(place: Place, *, ipc: bool, copy: bool) -> None:
    """Consumer: a ROUTER that answers."""
    out = place.empty()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.linger, sock.rcvtimeo = 0, int(1000 * IDLE_S)
        if ipc:
            sock.bind(f"ipc://{place.folder}/sock")
        else:
            sock.bind("tcp://127.0.0.1:*")
        announce(place.folder, sock.last_endpoint.decode())
        while True:
            if copy:
                sender, question = sock.recv_multipart()
            else:
                sender, frame = sock.recv(), sock.recv(copy=False)
                question = frame.buffer
            respond(np.frombuffer(question), out)
            sock.send(sender, zmq.SNDMORE)
            sock.send(raw(out), copy=copy)


def peer(name: str, *, ipc: bool, copy: bool) -> Peer:
    return Peer(name, partial(Dealer, copy=copy), partial(consume, ipc=ipc, copy=copy))


BASELINE = peer("pyzmq tcp", ipc=False, copy=True)
PEERS = (
    BASELINE,
    peer("pyzmq tcp, zero copy", ipc=False, copy=False),
    peer("pyzmq ipc", ipc=True, copy=True),
    peer("pyzmq ipc, zero copy", ipc=True, copy=False),
)
