"""A ring that grows: when Blocks do not fit, a larger one takes its place, and the old one lives until it is read."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from coupler.bulks.ring import Ring, file_bytes, needed, slot_bytes
from coupler.errors import LinkError
from schemas.fields import Array, Block
from schemas.messages import Place

GROWTH = 1.25
"""Room that a ring gets beyond what made the last one too small: particles wander."""


class Store(Protocol):
    """Memory of a ring, as `coupler.bulks.shared.RingFile` makes it."""

    @property
    def ring(self) -> Ring:
        """The ring in it."""
        ...

    def close(self) -> None:
        """Lets the memory go, once the last array that views it goes."""
        ...


class OwnStore:
    """A ring in memory that no other process sees.

    Attributes:
        ring: The ring.
    """

    def __init__(self, capacity: Mapping[str, int], slots: int) -> None:
        """Takes the memory, all of its pages, so that no write faults later.

        Raises:
            LinkError: There is no room for it.
        """
        size = file_bytes(slots, slot_bytes(capacity))
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        except OSError as error:
            raise LinkError(f"{slots} slots need {size >> 20} MiB of memory ({error.strerror})") from error
        self.ring = Ring(memory, "own", capacity, slots)

    def close(self) -> None:
        """See `Store.close`."""


class GrowingRing:
    """Owned by one thread."""

    def __init__(self, make: Callable[[Mapping[str, int]], Store]) -> None:
        """Makes nothing yet.

        Args:
            make: Makes a ring whose slots hold so many bytes of each field; raises LinkError or OSError without room.
        """
        self._make = make
        self._store: Store | None = None
        self._old: list[Store] = []  # too small, but not read to the end yet

    def put(self, blocks: Mapping[str, Block]) -> tuple[Ring, int, dict[str, Place]] | None:
        """Fills a slot, as `Ring.put`; None when no slot is free.

        Raises:
            LinkError, OSError: A larger ring is needed, and there is no room for it.
        """
        if self._store is None or not self._store.ring.fits(blocks):
            self._grow(needed(blocks))
        assert self._store is not None
        ring = self._store.ring
        found = ring.put(blocks)
        return None if found is None else (ring, *found)

    def lend(self, field: str, shape: Sequence[int], dtype: str) -> Array | None:
        """An array in a slot, as `Ring.lend`; None when no slot is free, or none is large enough."""
        if self._store is None:
            return None
        ring = self._store.ring
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return ring.lend(field, shape, dtype) if size <= ring.capacity.get(field, -1) else None

    def free(self, key: int) -> None:
        """See `Ring.free`."""
        for store in self._all():
            store.ring.free(key)
        self._drop_old()

    def free_all(self) -> None:
        """See `Ring.free_all`."""
        for store in self._all():
            store.ring.free_all()
        self._drop_old()

    def close(self) -> None:
        """Lets all memory go."""
        for store in self._all():
            store.close()
        self._old, self._store = [], None

    def _grow(self, capacity: dict[str, int]) -> None:
        if self._store is not None:
            before = self._store.ring.capacity
            for name, size in capacity.items():
                if size > before.get(name, 0):
                    capacity[name] = _room(size) if name in before else size
            capacity = {name: max(before.get(name, 0), capacity.get(name, 0)) for name in {**before, **capacity}}
            self._old.append(self._store)
            self._store = None
        try:
            self._store = self._make(capacity)
        finally:
            self._drop_old()

    def _all(self) -> list[Store]:
        return [*self._old, self._store] if self._store is not None else self._old

    def _drop_old(self) -> None:
        for store in [store for store in self._old if not store.ring.in_flight]:
            store.close()
            self._old.remove(store)


def _room(size: int) -> int:
    """Room for a Block that has grown once and may grow again."""
    return -(-int(size * GROWTH) // 64) * 64
