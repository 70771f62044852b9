"""`python -m ml_servers RUN_FOLDER` is the server of a run; with `--task NAME` it is the trainer of one task, with
`--record` the recorder.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path

from coupler import connect
from coupler.bulks.folder import leave, make, shared_folder
from ml_servers.from_case import buffer_bytes, core_settings, learner_maker, shares, task_maker
from ml_servers.recorder import Recorder
from ml_servers.server import LEARNED_SLOTS, Server
from ml_servers.trainer import Trainer
from schemas.run import RunSpec

log = logging.getLogger("ml_servers")
FAILED = 1
ASKED = 143
"""Exit code of a process that was asked to end (SIGTERM) before the run was over: 128 + 15, as shells count."""


class _Stop:
    """Set by SIGTERM: end in good order."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def serve(spec: RunSpec, folder: Path, stop: _Stop) -> int:
    """The server process of a run; its exit code."""
    slots = shared_folder(folder)
    make(slots)
    server = Server(
        connect.listen(spec, folder),
        core_settings(spec),
        task_maker(spec),
        folder,
        slot_folder=slots,
        buffer_bytes=buffer_bytes(spec),
        max_message_bytes=spec.link.max_message_bytes,
        bulk=lambda stem: connect.bulk(spec, folder, stem, slots=LEARNED_SLOTS),
        log=log.info,
    )
    try:
        server.serve(stop)
    finally:
        server.close()
        leave(slots)
    return 0 if server.core.all_finished else ASKED


def train(spec: RunSpec, folder: Path, task: str, rank: int, stop: _Stop) -> int:
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
    try:
        trainer.run(stop)
    finally:
        trainer.close()
    return FAILED if trainer.failed else 0 if trainer.halted else ASKED


def record(spec: RunSpec, folder: Path, stop: _Stop) -> int:
    """The recorder process; its exit code."""
    link = connect.connect(spec, folder, "recorder")
    recorder = Recorder(spec.run.name, link, folder, clock=time.process_time, log=log.info)
    try:
        recorder.run(stop)
    finally:
        recorder.close()
    return FAILED if recorder.failed else 0 if recorder.halted else ASKED


def main() -> int:
    """Runs one process of the server side until the run is over."""
    parser = argparse.ArgumentParser(prog="python -m ml_servers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", help="train this task instead of serving")
    parser.add_argument("--rank", type=int, default=0, help="which rank of the task")
    parser.add_argument("--record", action="store_true", help="record the states instead of serving")
    told = parser.parse_args()
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
