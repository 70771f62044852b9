"""What every use of ADIOS2 has in common: the package, the SST engine and its parameters, its sockets.

Facts that shape this module and `coupler.bulks.adios`, each measured (ADIOS2 2.12):

- The bindings hold the interpreter's lock while they wait: no second Python thread may take part in a stream.
- A reader's `open` ends when the writer comes by the next time, in a step of its own. So it takes as long as a step of
  the solver, and only one direction of a connection may be opened while the other side may be waiting.
- A writer that ends its step for a reader that is stopped would wait for ever under any policy but `Discard`; for one
  that is killed just then it may wait for ever under any. So a rank writes through `coupler.bulks.courier`.
- SST leaves Nagle's algorithm on: two small messages in turn then take 40 ms each on loopback. `hurry` turns it off.
- A reader that waits with a time-out leaves a task in SST's own thread, whose removal races with it (ADIOS2 issue
  1862); on an overloaded machine that may have killed a server twice. So `await_step` asks again and again.
- The queue counts the steps that are kept in reserve. Once a step was dropped, a reader waits for the next one whatever
  its time-out says. So the queue has room for the reserve and for all that the credit lets be under way.
- Steps that a writer makes only to come by count in its queue and in its reserve, like any other. Made all the time,
  they fill the queue of a reader that asks seldom, and the next state is dropped. So a reader says by `knocking` when
  it needs them.
- Once in some 700 openings by several readers, one of them was killed by SIGSEGV after EVPath said "Use of condition 1,
  no longer in control list".
- A writer that was killed leaves its contact file, and a reader that finds it fails at once.
- `blocks_info` gives the least and the largest value of a uint8 variable as characters, which are no text: it raises.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coupler.errors import CouplerError, LinkError

TYPES = {"float": "<f4", "double": "<f8", "int32_t": "<i4", "int64_t": "<i8", "uint8_t": "|u1"}
"""NumPy type strings of the types that variables have."""
RESERVE = 4
"""Steps kept for a reader that is still opening the stream."""
DEFAULTS = {
    "QueueLimit": "16",
    "ReserveQueueLimit": str(RESERVE),
    "QueueFullPolicy": "Discard",
    "RendezvousReaderCount": "0",
}
"""A short queue that never blocks; the reserve keeps the first steps for a reader that is still opening."""
OURS = {
    "queuefullpolicy": "Discard: with any other a reader that stops would stop the solver",
    "rendezvousreadercount": "0: the solver does not wait for readers",
    "opentimeoutsecs": "set by the coupler",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SPINS, SPIN_S = 300, 5e-6
"""How often a reader asks at once whether a step is there, and about how long that takes each time."""
PAUSE_S, LONGEST_PAUSE_S, SLOWER = 1e-5, 2e-3, 1.1
"""Then it pauses, longer by this factor each time."""
HURRIED_STEPS = 64
"""Steps at which new sockets are looked for; later at every so many-th."""


def available(mpi: bool = False) -> str:
    """Why ADIOS2 cannot be used here; empty when it can.

    Args:
        mpi: Whether a build with MPI is needed.
    """
    try:
        adios2 = adios2_module()
    except ImportError as error:
        return f"adios2 cannot be imported ({error}); pip install 'coupler[adios]'"
    if not adios2.__version__.startswith("2."):
        return f"adios2 is {adios2.__version__}, and this release knows 2.x; pip install 'adios2<3'"
    if mpi and not adios2.is_built_with_mpi:
        return "adios2 is built without MPI, as the wheel is; run make adios-mpi"
    return ""


def refused(parameters: Mapping[str, str]) -> list[str]:
    """What is wrong with engine parameters from a run file, one sentence each."""
    found = [f"bulk.adios.{key} is fixed to {OURS[key.lower()]}" for key in parameters if key.lower() in OURS]
    for key, value in parameters.items():
        if key.lower() in ("queuelimit", "reservequeuelimit") and not (value.isdecimal() and int(value) > 0):
            found.append(f"bulk.adios.{key} is {value}; a queue without a limit would fill the memory: give 1 or more")
    sizes = {key.lower(): value for key, value in {**DEFAULTS, **parameters}.items()}
    queue, reserve = sizes["queuelimit"], sizes["reservequeuelimit"]
    if not found and int(queue) <= int(reserve):
        found.append(
            f"bulk.adios.QueueLimit is {queue}; it must exceed ReserveQueueLimit = {reserve}, which it includes"
        )
    return found


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Makes a LinkError of whatever the bindings raise: a stream may fail, but ends no process.

    They raise what was thrown in C++, as many types, and what they cannot turn into Python.
    """
    try:
        yield
    except CouplerError:
        raise
    except Exception as error:
        raise LinkError(f"{what}: {type(error).__name__}: {said(error)}") from error


