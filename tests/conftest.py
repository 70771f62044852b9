"""What every test obeys: it leaves nothing behind, and its random cases are the same each time."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy loads: a run's processes have one thread each, and so do its tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job: tests press Ctrl-C all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))  # tests share `scripted`

settings.register_profile("house", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("house")

SHM = Path("/dev/shm")
PATIENCE_MS = 3000
"""How long what a test has closed may take to go, in all."""


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed them
            continue
    return found


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
            commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
        except OSError:  # a thread or a child that ended meanwhile
            continue
        found |= {pid for pid, command in commands.items() if b"resource_tracker" not in command}
    return found


def _orphaned(name: str) -> bool:
    """Whether nobody maps a file of /dev/shm any more: other test runs on this machine make files there too."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"/dev/shm/{name}" in maps.read_text():
                return False
        except OSError:  # the process has ended, or is not ours to look into
            continue
    return (SHM / name).exists() and not _of_another_run(SHM / name)


def _of_another_run(folder: Path) -> bool:
    """Whether a folder belongs to a run that a process beside this one has started, and that goes on."""
    try:
        owner = int((folder / "owner").read_text().split()[0])
    except (OSError, ValueError):
        return False
    return owner != os.getpid() and Path(f"/proc/{owner}").exists()


def _left(before: tuple[set[threading.Thread], dict[str, str], set[str], set[str]]) -> list[str]:
    threads, descriptors, children, shared = before
    now = _descriptors()
    left = [f"thread {t.name}" for t in set(threading.enumerate()) - threads]
    fresh = {number: target for number, target in now.items() if descriptors.get(number) != target}
    # Libraries keep some of their own files open, such as matplotlib its fonts.
    left += [f"descriptor {n} ({target})" for n, target in fresh.items() if not target.startswith(sys.prefix)]
    left += [f"child process {pid}" for pid in _children() - children]
    left += [f"/dev/shm/{name}" for name in set(os.listdir(SHM)) - shared if _orphaned(name)]
    return left


def _end_collector() -> None:
    """Ends the thread in which pyzmq hears that a frame sent in place has left: one for the life of a process."""
    if garbage := sys.modules.get("zmq.utils.garbage"):
        garbage.gc.stop()


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    before = (set(threading.enumerate()), _descriptors(), _children(), set(os.listdir(SHM)))
    yield
    _end_collector()
    left = _left(before)
    if left:
        gc.collect()  # mappings go with the last array that views them
    for _ in range(PATIENCE_MS // 20):
        if not (left := _left(before)):
            return
        select.poll().poll(20)
    pytest.fail(f"left behind: {', '.join(left)}")


@pytest.fixture
def ends_its_threads() -> Iterator[None]:
    """The test leaves no thread of a library behind; asked for first, so that it looks when all else is closed.

    A joined thread stays listed by the kernel for a moment after the one that waited for it goes on.
    """
    before = len(os.listdir("/proc/self/task"))
    yield
    _end_collector()
    for _ in range(PATIENCE_MS // 20):
        if (now := len(os.listdir("/proc/self/task"))) <= before:
            return
        select.poll().poll(20)
    pytest.fail(f"left {now - before} threads of a library behind")
