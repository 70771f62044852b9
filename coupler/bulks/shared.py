"""Rings in files of shared memory: made by the writing side, mapped by the reading side."""

from __future__ import annotations

import mmap
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coupler.bulks.ring import PAGE, SLOT_HEADER, Ring, file_bytes, padded, read_header, slot_bytes
from coupler.errors import LinkError
from schemas.fields import DTYPES
from schemas.messages import BlockEntry
from schemas.wire import WireError

_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_SIZES = {name: np.dtype(name).itemsize for name in DTYPES}
RINGS_KEPT = 2
"""Rings of one writer that a reader keeps mapped: the present one, and the one before it grew."""


class RingFile:
    """A ring in a file of its own, and the file's life. Owned by the writing side.

    Attributes:
        ring: The ring.
        path: The file.
    """

    def __init__(self, folder: Path, stem: str, capacity: Mapping[str, int], slots: int) -> None:
        """Makes the file; all of its memory is there afterwards, so that no write to it can fail or fault later.

        Args:
            folder: `folder.shared_folder` of the run.
            stem: Begin of the file's name: who writes, in letters, digits and hyphens.
            capacity: Bytes that a slot holds of each field.
            slots: Number of slots.

        Raises:
            LinkError: There is no room for it.
        """
        name = f"{stem}-{secrets.token_hex(4)}"
        self.path = folder / name
        size = file_bytes(slots, slot_bytes(capacity))
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
            memory = mmap.mmap(file, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            self.path.unlink()
            room = os.statvfs(folder)
            raise LinkError(
                f"{slots} slots need {size >> 20} MiB of shared memory in {folder.parent}, which has "
                f"{room.f_bavail * room.f_frsize >> 20} MiB free ({error.strerror}): lower bulk.slots, free some, or "
                'use bulk.use = "inline"'
            ) from error
        finally:
            os.close(file)
        self.ring = Ring(memory, name, capacity, slots)

    def close(self) -> None:
        """Removes the file. The memory goes when the last array that views it goes, on either side."""
        self.path.unlink(missing_ok=True)


class RingReader:
    """Finds Blocks in the rings of one folder. Owned by one thread."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        """Makes it; rings are mapped when they are first named.

        Args:
            folder: `folder.shared_folder` of the run.
            writable: Whether to give out writable memory, for libraries that read from no other.
        """
        self._folder, self._writable = folder, writable
        self._rings: dict[str, _Mapped] = {}

    def fetch(self, entry: BlockEntry) -> list[memoryview]:
        """The bytes of a Block, and of its ids if it has some, read-only. They may be overwritten later; see `Ring`.

        Raises:
            WireError: There is no such ring or slot, it is too small, or what it held is gone.
        """
        place = entry.place
        assert place is not None
        ring = self._rings.get(place.name) or self._map(place.name)
        if not 0 <= place.slot < ring.slots:
            raise WireError(f"Field {entry.field!r}: {place.name} has {ring.slots} slots, no slot {place.slot}.")
        if place.generation < 1 or ring.generations[place.slot] != place.generation:
            raise WireError(
                f"Field {entry.field!r}: slot {place.slot} of {place.name} holds content "
                f"{ring.generations[place.slot]}, not {place.generation}: it was overwritten before it was read."
            )
        if entry.dtype not in _SIZES or min(entry.shape, default=0) < 0 or (entry.has_ids and not entry.shape):
            raise WireError(f"Field {entry.field!r} has dtype {entry.dtype!r} and shape {entry.shape}.")
        nbytes = _SIZES[entry.dtype]
        for length in entry.shape:
            nbytes *= length
        sizes = [nbytes, 8 * entry.shape[0]] if entry.has_ids else [nbytes]
        parts, at = [], place.at
        for size in sizes:
            if at < SLOT_HEADER or at + size > ring.slot:
                raise WireError(f"Field {entry.field!r}: {size} bytes at {at} do not fit a slot of {ring.slot} bytes.")
            begin = PAGE + place.slot * ring.slot + at
            parts.append(ring.memory[begin : begin + size])
            at += padded(size)
        return parts

    def _map(self, name: str) -> _Mapped:
        if not _NAME.fullmatch(name):
            raise WireError(f"{name!r} is no name of a ring.")
        try:
            ring = _Mapped(self._folder / name, self._writable)
        except (OSError, ValueError) as error:
            raise WireError(f"{name} is no ring that can be read here: {error}.") from error
        writer = name.rpartition("-")[0]
        mine = [known for known in self._rings if known.rpartition("-")[0] == writer]
        for old in mine[: len(mine) + 1 - RINGS_KEPT]:
            del self._rings[old]
        self._rings[name] = ring
        return ring


class _Mapped:
    """A ring's file as its reader sees it."""

    def __init__(self, path: Path, writable: bool) -> None:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        with path.open("r+b" if writable else "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < PAGE:
                raise ValueError(f"it has {size} bytes")
            kept = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=access)
        self.memory = memoryview(kept)
        self.slots, self.slot = read_header(self.memory)
        self.generations = np.frombuffer(self.memory, np.int64, offset=PAGE)[:: self.slot // 8]
