"""A ring of slots in memory that two processes map: the writing side. No files, no sockets.

Byte by byte (all integers little-endian; a slot is a multiple of 4096 bytes, so it begins on a page):

    offset   bytes   what
    0        8       magic, b"CPLRRING"
    8        4       version of this layout, 1
    12       4       number of slots
    16       8       bytes of a slot, header included
    24       4072    zeros
    4096             slot 0, then slot 1, ...

    in a slot
    0        8       generation: n > 0 while the n-th content stands, -n while the n-th is being written
    8        56      zeros
    64               the arrays, C order, each on a multiple of 64 bytes; ids follow their array

A message names slot, generation and offset of each array; the system call that sends it is the fence. Whoever reads a
slot compares the generation: another one means that the content named is gone.

    slot        on                           becomes
    ---------   --------------------------   ----------------------------------------------------------
    free        lend()                       lent: its arrays are the caller's to fill
    free, lent  put()                        filled: named by a message
    filled      free(key), no array alive    free

A lent array keeps its slot for as long as the array or a view of it lives, also after it was sent: a solver with two
buffers goes on reading the one while it fills the other.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.fields import Array, Block
from schemas.messages import Place

MAGIC = b"CPLRRING"
VERSION = 1
PAGE = 4096
SLOT_HEADER = 64
_HEAD = struct.Struct("<8sIIQ")
_IDS = np.dtype("<i8")


def padded(nbytes: int, to: int = 64) -> int:
    """The next multiple of `to`."""
    return -(-nbytes // to) * to


def needed(blocks: Mapping[str, Block]) -> dict[str, int]:
    """Bytes that each Block takes in a slot, its ids included."""
    return {name: padded(b.array.nbytes) + padded(0 if b.ids is None else b.ids.nbytes) for name, b in blocks.items()}


def slot_bytes(capacity: Mapping[str, int]) -> int:
    """Bytes of a slot that holds so much of each field."""
    return padded(SLOT_HEADER + sum(capacity.values()), PAGE)


def file_bytes(slots: int, slot: int) -> int:
    """Bytes of a whole ring."""
    return PAGE + slots * slot


def read_header(memory: memoryview) -> tuple[int, int]:
    """Number of slots and bytes of one.

    Raises:
        ValueError: This is no ring, or not all of one.
    """
    if len(memory) < PAGE:
        raise ValueError(f"it has {len(memory)} bytes")
    magic, version, slots, slot = _HEAD.unpack_from(memory)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"it begins with {magic!r} and version {version}, not {MAGIC!r} and {VERSION}")
    if slot < PAGE or slot % PAGE or file_bytes(slots, slot) != len(memory):
        raise ValueError(f"{slots} slots of {slot} bytes do not make {len(memory)}")
    return slots, slot


class Ring:
    """The writing side. Owned by one thread.

    Attributes:
        capacity: Bytes that a slot holds of each field, ids included.
        slots: Number of slots.
    """

    def __init__(self, memory: Any, name: str, capacity: Mapping[str, int], slots: int) -> None:
        """Lays a ring out.

        Args:
            memory: Writable buffer of `file_bytes(slots, slot_bytes(capacity))` zeros.
            name: Under which the other side finds it.
            capacity: See the attribute.
            slots: See the attribute.
        """
        self.capacity, self.slots = dict(capacity), slots
        self._name, self._size = name, slot_bytes(capacity)
        self._memory = memoryview(memory)
        _HEAD.pack_into(self._memory, 0, MAGIC, VERSION, slots, self._size)
        words = np.frombuffer(self._memory, np.int64, offset=PAGE)
        self._generations = words[:: self._size // 8]
        self._first = int(words.__array_interface__["data"][0])
        self._at: dict[str, int] = {}
        at = SLOT_HEADER
        for field, size in capacity.items():
            self._at[field], at = at, at + size
        self._keys: dict[int, int | None] = {}  # filled slots, and the key that frees each; None until it is known
        self._lent: list[dict[str, weakref.ref[Array]]] = [{} for _ in range(slots)]
        self._work: dict[int, set[str]] = {}  # slots that are lent and not put yet, with the fields lent in them
        self._next = 0

    def fits(self, blocks: Mapping[str, Block]) -> bool:
        """Whether a slot can hold these Blocks."""
        return all(size <= self.capacity.get(field, -1) for field, size in needed(blocks).items())

    def lend(self, field: str, shape: Sequence[int], dtype: str) -> Array | None:
        """An array in a slot, with whatever was in it; None when no slot is free. One slot lends each field once."""
        slot = next((s for s in self._work if not self._lives(s, field)), None)
        slot = self._take() if slot is None else slot
        if slot is None:
            return None
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(self._memory, dtype, count, self._start(slot) + self._at[field])
        self._lent[slot][field] = weakref.ref(flat)  # every view of it has it as its base
        self._work.setdefault(slot, set()).add(field)
        return flat.reshape(shape)

    def put(self, blocks: Mapping[str, Block]) -> tuple[int, dict[str, Place]] | None:
        """Fills a slot: lent arrays are there already, all others are copied.

        Returns:
            The slot and the place of each Block, or None when no slot is free. `sent` or `undo` must follow.
        """
        lent = {field: slot for field, block in blocks.items() if (slot := self._home(field, block)) is not None}
        # A slot in which another field is lent, and still used, must not be written for that field.
        homes = [s for s in lent.values() if not any(self._lives(s, f) for f in blocks if lent.get(f) != s)]
        slot = max(homes, key=lambda s: self._held(s, lent, blocks)) if homes else self._take()
        if slot is None:
            return None
        start = self._start(slot)
        for field, block in blocks.items():
            at = start + self._at[field]
            if lent.get(field) != slot:
                self._copy(block.array, block.array.dtype.newbyteorder("<"), at)
            if block.ids is not None:
                self._copy(block.ids, _IDS, at + padded(block.array.nbytes))
        generation = -int(self._generations[slot])
        self._generations[slot] = generation
        self._keys[slot] = None
        self._work.pop(slot, None)
        return slot, {field: Place("shared", self._name, slot, generation, self._at[field]) for field in blocks}

    def views(self, slot: int, blocks: Mapping[str, Block]) -> dict[str, Block]:
        """The Blocks that were put into a slot, as they lie there."""
        start, found = self._start(slot), {}
        for field, block in blocks.items():
            at = start + self._at[field]
            array, ids = block.array, block.ids
            flat = np.frombuffer(self._memory, array.dtype.newbyteorder("<"), array.size, at)
            if ids is not None:
                ids = np.frombuffer(self._memory, _IDS, ids.size, at + padded(array.nbytes))
            found[field] = Block(flat.reshape(array.shape), block.offset, ids)
        return found

    def sent(self, slot: int, key: int) -> None:
        """The message that names a slot is under way; `free(key)` or more will free it."""
        self._keys[slot] = key

    def undo(self, slot: int) -> None:
        """The message that would have named a slot was not sent."""
        del self._keys[slot]

    def free(self, key: int) -> None:
        """The other side needs no slot any more whose key is at most this."""
        if self._keys:
            self._keys = {slot: k for slot, k in self._keys.items() if k is None or k > key}

    def free_all(self) -> None:
        """The other side is gone."""
        self._keys.clear()

    @property
    def in_flight(self) -> int:
        """Slots that a message names which the other side may not have read yet."""
        return len(self._keys)

    def _take(self) -> int | None:
        for _ in range(self.slots):
            slot, self._next = self._next, (self._next + 1) % self.slots
            if self._is_free(slot):
                self._generations[slot] = -abs(int(self._generations[slot])) - 1
                self._lent[slot].clear()
                self._work.pop(slot, None)
                return slot
        return None

    def _is_free(self, slot: int) -> bool:
        return slot not in self._keys and not any(self._lives(slot, field) for field in self._lent[slot])

    def _lives(self, slot: int, field: str) -> bool:
        ref = self._lent[slot].get(field)
        return ref is not None and ref() is not None

    def _home(self, field: str, block: Block) -> int | None:
        """The slot that lent this very array and was not sent since; None for any other array."""
        if not self._work or not block.array.flags.c_contiguous or block.array.dtype.byteorder == ">":
            return None
        slot, at = divmod(block.array.__array_interface__["data"][0] - self._first, self._size)
        return slot if at == self._at[field] and field in self._work.get(slot, ()) else None

    def _held(self, slot: int, lent: Mapping[str, int], blocks: Mapping[str, Block]) -> int:
        return sum(blocks[field].array.nbytes for field, s in lent.items() if s == slot)

    def _start(self, slot: int) -> int:
        return PAGE + slot * self._size

    def _copy(self, array: Array, dtype: np.dtype[Any], at: int) -> None:
        if array.size:
            np.copyto(np.frombuffer(self._memory, dtype, array.size, at).reshape(array.shape), array)
