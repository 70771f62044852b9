"""FlakyLink does what its script says, the same way every time, and counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.contracts import Link
from coupler.links.memory import MemoryHub
from coupler.testing.flaky import FAULTS, Fault, FlakyLink, random_faults


def pair(script: int | Sequence[Fault], **settings: Any) -> tuple[Link, FlakyLink]:
    hub = MemoryHub(capacity_bytes=2**20)
    listener = hub.listen()
    return listener, FlakyLink(hub.connect(b"a"), script, **settings)


def drained(link: Link, calls: int = 1) -> list[bytes]:
    """First frames of all messages that come out, until `calls` receives in a row give nothing."""
    heads, empty = [], 0
    while empty < calls:
        message = link.receive(0)
        empty = 0 if message else empty + 1
        if message:
            heads.append(bytes(message[1][0]))
    return heads


SCRIPTS: list[tuple[list[Fault], list[bytes]]] = [
    (["none"], [b"0", b"1", b"2"]),
    (["drop"], [b"1", b"2"]),
    (["duplicate"], [b"0", b"0", b"1", b"2"]),
    (["reorder"], [b"1", b"0", b"2"]),
    (["reorder", "reorder"], [b"0", b"2", b"1"]),
    (["reorder", "drop"], [b"0", b"2"]),
    (["delay"], [b"1", b"2", b"0"]),
    (["none", "none", "reorder"], [b"0", b"1", b"2"]),
    (["delay", "drop", "duplicate"], [b"2", b"2", b"0"]),
]


@pytest.mark.parametrize(("script", "arrives"), SCRIPTS)
def test_script_is_applied_to_what_is_sent(script: list[Fault], arrives: list[bytes]) -> None:
    listener, flaky = pair(script)
    for number in range(3):
        assert flaky.send([b"%d" % number])
    early = drained(listener)
    for _ in range(3):
        flaky.receive(0)
    assert early + drained(listener) == arrives
    assert flaky.counts.total() == 3 and flaky.counts[script[0]] >= 1


@pytest.mark.parametrize(("script", "arrives"), SCRIPTS)
def test_script_is_applied_to_what_is_received(script: list[Fault], arrives: list[bytes]) -> None:
    listener, flaky = pair(script)
    for number in range(3):
        assert listener.send([b"%d" % number], b"a")
    assert drained(flaky, calls=4) == arrives


def test_delay_counts_calls_of_receive() -> None:
    listener, flaky = pair(["delay"], delay_calls=2)
    flaky.send([b"late"])
    for came in ([], [b"late"]):
        flaky.receive(0)
        assert drained(listener) == came


def test_truncate_shortens_one_frame_and_flip_changes_one_bit() -> None:
    listener, flaky = pair(["truncate", "flip", "flip"])
    whole = [b"abcdef", b"", b"ghijkl"]
    for _ in range(2):
        flaky.send([*whole])
    flaky.send([b"", b""])  # nothing to change
    message = listener.receive(0)
    assert message is not None
    cut = [bytes(frame) for frame in message[1]]
    assert sum(map(len, cut)) < 12 and all(a.startswith(b) for a, b in zip(whole, cut, strict=True))
    message = listener.receive(0)
    assert message is not None
    bits = [a ^ b for x, y in zip(whole, message[1], strict=True) for a, b in zip(x, bytes(y), strict=True)]
    assert sum(bit.bit_count() for bit in bits) == 1
    assert flaky.counts == {"truncate": 1, "flip": 1, "none": 1}


def test_a_dropped_answer_does_not_end_the_wait() -> None:
    ticks = iter(range(100))
    listener, flaky = pair(["drop"], clock=lambda: 0.001 * next(ticks))
    for head in (b"lost", b"found"):
        listener.send([head], b"a")
    message = flaky.receive(1)
    assert message is not None and message[1][0] == b"found"
    assert flaky.receive(0.001) is None


@given(seed=st.integers(0, 2**32), count=st.integers(1, 60))
def test_one_seed_is_one_run_and_nothing_is_invented(seed: int, count: int) -> None:
    def run() -> tuple[list[bytes], dict[Fault, int]]:
        listener, flaky = pair(seed)
        arrived = []
        for number in range(count):
            assert flaky.send([b"%04d" % number])
            flaky.receive(0)
            arrived += drained(listener)
        for _ in range(4):
            flaky.receive(0)
        return arrived + drained(listener), dict(flaky.counts)

    arrived, counts = run()
    assert (arrived, counts) == run()
    assert sum(counts.values()) == count
    assert len(arrived) == count - counts.get("drop", 0) + counts.get("duplicate", 0)
    unharmed = [head for head in arrived if head in {b"%04d" % number for number in range(count)}]
    assert len(unharmed) >= count - sum(counts.get(fault, 0) for fault in ("drop", "truncate", "flip"))


def test_random_faults_know_every_kind() -> None:
    script = random_faults(1, share=1.0)
    assert {next(script) for _ in range(200)} == set(FAULTS[1:])
    script = random_faults(1, share=0.25)
    assert 0.2 < sum(next(script) != "none" for _ in range(4000)) / 4000 < 0.3


def test_close_closes_the_link_and_forgets_what_is_held() -> None:
    listener, flaky = pair(["delay"])
    flaky.send([b"held"])
    flaky.close()
    flaky.close()
    assert listener.receive(0) is None
