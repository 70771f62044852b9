"""The streams that a server reads: one for each rank that sends by ADIOS2, opened when a message first names it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from coupler.bulks.adios import AdiosReader, StepDropped
from coupler.errors import LinkError, SchemaMismatch
from schemas.fields import Block, FieldSpec
from schemas.messages import BlockEntry
from schemas.wire import Frame, WireError, raw

_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
OPEN_S = 10.0
"""How long a rank may take to its next step, where a stream is opened; see `coupler.bulks.adios`."""
FETCH_S = 0.2
"""How long a step that was written before its message was sent may take to arrive."""


class Streams:
    """Owned by one thread. A stream that fails is not tried again: its rank will go another way."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Args: folder: Where the contact files lie. parameters: Engine parameters of the run file."""
        self._folder, self._parameters = folder, dict(parameters)
        self._fields: tuple[FieldSpec, ...] = ()
        self._readers: dict[str, AdiosReader] = {}
        self._failed: dict[str, str] = {}
        self._here: dict[str, tuple[int, dict[str, Block]]] = {}  # the step read last, by stream

    def declare(self, fields: Sequence[FieldSpec]) -> None:
        """The fields that the streams hold; before the first `fetch`."""
        self._fields = tuple(fields)

    def fetch(self, entry: BlockEntry) -> list[Frame]:
        """The bytes of a Block, and of its ids.

        Raises:
            WireError: They cannot be had.
        """
        place = entry.place
        assert place is not None
        number, blocks = self._here.get(place.name, (-1, {}))
        if number != place.generation:
            blocks = self._read(place.name, place.generation)
            self._here[place.name] = place.generation, blocks
        block = blocks.get(entry.field)
        if block is None:
            return [b"", b""] if entry.has_ids else [b""]
        return [raw(block.array), *([] if block.ids is None else [raw(block.ids)])]

    def close(self) -> None:
        """Leaves all streams."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _read(self, name: str, number: int) -> dict[str, Block]:
        if not _NAME.fullmatch(name):
            raise WireError(f"{name!r} is no name of a stream.")
        if name in self._failed:
            raise WireError(f"The stream {name} has failed before: {self._failed[name]}.")
        try:
            if name not in self._readers:
                path = self._folder / name
                self._readers[name] = AdiosReader(path, self._fields, self._parameters, open_timeout_s=OPEN_S)
            return self._readers[name].fetch(number, FETCH_S)
        except StepDropped as error:
            raise WireError(f"{error}.") from error
        except (LinkError, SchemaMismatch) as error:
            self._failed[name] = str(error)
            raise WireError(f"{error}.") from error
