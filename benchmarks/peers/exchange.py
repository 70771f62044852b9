"""What is compared: two programs of one node, a producer that hands an array over and a consumer that answers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PATIENCE_S = 30.0
"""How long the producer waits for an answer, and either side for the other to come."""
IDLE_S = 120.0
"""How long a consumer waits for the next array before it gives up: other peers take their turns meanwhile."""
POLL_S = 1e-4
"""Between two looks where nothing but looking helps: files, and keys of a store. Most codes look far more seldom."""


class Exchange(Protocol):
    """The producer's side of a transport."""

    def put(self, array: Array) -> None:
        """Hands an array over, float64, shape (count,). It may be changed as soon as this returns."""
        ...

    def get(self) -> Array:
        """Waits for the answer to the last put, float64, shape (count,). It is valid until the next put.

        Raises:
            TimeoutError: It did not come.
        """
        ...

    def close(self) -> None:
        """Frees everything, and tells the consumer to end where the protocol has a word for it."""
        ...


@runtime_checkable
class Lending(Protocol):
    """An Exchange whose arrays are computed where they are handed over from."""

    def ready(self, array: Array) -> Array:
        """The same values where `put` wants them; called before the time begins."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a producer meets its consumer, and what they exchange.

    Attributes:
        folder: Empty folder of these two programs.
        count: Number of float64 values in an array.
    """

    folder: Path
    count: int

    def empty(self) -> Array:
        """A buffer for one array, its pages touched."""
        return np.zeros(self.count)


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to exchange arrays. Producer and consumer are made in two programs that know the place.

    Attributes:
        name: What it is called in the tables.
        produce: Makes the producer's side.
        consume: Answers every array, until it is told to end or is ended.
        missing: Says what to install when it cannot run here, else None.
        serve: Third program that both need, as a context in a folder.
        one_mpiexec: Whether both are programs of one mpiexec.
    """

    name: str
    produce: Callable[[Place], Exchange]
    consume: Callable[[Place], None]
    missing: Callable[[], str | None] = lambda: None
    serve: Callable[[Path], AbstractContextManager[None]] = nullcontext
    one_mpiexec: bool = False


def respond(question: Array, out: Array) -> Array:
    """The consumer's work: it touches every value and makes an answer of the same size."""
    return np.add(question, 1.0, out=out)


def raw(array: Array) -> memoryview:
    """The bytes of an array, not copied."""
    return array.view(np.uint8).data


def modules_missing(*names: str, install: str) -> str | None:
    """What to install when a module is not there, else None."""
    return None if all(find_spec(name) for name in names) else f"install it: {install}"


def announce(folder: Path, address: str) -> None:
    """Tells the other program where this one listens."""
    part = folder / "address.part"
    part.write_text(address)
    part.replace(folder / "address")


def announced(folder: Path) -> str:
    """Waits until the other program listens, and gives its address.

    Raises:
        TimeoutError: It never did.
    """
    await_any([folder / "address"], PATIENCE_S)
    return (folder / "address").read_text()


def await_any(paths: Iterable[Path], patience_s: float) -> Path:
    """Looks until one of some files is there.

    Raises:
        TimeoutError: None came.
    """
    paths, end = list(paths), time.monotonic() + patience_s
    while time.monotonic() < end:
        for path in paths:
            if path.exists():
                return path
        time.sleep(POLL_S)
    raise TimeoutError(f"{paths[0].name} did not come within {patience_s:g} s")
