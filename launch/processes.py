"""Processes of this machine as `/proc` shows them. A process that ends meanwhile is none."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

MARK = "COUPLER_PROCESS"
"""Variable by which the processes of a supervisor are known, whoever their parent is and whatever their session:
mpiexec puts every rank into a session of its own, and a killed one leaves its ranks to init."""


def marked(prefix: str) -> list[int]:
    """Living processes whose `MARK` is `prefix`, or begins with it and a dot."""
    wanted = f"\0{MARK}={prefix}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(rest[:1] in (b"\0", b".", b"") for rest in (b"\0" + entry.read_bytes()).split(wanted)[1:]):
                found.append(int(entry.parent.name))
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, Ctrl-Z): it will not answer until somebody lets it go on."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False


def kill(pids: Iterable[int]) -> None:
    """Ends processes at once (SIGKILL)."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9, and so on."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