def said(error: Exception) -> str:
    """The last clause of what adios2 says in its first line, without colours."""
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    return lines[0].rpartition(" : ")[2].strip() if lines else type(error).__name__


@contextmanager
def knocking(path: Path) -> Iterator[None]:
    """Tells the writer of a stream, while it lasts, that a reader waits for it to come by.

    It is the content of a file that tells, not whether there is one: a network file system shows that sooner.
    """
    knock = os.open(knock_file(path), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(knock, secrets.token_hex(8).encode(), 0)
        os.fsync(knock)
        yield
    finally:
        os.ftruncate(knock, 0)
        os.close(knock)


def knocked(path: Path) -> bytes:
    """What the reader wrote that waits for the writer of a stream to come by, each its own; nothing when none waits."""
    try:
        return knock_file(path).read_bytes()
    except FileNotFoundError:  # the folder is gone, and nobody comes any more
        return b""


def knock_file(path: Path) -> Path:
    """Where a reader knocks. The writer makes it before there is a stream to open, and removes it."""
    return path.with_name(f"{path.name}.knock")


class Sockets:
    """The TCP sockets that this process has opened since."""

    def __init__(self) -> None:
        self._before = set(os.listdir("/proc/self/fd"))

    def hurry(self, turn: int) -> None:
        """Turns Nagle's algorithm off on new ones; looks at the first turns and then now and again."""
        if turn >= HURRIED_STEPS and turn % HURRIED_STEPS:
            return
        for number in set(os.listdir("/proc/self/fd")) - self._before:
            try:
                if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                    continue
                copy = os.dup(int(number))
            except OSError:  # closed meanwhile
                continue
            with socket.socket(fileno=copy) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def adios2_module() -> Any:
    """The package. It looks for torch and cupy, to write their arrays, and no simulation process may load these."""
    hidden: dict[str, Any] = {name: None for name in ("torch", "cupy") if name not in sys.modules}
    if "adios2" in sys.modules:
        hidden.clear()
    sys.modules.update(hidden)
    try:
        import adios2
    finally:
        for name in hidden:
            del sys.modules[name]
    return adios2


def engine_io(name: str, parameters: Mapping[str, str], comm: Any) -> Any:
    """An IO of the SST engine with its parameters, on top of `DEFAULTS`.

    Raises:
        LinkError: ADIOS2 cannot be used.
    """
    if reason := available(mpi=comm is not None):
        raise LinkError(reason)
    adios2 = adios2_module()
    with telling(f"the stream {name} cannot be opened"):
        adios = adios2.Adios() if comm is None else adios2.Adios(comm)
        io = adios.declare_io(name)
        io.owner = adios  # it would end with its last reference, and the IO with it
        io.set_engine("SST")
        io.set_parameters({**DEFAULTS, **parameters})
    return io


def open_engine(io: Any, path: Path, mode: str, comm: Any) -> Any:
    """The engine of a stream, opened to `Read` or `Write`.

    Raises:
        LinkError: It cannot be opened.
    """
    from adios2.bindings import Mode

    with telling(f"the stream {path.name} cannot be opened"):
        return io.open(str(path), getattr(Mode, mode), *([] if comm is None else [comm]))


def await_step(engine: Any, name: str, timeout_s: float) -> float | None:
    """Begins the next step of a reader, once it is there.

    The calls depend on the time allowed alone, not on a clock: readers that wait together make the same ones.

    Args:
        engine: The reader's engine.
        name: Name of the stream.
        timeout_s: How long to wait.

    Returns:
        What is left of that time; None when no step came.

    Raises:
        LinkError: The stream has ended, or its writer is gone.
    """
    from adios2.bindings import StepMode, StepStatus

    turn, pause, left = 0, PAUSE_S, timeout_s
    while (status := engine.begin_step(StepMode.Read, 0.0)) == StepStatus.NotReady:
        if left <= 0.0:
            return None
        if turn < SPINS:
            os.sched_yield()
            turn, left = turn + 1, max(left - SPIN_S, 0.0)
        else:
            time.sleep(min(pause, left))
            left, pause = max(left - pause, 0.0), min(SLOWER * pause, LONGEST_PAUSE_S)
    if status != StepStatus.OK:
        raise LinkError(f"the stream {name} has ended, or its writer is gone ({status})")
    return left
