"""The bulk of one side of a connection: where its Blocks go, and where those of the other side come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coupler.bulks.choice import BulkRules
from coupler.bulks.folder import leave
from coupler.bulks.outbox import Outbox
from coupler.bulks.shared import RingReader
from coupler.bulks.streams import Streams
from schemas.messages import BlockEntry
from schemas.wire import Frame, WireError


@dataclass(slots=True)
class Bulk:
    """Owned by one thread.

    Attributes:
        outbox: Where Blocks go.
        rings: Finds Blocks in shared memory; None where there is none.
        streams: Reads ADIOS2 streams; None on a side that reads none.
        token: Token of the run's folder in shared memory, for the handshake; empty where there is none.
        folder: That folder; None where there is none.
    """

    outbox: Outbox
    rings: RingReader | None = None
    streams: Streams | None = None
    token: str = ""
    folder: Path | None = None

    def fetch(self, entry: BlockEntry) -> Sequence[Frame]:
        """The bytes of a Block that did not travel in frames, and of its ids.

        Raises:
            WireError: They cannot be had.
        """
        place = entry.place
        if place is not None and place.bulk == "shared" and self.rings is not None:
            return self.rings.fetch(entry)
        if place is not None and place.bulk == "adios" and self.streams is not None:
            return self.streams.fetch(entry)
        raise WireError(f"Field {entry.field!r} goes by {place.bulk if place else 'frames'!r}, not read here.")

    def close(self) -> None:
        """Frees everything."""
        self.outbox.close()
        if self.streams is not None:
            self.streams.close()
        if self.folder is not None:
            leave(self.folder)


def frames_only(digest: bool, *, unchanging: bool = False) -> Bulk:
    """Everything travels in frames. `unchanging`: no array that is put will ever change."""
    return Bulk(Outbox(BulkRules(use="inline"), digest=digest, unchanging=unchanging))
