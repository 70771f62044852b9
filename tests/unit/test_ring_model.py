"""The writing side of a ring against a simple model, and its bytes as any other program would read them."""

from __future__ import annotations

import itertools
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coupler.bulks.ring import PAGE, Ring, file_bytes, needed, slot_bytes
from coupler.bulks.shared import RingFile, RingReader
from schemas.fields import Array, Block
from schemas.messages import BlockEntry, Place

CAPACITY = {"u": 256, "x": 512, "none": 0}
SLOTS = 3


def entry(field: str, block: Block, place: Place) -> BlockEntry:
    ids = block.ids is not None
    return BlockEntry(field, block.array.dtype.newbyteorder("<").str, block.array.shape, (), ids, 0, place)


def content(block: Block) -> list[bytes]:
    little = block.array.astype(block.array.dtype.newbyteorder("<"))
    return [little.tobytes(), *([block.ids.tobytes()] if block.ids is not None else [])]


class RingAndReader(RuleBasedStateMachine):
    """Messages under way, arrays that a caller holds (with what it last wrote in them), and a reader of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.file = RingFile(self.folder, "up-0", CAPACITY, SLOTS)
        self.ring = self.file.ring
        self.reader = RingReader(self.folder)
        self.held: list[tuple[str, Array, bytes]] = []
        self.flying: dict[int, list[tuple[BlockEntry, list[bytes]]]] = {}
        self.generations = [0] * SLOTS
        self.keys = itertools.count(1)
        self.values = itertools.count(1)

    def teardown(self) -> None:
        self.held.clear()
        self.file.close()
        assert list(self.folder.iterdir()) == []
        shutil.rmtree(self.folder)

    @rule(field=st.sampled_from(["u", "x", "none"]), how=st.sampled_from(["whole", "view", "view of a view"]))
    def lend(self, field: str, how: str) -> None:
        shape = {"u": (4, 8), "x": (8, 3), "none": (0, 2)}[field]
        array = self.ring.lend(field, shape, "<f8")
        if array is None:
            return
        assert not any(np.shares_memory(array, other) for _, other, _ in self.held)
        array[...] = next(self.values)
        kept = {"whole": array, "view": array[:2], "view of a view": array[:3][:2]}[how]
        self.held.append((field, kept, kept.tobytes()))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        del self.held[which % len(self.held)]

    def block(self, field: str, kind: str) -> Block:
        number = float(next(self.values))
        ids = np.arange(3, dtype=np.int64) + next(self.values) if field == "x" else None
        shape = {"u": (2, 4), "x": (3, 3), "none": (0, 2)}[field]
        array = np.full(shape, number) + np.arange(shape[-1])
        if kind == "big-endian":
            array = array.astype(">f8")
        if kind == "strided":
            array = np.repeat(array, 2, axis=0)[::2]
        return Block(array, (), ids)

    @rule(
        fields=st.sets(st.sampled_from(["u", "x", "none"]), min_size=1),
        kind=st.sampled_from(["plain", "big-endian", "strided", "lent", "lent", "lent, swapped"]),
        fate=st.sampled_from(["sent", "sent", "undo"]),
    )
    def put(self, fields: set[str], kind: str, fate: str) -> None:
        blocks = {field: self.block(field, kind) for field in sorted(fields)}
        for field, array, _ in self.held if kind.startswith("lent") else ():
            if field in blocks:
                rows = array if field != "x" else array[:2]
                ids = np.arange(len(rows), dtype=np.int64) if field == "x" else None
                blocks[field] = Block(rows.view(">f8") if "swapped" in kind else rows, (), ids)
        expected = {field: content(block) for field, block in blocks.items()}
        found = self.ring.put(blocks)
        if found is None:
            return
        slot, places = found
        assert slot not in self.flying
        assert {place.slot for place in places.values()} == {slot}
        if fate == "undo":
            self.ring.undo(slot)
            return
        self.ring.sent(slot, next(self.keys))
        self.flying[slot] = [(entry(f, blocks[f], places[f]), expected[f]) for f in blocks]
        for field, array, _ in list(self.held):  # the ids of a lent array lie behind the rows that were sent
            if field == "x":
                self.held = [(f, a, a.tobytes() if a is array else b) for f, a, b in self.held]

    @rule(back=st.integers(0, 3))
    def free(self, back: int) -> None:
        key = next(self.keys) - back
        sent = {slot: self.ring._keys[slot] for slot in self.flying}
        self.ring.free(key)
        self.flying = {slot: seen for slot, seen in self.flying.items() if (sent[slot] or 0) > key}

    @rule()
    def free_all(self) -> None:
        self.ring.free_all()
        self.flying.clear()

    @invariant()
    def reader_finds_what_was_put(self) -> None:
        for seen in self.flying.values():
            for line, parts in seen:
                assert [bytes(part) for part in self.reader.fetch(line)] == parts

    @invariant()
    def held_arrays_keep_their_values(self) -> None:
        for _, array, values in self.held:
            assert array.tobytes() == values

    @invariant()
    def generations_only_rise(self) -> None:
        now = [abs(int(n)) for n in self.ring._generations]
        assert all(a >= b for a, b in zip(now, self.generations, strict=True))
        self.generations = now
        assert self.ring.in_flight == len(self.flying)


TestRingAndReader = RingAndReader.TestCase
TestRingAndReader.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def ring(slots: int = 2, **capacity: int) -> tuple[Ring, bytearray]:
    memory = bytearray(file_bytes(slots, slot_bytes(capacity)))
    return Ring(memory, "r-1", capacity, slots), memory


def test_bytes_are_as_the_docstring_says() -> None:
    """Read with nothing but `struct`, as a client in another language would."""
    blocks = {"u": Block(np.arange(5.0), (0,)), "x": Block(np.ones((2, 3), ">f4"), (), np.array([7, 9]))}
    made, memory = ring(3, **needed(blocks))
    assert memory[:8] == b"CPLRRING"
    assert struct.unpack_from("<IIQ", memory, 8) == (1, 3, 4096)
    assert memory[24:4096] == bytes(4072)
    made.put({"u": blocks["u"]})
    found = made.put(blocks)
    assert found is not None
    slot, places = found
    assert slot == 1 and places["u"] == Place("shared", "r-1", 1, 1, 64) and places["x"].at == 128
    begin = 4096 + slot * 4096
    assert struct.unpack_from("<q", memory, begin) == (1,)
    assert memory[begin + 8 : begin + 64] == bytes(56)
    assert struct.unpack_from("<5d", memory, begin + 64) == (0, 1, 2, 3, 4)
    assert struct.unpack_from("<6f", memory, begin + 128) == (1,) * 6
    assert struct.unpack_from("<2q", memory, begin + 192) == (7, 9)


def test_generation_is_negative_while_a_slot_is_written() -> None:
    made, memory = ring(1, u=64)
    array = made.lend("u", (8,), "<f8")
    assert array is not None and struct.unpack_from("<q", memory, PAGE) == (-1,)
    made.put({"u": Block(array, (0,))})
    assert struct.unpack_from("<q", memory, PAGE) == (1,)
    made.free_all()
    del array
    assert made.lend("u", (8,), "<f8") is not None
    assert struct.unpack_from("<q", memory, PAGE) == (-2,)


def test_one_slot_lends_each_field_once() -> None:
    made, _ = ring(2, u=64, v=64)
    arrays = [made.lend(field, (8,), "<f8") for field in ("u", "v", "u")]
    assert made.lend("u", (8,), "<f8") is None  # both slots hold one that lives
    assert arrays[2] is not None


def test_a_copy_never_lands_in_an_array_that_is_still_lent() -> None:
    made, _ = ring(2, u=64, v=64)
    first, other = made.lend("u", (8,), "<f8"), made.lend("v", (8,), "<f8")
    assert first is not None and other is not None
    first[...], other[...] = 1.0, 2.0
    assert made.put({"u": Block(np.full(8, 3.0), (0,)), "v": Block(other, (0,))}) is not None
    assert list(first) == [1.0] * 8


def test_lent_array_is_sent_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = ring(2, u=64)
    array = made.lend("u", (8,), "<f8")
    assert array is not None

    def refuse(*_: Any) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(Ring, "_copy", refuse)
    assert made.put({"u": Block(array, (0,))}) is not None
