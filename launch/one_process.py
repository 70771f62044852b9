"""The rungs `inline` (one thread, deterministic) and `threads`: a whole run in this process, over memory Links."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from coupler import connect
from coupler.bulks.folder import leave, shared_folder
from coupler.contracts import Frames, Link
from coupler.links.memory import MemoryHub
from coupler.ranks import Ranks
from ml_servers.__main__ import place_of_slots
from ml_servers.from_case import core_settings, learner_maker, shares, task_maker
from ml_servers.recorder import Recorder
from ml_servers.server import LEARNED_SLOTS, Server
from ml_servers.trainer import Trainer
from schemas.run import RunSpec
from sim_clients import __main__ as client

HUB_BYTES = 1 << 30
SWITCH_S = 0.0002
"""How long a thread of the rung `threads` may keep the interpreter while others want it."""


class PumpedLink:
    """A client's Link whose `receive` first lets the other side do all the work that is due, in this thread.

    When the other side raises, it is over: from then on nothing is taken and nothing comes, as after a crash.
    """

    at_once = True

    def __init__(self, link: Link, pump: Callable[[], None], lost: Callable[[BaseException], None]) -> None:
        """Makes the link.

        Args:
            link: Connected Link.
            pump: Runs the server and the trainers until they have nothing more to do.
            lost: Takes what they raised.
        """
        self._link, self._pump, self._lost = link, pump, lost
        self._over = False

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`."""
        return not self._over and self._link.send(frames, peer)

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:  # noqa: ARG002
        """See `Link.receive`; never waits, since whatever can come is there after pumping."""
        self._let_work()
        return None if self._over else self._link.receive(0.0)

    def close(self, linger_s: float = 0.0) -> None:
        """See `Link.close`."""
        self._let_work()
        self._link.close(linger_s)

    def _let_work(self) -> None:
        if self._over:
            return
        try:
            self._pump()
        except (Exception, SystemExit) as error:  # plug-ins run there; the simulation goes on without them
            self._over = True
            self._lost(error)


def run(spec: RunSpec, folder: Path, log: Callable[[str], None], lost: list[str]) -> dict[str, Any]:
    """Runs a case in this process.

    Args:
        spec: The case, of rung `inline` or `threads`.
        folder: Its run folder, made ready.
        log: Takes the server's lines.
        lost: Takes a sentence when a part of the server side fails; the simulation goes on without it.

    Returns:
        The facts that `sim_clients` gives for the summary.
    """
    if spec.run.mode == "off":
        return client.run(spec, folder, Ranks())

    def failed(who: str, error: BaseException) -> None:
        log("".join(traceback.format_exception(error)))
        lost.append(f"The {who} failed ({type(error).__name__}: {error}); see logs/server.log.")

    hub = MemoryHub(capacity_bytes=HUB_BYTES)
    try:
        server = _server(spec, folder, hub, log)
        trainers: list[Trainer] = [
            Trainer(
                learner_maker(spec, share.reader),
                task,
                spec.run.name,
                hub.connect(f"trainer-{task}-{share.reader}".encode()),
                folder,
                share=share,
                log=log,
            )
            for task, each in shares(spec).items()
            for share in each
        ]
        if spec.output.record is not None:
            trainers.append(Recorder(spec.run.name, hub.connect(b"recorder"), folder, log=log))
        link = hub.connect(b"rank-0")
        try:
            if spec.run.rung == "inline":
                pumped = PumpedLink(link, lambda: _pump(server, trainers), lambda error: failed("server side", error))
                return client.run(spec, folder, Ranks(), link=pumped)
            return _threads(spec, folder, link, server, trainers, failed)
        finally:
            closings = [("server", server.close), *((t.who, t.close) for t in trainers)]
            for who, close in closings:
                try:
                    close()
                except Exception as error:  # the books of a server that failed may be beyond repair
                    failed(who, error)
    finally:
        leave(shared_folder(folder))


def _server(spec: RunSpec, folder: Path, hub: MemoryHub, log: Callable[[str], None]) -> Server:
    slots, room = place_of_slots(spec, folder)
    settings = core_settings(spec)
    cpu_clock = time.thread_time  # of the server's own thread, which is all that costs
    if spec.run.rung == "inline":
        # Wall time must decide nothing here: no budget, no CPU clock.
        settings = msgspec.structs.replace(settings, overhead=float("inf"))
        cpu_clock = float
    return Server(
        hub.listen(),
        settings,
        task_maker(spec),
        folder,
        slot_folder=slots,
        buffer_bytes=room,
        max_message_bytes=spec.link.max_message_bytes,
        bulk=lambda stem: connect.bulk(spec, folder, stem, slots=LEARNED_SLOTS),
        cpu_clock=cpu_clock,
        log=log,
    )


def _pump(server: Server, trainers: list[Trainer]) -> None:
    while server.poll(0.0):
        pass
    for trainer in trainers:
        trainer.poll(0.0)
    while server.poll(0.0):
        pass


def _threads(
    spec: RunSpec,
    folder: Path,
    link: Link,
    server: Server,
    trainers: list[Trainer],
    failed: Callable[[str, BaseException], None],
) -> dict[str, Any]:
    over = threading.Event()

    def work(who: str, serve: Callable[[Callable[[], bool]], None]) -> None:
        try:
            serve(over.is_set)
        except (Exception, SystemExit) as error:  # as when its process ends
            failed(who, error)

    jobs = [("server", server.serve), *((trainer.who, trainer.run) for trainer in trainers)]
    workers = [threading.Thread(target=work, args=job, name=job[0]) for job in jobs]
    # Each time a thread has let the interpreter go, as an import does thousands of times, it waits that long for it.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    for worker in workers:
        worker.start()
    try:
        return client.run(spec, folder, Ranks(), link=link)
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for worker in workers:
            worker.join()
