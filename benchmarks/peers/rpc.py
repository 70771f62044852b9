"""gRPC: one unary call of bytes over tcp."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.exchange import PATIENCE_S, Array, Peer, Place, announce, announced, modules_missing, respond

OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
SERVICE, METHOD = "peers.Answers", "Respond"


class Caller:
    """Producer. A message is an immutable `bytes`, so `put` copies."""

    def __init__(self, place: Place) -> None:
        import grpc

        self._channel = grpc.insecure_channel(announced(place.folder), options=OPTIONS)
        self._call = self._channel.unary_unary(f"/{SERVICE}/{METHOD}")

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self._answer = self._call.future(array.tobytes(), timeout=PATIENCE_S, wait_for_ready=True)

    def get(self) -> Array:
        """See `Exchange.get`."""
        return np.frombuffer(self._answer.result(PATIENCE_S))

    def close(self) -> None:
        """See `Exchange.close`."""
        self._channel.close()


def consume(place: Place) -> None:
    """Consumer: a server with one thread for calls."""
    import grpc

    out = place.empty()

    def answer(question: bytes, _: Any) -> bytes:
        return respond(np.frombuffer(question), out).tobytes()

    server = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
    methods = {METHOD: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    announce(place.folder, f"127.0.0.1:{port}")
    threading.Event().wait()


PEERS = (
    Peer(
        "gRPC, unary",
        Caller,
        consume,
        partial(modules_missing, "grpc", install="pip install 'coupler[bench]'"),
    ),
)
