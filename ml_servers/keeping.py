"""Which states go to the recorder. It holds nobody up: a state that it has no room for is missed, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from schemas.messages import Sample


class Keeping:
    """The books on the recorder's states, kept by the server.

    The recorder may hold half of the slots; states that come before it is up wait for it in that room.

    Attributes:
        wanted: Whether this run is recorded.
        missed: States that it could not be given.
        given: States that it was given.
        failure: Why it cannot go on; empty while it can.
    """

    def __init__(self, wanted: bool) -> None:
        """Args: wanted: Whether this run is recorded."""
        self.wanted = wanted
        self.missed = self.given = 0
        self.failure = ""
        self._held: set[int] = set()
        self._waiting: list[Sample] = []
        self._send: Callable[[Sample], bool] | None = None

    def has_room(self, slots: int) -> bool:
        """Whether the next state may go to the recorder, of so many slots; if not, the state counts as missed."""
        if not self.wanted:
            return False
        room = not self.failure and len(self._held) < slots // 2
        self.missed += not room
        return room

    def give(self, sample: Sample) -> bool:
        """Hands a state over, or keeps it until the recorder is up. False: it was not taken and its slot is free."""
        if self._send is None:
            self._waiting.append(sample)
        elif not self._send(sample):
            self.missed += 1
            return False
        else:
            self.given += 1
        self._held.add(sample.slot)
        return True

    def ready(self, send: Callable[[Sample], bool]) -> list[Sample]:
        """The recorder is up, and takes states by `send`. Gives back those it did not take."""
        self._send, waiting, self._waiting = send, self._waiting, []
        self._held.clear()
        return [sample for sample in waiting if not self.give(sample)]

    @property
    def left(self) -> int:
        """States that the recorder has not written yet."""
        return len(self._held)

    def over(self) -> None:
        """The run is over: what still waits for the recorder is missed."""
        self.missed += len(self._waiting)
        self._waiting = []

    def released(self, slots: Iterable[int]) -> None:
        """The recorder is done with these slots."""
        self._held.difference_update(slots)

    def failed(self, reason: str) -> set[int]:
        """It cannot go on, for this reason. Gives back the slots that it held."""
        self.failure, held, self._held = reason, self._held, set()
        return held
