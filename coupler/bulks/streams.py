"""The streams that a server reads: one from each node that sends by ADIOS2, opened when a message first names it."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from coupler.bulks.adios import SETS, AdiosReader
from coupler.errors import LinkError, SchemaMismatch
from schemas.fields import Block, FieldSpec
from schemas.messages import BlockEntry
from schemas.wire import Frame, WireError, raw

log = logging.getLogger("coupler.bulk")
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
OPEN_S = 10.0
"""How long a node may take to its next step, where a stream is opened; see `coupler.bulks.adios`."""
FETCH_S = 0.2
"""How long a step may take to arrive whose message is here."""


class PartDropped(LinkError):
    """What a rank gave to a stream is lost; the stream goes on."""


class PartReader:
    """What the ranks of one node put into their stream, in whatever order it is asked for.

    A step holds parts of several ranks, whose messages come one by one. So those that were not asked for yet are kept,
    as long as their arrays are what they were.
    """

    def __init__(
        self, path: Path, fields: Sequence[FieldSpec], parameters: Mapping[str, str], open_timeout_s: float = OPEN_S
    ) -> None:
        """Opens the stream; see `AdiosReader`."""
        self._name = path.name
        self._reader = AdiosReader(path, fields, parameters, open_timeout_s=open_timeout_s)
        self._here: deque[dict[tuple[int, int], Mapping[str, Block]]] = deque(maxlen=SETS - 1)
        self._newest: dict[int, int] = {}

    def fetch(self, member: int, number: int, timeout_s: float) -> Mapping[str, Block]:
        """The Blocks of what a rank put.

        Raises:
            PartDropped: It was dropped, or did not come in time; later ones may come.
            LinkError: The writer is gone.
            SchemaMismatch: A field is not as this side declares it.
        """
        end = time.monotonic() + timeout_s
        while True:
            for parts in self._here:
                if (member, number) in parts:
                    return parts[member, number]
            if (newest := self._newest.get(member, -1)) >= number:
                raise PartDropped(f"step {number} of the stream {self._name} was dropped; it goes on at {newest}")
            if (read := self._reader.next_parts(max(end - time.monotonic(), 0.0))) is None:
                raise PartDropped(f"step {number} of the stream {self._name} did not come in {timeout_s:g} s")
            self._here.append({(part.member, part.number): part.blocks for part in read})
            self._newest |= {part.member: part.number for part in read}

    def close(self) -> None:
        """Leaves the stream."""
        self._reader.close()


class Streams:
    """Owned by one thread. A stream that fails is not tried again: its ranks will go another way."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Args: folder: Where the contact files lie. parameters: Engine parameters of the run file."""
        self._folder, self._parameters = folder, dict(parameters)
        self._fields: tuple[FieldSpec, ...] = ()
        self._readers: dict[str, PartReader] = {}
        self._failed: dict[str, str] = {}

    def declare(self, fields: Sequence[FieldSpec]) -> None:
        """The fields that the streams hold; nothing is read before."""
        self._fields = tuple(fields)

    def fetch(self, entry: BlockEntry) -> list[Frame]:
        """The bytes of a Block, and of its ids.

        Raises:
            WireError: They cannot be had.
        """
        place = entry.place
        assert place is not None
        block = self._read(place.name, place.slot, place.generation).get(entry.field)
        if block is None:
            return [b"", b""] if entry.has_ids else [b""]
        return [raw(block.array), *([] if block.ids is None else [raw(block.ids)])]

    def close(self) -> None:
        """Leaves all streams."""
        for reader in self._readers.values():
            try:
                reader.close()
            except LinkError as error:  # the run ends, and the other streams are to be left too
                log.warning("%s", error)
        self._readers.clear()

    def _read(self, name: str, member: int, number: int) -> Mapping[str, Block]:
        if not _NAME.fullmatch(name):
            raise WireError(f"{name!r} is no name of a stream.")
        if not self._fields:  # a message to a server before this one
            raise WireError(f"The stream {name} cannot be read before a rank has said what it holds.")
        if name in self._failed:
            raise WireError(f"The stream {name} has failed before: {self._failed[name]}.")
        try:
            if name not in self._readers:
                self._readers[name] = PartReader(self._folder / name, self._fields, self._parameters)
            return self._readers[name].fetch(member, number, FETCH_S)
        except PartDropped as error:
            raise WireError(f"{error}.") from error
        except (LinkError, SchemaMismatch) as error:
            self._failed[name] = str(error)
            raise WireError(f"{error}.") from error
