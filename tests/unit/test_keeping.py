"""The recorder holds nobody up: it may hold half of the slots, and what it has no room for is counted."""

from __future__ import annotations

from ml_servers.keeping import Keeping
from schemas.messages import Sample


def sample(slot: int) -> Sample:
    return Sample(slot, 1, slot, 0.0, 1.0, 1.0)


def test_a_run_that_is_not_recorded_misses_nothing() -> None:
    keeping = Keeping(wanted=False)
    assert not keeping.has_room(8) and keeping.missed == 0


def test_takes_half_of_the_slots_and_counts_the_rest() -> None:
    keeping, sent = Keeping(wanted=True), []
    keeping.ready(lambda s: sent.append(s.slot) or True)
    for slot in range(4):
        if keeping.has_room(6):
            keeping.give(sample(slot))
    assert sent == [0, 1, 2] and (keeping.given, keeping.missed) == (3, 1)
    keeping.released((0, 1))
    assert keeping.has_room(6)


def test_states_wait_for_a_recorder_that_is_not_up_yet() -> None:
    keeping, sent = Keeping(wanted=True), []
    assert keeping.has_room(6) and keeping.give(sample(0)) and keeping.has_room(6) and keeping.give(sample(1))
    assert keeping.given == 0
    refused = keeping.ready(lambda s: sent.append(s.slot) or s.slot == 0)
    assert sent == [0, 1] and [s.slot for s in refused] == [1]
    assert (keeping.given, keeping.missed) == (1, 1)


def test_a_recorder_that_failed_gives_its_slots_back_and_misses_everything() -> None:
    keeping = Keeping(wanted=True)
    keeping.ready(lambda _: True)
    assert keeping.has_room(6) and keeping.give(sample(5))
    assert keeping.failed("no space") == {5} and keeping.failure == "no space"
    assert not keeping.has_room(6) and keeping.missed == 1


def test_what_still_waits_when_the_run_is_over_is_missed() -> None:
    keeping = Keeping(wanted=True)
    assert keeping.has_room(6) and keeping.give(sample(0)) and keeping.left == 1
    keeping.over()
    assert (keeping.given, keeping.missed) == (0, 1)
