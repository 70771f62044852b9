"""The supervisor: starts the processes of a run, watches them, and stops what it started and only that."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from coupler.errors import CouplerError
from launch.plan import Process, environment
from launch.processes import MARK, is_stopped, kill, marked, signal_name

WATCH_S = 0.1
MPICH_SAYS = "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: "
"""What precedes, in the middle of a banner, the reason why mpiexec ended the ranks."""
GRACE_S = 5.0
"""Time a process gets to end after it was asked to."""
FAREWELL_S = 15.0
"""Time the server gets to write its books after the simulation has ended."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(slots=True)
class Child:
    """A started process.

    Attributes:
        process: What was planned.
        popen: The process; leader of a session of its own.
        log: Its log file.
        mark: Value of `MARK` that it and all its descendants carry.
        noticed: Whether its end was reported, or asked for.
    """

    process: Process
    popen: subprocess.Popen[bytes]
    log: BinaryIO
    mark: str
    noticed: bool = False

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None


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
        self._name = f"{os.getpid()}-{secrets.token_hex(8)}"

    def __enter__(self) -> Supervisor:
        """Opens the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops everything that still runs."""
        self.stop([child for child in self._children if child.runs])
        kill(marked(self._name))  # what hides: ranks of a killed mpiexec
        for child in self._children:
            child.log.close()

    def start(self, process: Process) -> Child:
        """Starts a process in a session of its own, its output in its log; it ends with this process at the latest.

        Raises:
            CouplerError: There is no such program.
        """
        log = process.log.open("ab")
        nice, launcher = process.nice, os.getpid()
        mark = f"{self._name}.{len(self._children)}"

        def prepare() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != launcher:  # it died before the line above
                os.kill(os.getpid(), signal.SIGKILL)
            if nice:
                os.nice(nice)

        try:
            popen = subprocess.Popen(
                process.argv,
                env=environment(process, os.environ) | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509  the launcher starts its processes before its threads
            )
        except OSError as error:
            log.close()
            raise CouplerError(f"{process.argv[0]} cannot be started ({error.strerror}); is it installed?") from error
        child = Child(process, popen, log, mark)
        self._children.append(child)
        return child

    def watch(
        self,
        simulation: Child,
        tick: Callable[[], None] = lambda: None,
        notice: Callable[[str], None] = lambda _: None,
        asked: Callable[[], bool] = lambda: False,
        met: Callable[[], bool] = lambda: True,
    ) -> Outcome:
        """Waits for the simulation to end, then for the server to close its books.

        Args:
            simulation: The child whose end is the end of the run.
            tick: Called about ten times a second.
            notice: Takes a sentence when a server-side process ends early: the simulation goes on without it.
            asked: Whether somebody wants the run to end now.
            met: Whether the simulation, which has ended, ever met the server. If not, nobody says goodbye to it.
        """
        outcome = Outcome()
        while simulation.runs and not asked():
            self._notice(outcome, notice)
            tick()
            _wait(simulation.popen, WATCH_S)
        outcome.code = simulation.popen.returncode
        if outcome.code == 0:
            if met():
                self._farewell(outcome, asked)
            else:
                self.stop(self._of("server"))
            self._notice(outcome, notice)
        outcome.interrupted = asked()
        return outcome

    def stop(self, children: Sequence[Child]) -> None:
        """Asks children to end (SIGTERM), and after a grace period makes them and their descendants (SIGKILL)."""
        for child in children:
            _ask_to_end(child)
        end = time.monotonic() + GRACE_S
        for child in children:
            _wait(child.popen, max(0.0, end - time.monotonic()))
        for child in children:
            kill(marked(child.mark))
            child.popen.wait()

    def _of(self, role: str) -> list[Child]:
        return [child for child in self._children if child.process.role == role]

    def _notice(self, outcome: Outcome, notice: Callable[[str], None]) -> None:
        """Reports server-side processes that ended early. Without the server, the trainers have nothing to do."""
        for child in (*self._of("server"), *self._of("trainer"), *self._of("recorder")):
            code = child.popen.poll()
            if code is None or code == 0 or child.noticed:
                continue
            child.noticed = True
            how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with code {code}"
            last = f" ({line})" if code > 0 and (line := last_line(child.process.log)) else ""
            outcome.lost.append(f"The process {child.process.name!r} {how}{last}; see logs/{child.process.log.name}.")
            without = "directly" if child.process.role == "server" else "without it"
            notice(f"{outcome.lost[-1]} The run goes on {without}." if outcome.code is None else outcome.lost[-1])
            if child.process.role == "server":
                for fed in (*self._of("trainer"), *self._of("recorder")):
                    if fed.runs:
                        _ask_to_end(fed)

    def _farewell(self, outcome: Outcome, asked: Callable[[], bool]) -> None:
        """Waits for the server, which ends when every rank has said goodbye. The trainers need no time, and the
        recorder none after the server, which lets it write what there is.
        """
        end = time.monotonic() + FAREWELL_S
        servers = self._of("server")
        while any(child.runs and not is_stopped(child.popen.pid) for child in servers):
            if asked() or time.monotonic() > end:
                break
            time.sleep(0.02)
        for child in servers:
            if child.runs:
                child.noticed = True
                how = "was stopped" if is_stopped(child.popen.pid) else "did not end"
                outcome.lost.append(f"The process {child.process.name!r} {how} when the simulation had ended.")


def last_line(log: Path) -> str:
    """The last line of a log that says something, cut to a reasonable length; often the exception that ended it."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        told = [line.partition(MPICH_SAYS)[2] for line in lines if MPICH_SAYS in line]
        return (told or lines or [""])[-1].strip()[:200]
    return ""


def _ask_to_end(child: Child) -> None:
    child.noticed = True
    child.popen.send_signal(signal.SIGTERM)
    child.popen.send_signal(signal.SIGCONT)  # a stopped process would never see the first


def _wait(popen: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return
