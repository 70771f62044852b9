"""Programs that the benchmark starts: in a session of their own, ended by their id, at the latest with this process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
GRACE_S = 5.0
"""Time a process gets to end after it was asked to."""

Process = subprocess.Popen[bytes]


def start(argv: Sequence[str], log: Path, *, stdin: int = subprocess.PIPE, stdout: int | None = None) -> Process:
    """Starts a program; what it complains of goes to its log, and so does what it says unless `stdout` is given."""
    starter = os.getpid()

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != starter:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    with log.open("ab") as file:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=file if stdout is None else stdout,
            stderr=file,
            bufsize=0,
            start_new_session=True,
            preexec_fn=prepare,
        )


def program(module: str, *arguments: object) -> list[str]:
    """The argv of a module of ours."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def end(process: Process, first: int | None = None) -> None:
    """Ends a process and all of its session, with a signal first or by waiting for it alone."""
    if first is not None and process.poll() is None:
        process.send_signal(first)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what it had started, if anything is left
        except ProcessLookupError:
            process.poll()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def last_words(log: Path) -> str:
    """The last line of a log, which for a Python program is its exception."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
