"""`python -m ml_servers RUN_FOLDER` is the server of a run; with `--task NAME` it is the trainer of one task, with
`--record` the recorder.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from coupler import connect
from coupler.bulks.folder import free_bytes, leave, shared_folder, usable
from coupler.contracts import Link
from ml_servers.from_case import BUFFER_BYTES, buffer_bytes, core_settings, learner_maker, shares, task_maker
from ml_servers.recorder import Recorder
from ml_servers.server import LEARNED_SLOTS, SUMMARY, Server
from ml_servers.trainer import Trainer
from schemas.run import RunSpec

log = logging.getLogger("ml_servers")
FAILED = 1
ASKED = 143
"""Exit code of a process that was asked to end (SIGTERM) before the run was over: 128 + 15, as shells count."""
GONE_S = 60.0
"""A server that has been gone for so long does not come back. One that is only slow keeps its connections."""


class _Stop:
    """Set by SIGTERM: end in good order."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


class _Gone:
    """Ends a trainer or recorder whose server has vanished: one that was killed says no Halt.

    Attributes:
        for_good: Whether that is why it ends.
    """

    def __init__(self, link: Link, folder: Path, stop: Callable[[], bool]) -> None:
        """Args: link: To the server. folder: Run folder. stop: Another reason to end."""
        self.for_good = False
        self._link, self._books, self._stop = link, folder / SUMMARY, stop
        self._met, self._seen = False, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if getattr(self._link, "connected", True):  # a Link that cannot tell is believed to be there
            self._met, self._seen = True, now
        elif now - self._seen > GONE_S and (self._met or self._books.exists()):  # else it may still come
            self.for_good = True
            log.error("Ends: the server has been gone for %g s.", now - self._seen)
        return self.for_good or self._stop()


def place_of_slots(spec: RunSpec, folder: Path) -> tuple[Path, int]:
    """Makes the folder for the training buffer: in shared memory, or in the run folder where that cannot be used.

    Args:
        spec: The case.
        folder: Its run folder.

    Returns:
        The folder, and the bytes that the buffer may take there.
    """
    if usable(shared := shared_folder(folder)):
        return shared, buffer_bytes(spec)
    beside = (folder / connect.SOCKET).parent.resolve()
    beside.mkdir(mode=0o700, exist_ok=True)
    return beside, spec.bulk.buffer_bytes or min(BUFFER_BYTES, free_bytes(beside) // 2)


def serve(spec: RunSpec, folder: Path, stop: Callable[[], bool]) -> int:
    """The server process of a run; its exit code."""
    slots, room = place_of_slots(spec, folder)
    if slots != shared_folder(folder):
        log.info("Shared memory cannot be used: the training buffer lies in %s.", slots)
    server = Server(
        connect.listen(spec, folder),
        core_settings(spec),
        task_maker(spec),
        folder,
        slot_folder=slots,
        buffer_bytes=room,
        max_message_bytes=spec.link.max_message_bytes,
        bulk=lambda stem: connect.bulk(spec, folder, stem, slots=LEARNED_SLOTS),
        log=log.info,
    )
    try:
        server.serve(stop)
    finally:
        server.close()
        leave(shared_folder(folder))
    return 0 if server.core.all_finished else ASKED


def train(spec: RunSpec, folder: Path, task: str, rank: int, stop: Callable[[], bool]) -> int:
    """The trainer process of one rank of a task; its exit code."""
    link = connect.connect(spec, folder, f"trainer-{task}-{rank}")
    trainer = Trainer(
        learner_maker(spec, rank),
        task,
        spec.run.name,
        link,
        folder,
        share=shares(spec)[task][rank],
        clock=time.process_time,
        log=log.info,
    )
    gone = _Gone(link, folder, stop)
    try:
        trainer.run(gone)
    finally:
        trainer.close()
    return FAILED if trainer.failed or gone.for_good else 0 if trainer.halted else ASKED


def record(spec: RunSpec, folder: Path, stop: Callable[[], bool]) -> int:
    """The recorder process; its exit code."""
    link = connect.connect(spec, folder, "recorder")
    recorder = Recorder(spec.run.name, link, folder, clock=time.process_time, log=log.info)
    gone = _Gone(link, folder, stop)
    try:
        recorder.run(gone)
    finally:
        recorder.close()
    return FAILED if recorder.failed or gone.for_good else 0 if recorder.halted else ASKED


def main() -> int:
    """Runs one process of the server side until the run is over."""
    parser = argparse.ArgumentParser(prog="python -m ml_servers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", help="train this task instead of serving")
    parser.add_argument("--rank", type=int, default=0, help="which rank of the task")
    parser.add_argument("--record", action="store_true", help="record the states instead of serving")
    told = parser.parse_args()
    faulthandler.enable()  # a library that crashes leaves at least the place in the log
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    stop = _Stop()
    spec = connect.read_case(told.folder)
    sys.path[:0] = [entry for entry in spec.run.path if entry not in sys.path]
    if told.record:
        return record(spec, told.folder, stop)
    if told.task is None:
        return serve(spec, told.folder, stop)
    return train(spec, told.folder, told.task, told.rank, stop)


if __name__ == "__main__":
    sys.exit(main())
