"""Slots: global states in one memory-mapped file, written by the server and read by the trainers without a copy.

The payload lies in the file; the message that names a slot travels over a Link, and that system call is the fence. A
slot is written again only after every trainer has released it, and its generation number finds a stale reference.
The memory of a slot is taken when it is first used: where there is none left, the pool stays as small as it is.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coupler.errors import LinkError
from schemas.fields import Array, FieldSpec

ALIGNMENT = 4096


class Slots:
    """A file of `count` slots, each with one array for every field.

    Attributes:
        no_room: Slots that could never be used, because shared memory was full when they were needed.
    """

    def __init__(self, path: Path, fields: Sequence[FieldSpec], count: int, *, create: bool) -> None:
        """Opens the file.

        Args:
            path: Where it lies.
            fields: Fields of a state; both sides must pass the same.
            count: Number of slots.
            create: True for the one side that makes and owns it.

        Raises:
            LinkError: It has another size than expected.
        """
        self.fields, self.path, self.count = tuple(fields), path, count
        self._owner = create
        self._stride = ALIGNMENT + sum(_padded(spec.nbytes) for spec in fields)
        size = self._stride * count
        if create:
            path.unlink(missing_ok=True)  # a trainer may still look at that of a server that was killed
            with path.open("wb") as file:
                file.truncate(size)
        elif not path.exists() or path.stat().st_size != size:
            raise LinkError(f"{path} is not the training buffer of this run: {size} bytes were expected.")
        self.no_room = 0
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._there: set[int] = set()
        self._free = list(range(count)) if create else []
        self._holders: dict[int, int] = {}
        self._lent: dict[int, tuple[int, Array]] = {}  # by id of the first array; held, an id stays its own

    def acquire(self) -> Mapping[str, Array]:
        """Arrays to assemble a state in: a free slot's, or fresh ones when the trainers hold all slots. Owner only."""
        slot = self._take()
        if slot is None:
            return {spec.name: np.zeros(spec.shape, dtype=spec.dtype) for spec in self.fields}
        self._header(slot)[0] += 1
        arrays = self.arrays(slot)
        first = arrays[self.fields[0].name]
        self._lent[id(first)] = slot, first
        return arrays

    def copied(self, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """Arrays of a free slot with the values of arrays that were acquired elsewhere; None when no slot is free."""
        if id(arrays[self.fields[0].name]) in self._lent:
            return arrays
        if not self._free:
            return None
        copies = self.acquire()
        for name, array in copies.items():
            array[...] = arrays[name]
        return copies

    def discard(self, arrays: Mapping[str, Array]) -> None:
        """Takes back arrays that will not be filled."""
        slot = self._taken_back(arrays)
        if slot is not None:
            self._free.append(slot)

    def filled(self, arrays: Mapping[str, Array], holders: int) -> int | None:
        """The slot of acquired arrays, kept until it was released `holders` times (0: free at once).

        Values that were not written in place (the invariants) are copied in. None when the arrays are no slot's.
        """
        slot = self._taken_back(arrays)
        if slot is None:
            return None
        for name, array in self.arrays(slot).items():
            if array.ndim == 0:
                array[...] = arrays[name]
        if holders:
            self._holders[slot] = holders
        else:
            self._free.append(slot)
        return slot

    def release(self, slot: int) -> None:
        """One trainer does not need a slot any more. Unknown slots are ignored (a trainer that came back)."""
        left = self._holders.get(slot)
        if left is None:
            return
        if left > 1:
            self._holders[slot] = left - 1
        else:
            del self._holders[slot]
            self._free.append(slot)

    def generation(self, slot: int) -> int:
        """How often the slot was written."""
        return int(self._header(slot)[0])

    def arrays(self, slot: int) -> dict[str, Array]:
        """The arrays of a slot by field name; views of the file."""
        arrays, at = {}, slot * self._stride + ALIGNMENT
        for spec in self.fields:
            flat = np.frombuffer(self._map, dtype=spec.dtype, count=math.prod(spec.shape), offset=at)
            arrays[spec.name] = flat.reshape(spec.shape)
            at += _padded(spec.nbytes)
        return arrays

    def close(self) -> None:
        """Removes the file if this side owns it. The mapping goes with the last array that views it."""
        if self._owner:
            self.path.unlink(missing_ok=True)

    def _take(self) -> int | None:
        while self._free:
            slot = self._free.pop()
            if slot in self._there:
                return slot
            try:
                with self.path.open("r+b") as file:  # a write to memory that cannot be had would kill this process
                    os.posix_fallocate(file.fileno(), slot * self._stride, self._stride)
            except OSError:
                self.no_room += 1
                continue
            self._there.add(slot)
            return slot
        return None

    def _taken_back(self, arrays: Mapping[str, Array]) -> int | None:
        slot, _ = self._lent.pop(id(arrays[self.fields[0].name]), (None, None))
        return slot

    def _header(self, slot: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.frombuffer(self._map, dtype=np.int64, count=1, offset=slot * self._stride)


def _padded(nbytes: int) -> int:
    return -(-max(nbytes, 1) // 64) * 64
