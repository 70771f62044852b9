"""`coupler run` as a process of its own, whose processes a test may kill, and what must not be left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cases import Ran, spec_of

from coupler.trace import read

DEADLINE_S = 60.0


def until(true: Callable[[], Any], what: str) -> Any:
    """Waits until something is true (or not empty), and returns it."""
    end = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)
    return found


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Launched:
    """A running `coupler run`."""

    def __init__(self, folder: Path, popen: subprocess.Popen[str], gates: Path) -> None:
        self.folder, self.popen, self.gates = folder, popen, gates
        self.seen: set[int] = set()
        self.segments: set[Path] = set()

    def family(self) -> list[int]:
        """All descendants of the launcher now; remembers them and the shared memory that they map."""
        found, rest = [], [self.popen.pid]
        while rest:
            rest = [child for pid in rest for child in children(pid)]
            found += rest
        self.seen |= set(found)
        for pid in found:
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text().split()
                self.segments |= {Path(word) for word in maps if word.startswith("/dev/shm/")}
        return found

    def pids(self, *wanted: str) -> list[int]:
        """Descendants whose command line ends with `-m wanted[0] FOLDER wanted[1:]`."""
        tail = ["-m", wanted[0], str(self.folder), *wanted[1:], ""]
        return [p for p in self.family() if (w := words(p))[-len(tail) :] == tail and "mpiexec" not in w[0]]

    def server(self) -> int:
        return until(lambda: self.pids("ml_servers"), "the server")[0]

    def trainer(self) -> int:
        return until(lambda: self.pids("ml_servers", "--task", "Linear"), "the trainer")[0]

    def ranks(self, count: int) -> list[int]:
        return until(lambda: pids if len(pids := self.pids("sim_clients")) == count else [], "the ranks")

    def reached(self, gate: str) -> None:
        """Waits until somebody is at a gate."""

        def there() -> bool:
            assert self.popen.poll() is None, f"the run ended before gate {gate}: {self.said()}"
            return (self.gates / f"{gate}.reached").exists()

        until(there, f"gate {gate}")

    def open(self, gate: str) -> None:
        (self.gates / gate).touch()

    def said(self) -> str:
        return (self.gates / "said").read_text("utf-8")

    def ended(self) -> Ran:
        """Waits for the end of the launcher and checks that it left nothing behind."""
        code = self.popen.wait(DEADLINE_S)
        self.nothing_is_left()
        return Ran(self.folder, code, self.said())

    def nothing_is_left(self, swept: bool = True) -> None:
        """Checks that no process, shared memory, socket or half of a file is there; `swept`: the launcher cleaned."""
        assert self.seen, "nobody looked at the processes while they ran"
        until(lambda: not [pid for pid in self.seen if lives(pid)], "processes to end")
        owners = [p for e in Path("/proc").glob("[0-9]*") if str(self.folder) in words(p := int(e.name))]
        assert not [pid for pid in owners if pid != self.popen.pid]
        assert not [segment for segment in self.segments if segment.exists()]
        assert not [p for pid in self.seen for p in Path("/dev/shm").glob(f"coupler-{pid}-*")]
        assert not [path for path in self.folder.rglob("*") if path.is_socket()]
        if swept:
            assert not list(self.folder.rglob(".*")), "a half-written file"
        for path in self.folder.rglob("*.json"):
            json.loads(path.read_text("utf-8"))
        for path in self.folder.rglob("*.npz"):
            with np.load(path, allow_pickle=False) as arrays:
                assert dict(arrays)
        for path in self.folder.rglob("*.msgpack"):
            list(read(path))


@contextlib.contextmanager
def launched(tmp_path: Path, *arguments: str, **case: Any) -> Iterator[Launched]:
    """Starts `coupler run` of a case; at the end of the block it is gone."""
    folder = tmp_path / "run"
    spec_of(folder, **case)
    said = (tmp_path / "said").open("w", encoding="utf-8")
    command = [sys.executable, "-m", "launch.cli", "run", f"{folder}.toml", "--out", str(folder), *arguments]
    with said, subprocess.Popen(command, stdout=said, stderr=said, text=True, preexec_fn=_as_in_a_shell) as popen:
        run = Launched(folder, popen, tmp_path)
        try:
            yield run
        finally:
            for pid in [*run.family(), *run.seen]:
                if str(folder) in words(pid):  # only what is ours for certain
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            popen.kill()
            for left in (*run.segments, *(p for pid in run.seen for p in Path("/dev/shm").glob(f"coupler-{pid}-*"))):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _as_in_a_shell() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever started the tests may have switched Ctrl-C off
