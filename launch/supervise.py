"""The supervisor: starts the processes of a run, watches them, and stops what it started and only that."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from launch.plan import Process, environment

WATCH_S = 0.1
GRACE_S = 5.0
"""Time a process gets to end after it was asked to."""
FAREWELL_S = 15.0
"""Time the server side gets to write its books after the simulation has ended."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(slots=True)
class Child:
    """A started process.

    Attributes:
        process: What was planned.
        popen: The process; leader of a session of its own.
        log: Its log file.
        noticed: Whether its end was reported.
    """

    process: Process
    popen: subprocess.Popen[bytes]
    log: BinaryIO
    noticed: bool = False


@dataclass(slots=True)
class Outcome:
    """How the processes ended.

    Attributes:
        code: Exit code of the simulation; None when it was stopped.
        interrupted: Whether somebody asked to stop (Ctrl-C, SIGTERM).
        lost: Server-side processes that ended before the simulation, and how.
    """

    code: int | None = None
    interrupted: bool = False
    lost: list[str] = field(default_factory=list)


class Supervisor:
    """A context manager: whatever happens in its block, nothing it started survives it."""

    def __init__(self) -> None:
        """Starts with no children."""
        self._children: list[Child] = []
        self._segments = _segments()

    def __enter__(self) -> Supervisor:
        """Opens the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops everything that still runs, and removes what killed ranks left in shared memory."""
        self.stop([child for child in self._children if child.popen.poll() is None])
        for child in self._children:
            child.log.close()
        for name in _segments() - self._segments:
            if not _mapped(name):
                Path("/dev/shm", name).unlink(missing_ok=True)

    def start(self, process: Process) -> Child:
        """Starts a process in a session of its own, its output in its log; it ends with this process at the latest."""
        log = process.log.open("ab")
        nice = process.nice

        def prepare() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if nice:
                os.nice(nice)

        popen = subprocess.Popen(
            process.argv,
            env=environment(process, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare,
        )
        child = Child(process, popen, log)
        self._children.append(child)
        return child

    def watch(self, simulation: Child, tick: Callable[[], None], notice: Callable[[str], None]) -> Outcome:
        """Waits for the simulation to end, then for the server side to close its books.

        Args:
            simulation: The child whose end is the end of the run.
            tick: Called about ten times a second.
            notice: Takes a sentence when a server-side process ends early: the simulation goes on without it.
        """
        outcome = Outcome()
        try:
            while simulation.popen.poll() is None:
                self._notice(simulation, outcome, notice)
                tick()
                _wait(simulation.popen, WATCH_S)
            outcome.code = simulation.popen.returncode
            end = time.monotonic() + FAREWELL_S
            rest = [child for child in self._children if child is not simulation]
            while outcome.code == 0 and any(c.popen.poll() is None for c in rest) and time.monotonic() < end:
                time.sleep(0.02)
        except KeyboardInterrupt:
            outcome.interrupted = True
            self.stop([child for child in self._children if child.popen.poll() is None])
        return outcome

    def stop(self, children: Sequence[Child]) -> None:
        """Asks children to end (SIGTERM), and after a grace period makes their sessions (SIGKILL)."""
        for child in children:
            child.popen.send_signal(signal.SIGTERM)
            child.popen.send_signal(signal.SIGCONT)  # a stopped process would never see the first
        end = time.monotonic() + GRACE_S
        for child in children:
            _wait(child.popen, max(0.0, end - time.monotonic()))
            sessions = _session(child.popen.pid)
            for pid in sessions:
                _kill(pid)
            child.popen.wait()

    def _notice(self, simulation: Child, outcome: Outcome, notice: Callable[[str], None]) -> None:
        for child in self._children:
            code = child.popen.poll()
            if child is simulation or code is None or code == 0 or child.noticed:
                continue
            child.noticed = True
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            sentence = f"The process {child.process.name!r} {how}; see logs/{child.process.log.name}."
            outcome.lost.append(sentence)
            notice(f"{sentence} The simulation goes on directly.")


def _wait(popen: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _session(leader: int) -> list[int]:
    """Living processes of the session that `leader` leads or led (mpiexec's proxies and ranks stay in it)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _segments() -> set[str]:
    folder = Path("/dev/shm")
    return {entry.name for entry in folder.glob("mpich*")} if folder.is_dir() else set()


def _mapped(name: str) -> bool:
    """Whether any process still maps a segment (another run's, started meanwhile)."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"/dev/shm/{name}" in maps.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return False
