"""The rungs `inline` (one thread, deterministic) and `threads`: a whole run in this process, over memory Links."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from coupler.contracts import Frames, Link
from coupler.links.memory import MemoryHub
from coupler.ranks import Ranks
from ml_servers.from_case import BUFFER_BYTES, core_settings, task_maker
from ml_servers.server import Server
from ml_servers.trainer import Trainer
from schemas.run import RunSpec
from sim_clients import __main__ as client

HUB_BYTES = 1 << 30


class PumpedLink:
    """A client's Link whose `receive` first lets the other side do all the work that is due, in this thread."""

    def __init__(self, link: Link, pump: Callable[[], None]) -> None:
        """Args: link: Connected Link. pump: Runs the server and the trainers until they have nothing more to do."""
        self._link, self._pump = link, pump

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`."""
        return self._link.send(frames, peer)

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:  # noqa: ARG002
        """See `Link.receive`; never waits, since whatever can come is there after pumping."""
        self._pump()
        return self._link.receive(0.0)

    def close(self, linger_s: float = 0.0) -> None:
        """See `Link.close`."""
        self._pump()
        self._link.close(linger_s)


def run(spec: RunSpec, folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Runs a case in this process.

    Args:
        spec: The case, of rung `inline` or `threads`.
        folder: Its run folder, made ready.
        log: Takes the server's lines.

    Returns:
        The facts that `sim_clients` gives for the summary.
    """
    if spec.run.mode == "off":
        return client.run(spec, folder, Ranks())
    hub = MemoryHub(capacity_bytes=HUB_BYTES)
    with tempfile.TemporaryDirectory(prefix="coupler-") as slots:
        server = _server(spec, folder, hub, Path(slots), log)
        trainers = [
            Trainer(task_maker(spec), task.name, spec.run.name, hub.connect(f"trainer-{task.name}".encode()), folder)
            for task in spec.tasks
        ]
        link = hub.connect(b"rank-0")
        try:
            if spec.run.rung == "inline":
                return client.run(spec, folder, Ranks(), link=PumpedLink(link, lambda: _pump(server, trainers)))
            return _threads(spec, folder, link, server, trainers)
        finally:
            server.close()
            for trainer in trainers:
                trainer.close()


def _server(spec: RunSpec, folder: Path, hub: MemoryHub, slots: Path, log: Callable[[str], None]) -> Server:
    settings = core_settings(spec)
    deterministic: dict[str, Any] = {}
    if spec.run.rung == "inline":
        # Wall time must decide nothing here: no budget, no CPU clock.
        settings = msgspec.structs.replace(settings, overhead=float("inf"))
        deterministic["cpu_clock"] = lambda: 0.0
    return Server(
        hub.listen(),
        settings,
        task_maker(spec),
        folder,
        slot_folder=slots,
        buffer_bytes=BUFFER_BYTES,
        max_message_bytes=spec.link.max_message_bytes,
        digest=spec.link.digest,
        log=log,
        **deterministic,
    )


def _pump(server: Server, trainers: list[Trainer]) -> None:
    while server.poll(0.0):
        pass
    for trainer in trainers:
        trainer.poll(0.0)
    while server.poll(0.0):
        pass


def _threads(spec: RunSpec, folder: Path, link: Link, server: Server, trainers: list[Trainer]) -> dict[str, Any]:
    over = threading.Event()
    workers = [threading.Thread(target=server.serve, args=(over.is_set,), name="server")]
    workers += [threading.Thread(target=t.run, args=(over.is_set,), name=f"trainer-{t.name}") for t in trainers]
    for worker in workers:
        worker.start()
    try:
        return client.run(spec, folder, Ranks(), link=link)
    finally:
        over.set()
        for worker in workers:
            worker.join()
