"""MDI, the MolSSI Driver Interface, by its own library over tcp: coordinates there, forces back."""

from __future__ import annotations

import socket
from functools import partial

from benchmarks.peers.exchange import Array, Peer, Place, announce, announced, modules_missing, respond


class Driver:
    """Producer. The library has no time-out: whoever started this program has."""

    def __init__(self, place: Place) -> None:
        import mdi

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._mdi, self._answer = mdi, place.empty()
        mdi.MDI_Init(f"-role DRIVER -name producer -method TCP -port {port}")
        announce(place.folder, str(port))
        self._engine = mdi.MDI_Accept_Communicator()

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self._mdi.MDI_Send_Command(">COORDS", self._engine)
        self._mdi.MDI_Send(array, array.size, self._mdi.MDI_DOUBLE, self._engine)

    def get(self) -> Array:
        """See `Exchange.get`."""
        self._mdi.MDI_Send_Command("<FORCES", self._engine)
        self._mdi.MDI_Recv(self._answer.size, self._mdi.MDI_DOUBLE, self._engine, buf=self._answer)
        return self._answer

    def close(self) -> None:
        """See `Exchange.close`."""
        self._mdi.MDI_Send_Command("EXIT", self._engine)


def consume(place: Place) -> None:
    """Consumer: an engine."""
    import mdi

    question, out = place.empty(), place.empty()
    mdi.MDI_Init(f"-role ENGINE -name consumer -method TCP -hostname 127.0.0.1 -port {announced(place.folder)}")
    driver = mdi.MDI_Accept_Communicator()
    while (command := mdi.MDI_Recv_Command(driver)) != "EXIT":
        if command == ">COORDS":
            mdi.MDI_Recv(question.size, mdi.MDI_DOUBLE, driver, buf=question)
            respond(question, out)
        else:
            mdi.MDI_Send(out, out.size, mdi.MDI_DOUBLE, driver)


PEERS = (Peer("MDI, tcp", Driver, consume, partial(modules_missing, "mdi", install="pip install 'coupler[bench]'")),)
