"""Rings: what a message names is what was put, until it is freed; nothing that somebody still uses is written again."""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coupler.bulks import shared
from coupler.bulks.ring import PAGE, SLOT_HEADER, needed
from coupler.bulks.shared import RingFile, RingReader
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Block
from schemas.messages import BlockEntry, Place
from schemas.wire import WireError

SLOTS = 5
CAPACITY = {"x": 128, "p": 64 + 64, "none": 0}


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[RingFile]:
    file = RingFile(tmp_path, "rank-0", CAPACITY, SLOTS)
    yield file
    file.close()
    del file.ring  # pytest keeps the file until all is torn down


def blocks(value: float, count: int = 3) -> dict[str, Block]:
    """A strided array, big-endian particles with ids, and nothing."""
    x = np.full((16, 2), value)[::2, :1]
    ids = np.arange(count, dtype=np.int64) + int(value)
    return {"x": Block(x, (0, 0)), "p": Block(ids.astype(">f4"), (), ids), "none": Block(np.empty((0, 3)), (0, 0))}


def table(content: dict[str, Block], places: dict[str, Place]) -> tuple[BlockEntry, ...]:
    return tuple(wire.entry(name, content[name], place) for name, place in places.items())


def same(found: dict[str, Block], expected: dict[str, Block]) -> bool:
    return all(
        np.array_equal(found[name].array, block.array)
        and (block.ids is None or np.array_equal(found[name].ids, block.ids))  # type: ignore[arg-type]
        for name, block in expected.items()
    )


def test_what_is_put_is_read(ring: RingFile, tmp_path: Path) -> None:
    reader = RingReader(tmp_path)
    for turn in range(3 * SLOTS):
        content = blocks(float(turn), turn % 4)
        found = ring.ring.put(content)
        assert found is not None
        ring.ring.sent(found[0], turn)
        read = wire.blocks_of(table(content, found[1]), fetch=reader.fetch)
        assert same(read, content) and read["x"].array.dtype == "<f8" and not read["x"].array.flags.writeable
        ring.ring.free(turn)


def test_the_file_is_as_the_page_says(ring: RingFile) -> None:
    found = ring.ring.put(blocks(7.0))
    assert found is not None
    slot, places = found
    memory = ring.path.read_bytes()
    magic, version, slots, size = struct.unpack_from("<8sIIQ", memory)
    assert (magic, version, slots, size % PAGE, len(memory)) == (b"CPLRRING", 1, SLOTS, 0, PAGE + SLOTS * size)
    begin = PAGE + slot * size
    assert struct.unpack_from("<q", memory, begin) == (1,) and not any(memory[begin + 8 : begin + SLOT_HEADER])
    assert struct.unpack_from("<8d", memory, begin + places["x"].at) == (7.0,) * 8
    assert struct.unpack_from("<3f", memory, begin + places["p"].at) == (7.0, 8.0, 9.0)
    assert struct.unpack_from("<3q", memory, begin + places["p"].at + 64) == (7, 8, 9)
    ring.ring.undo(slot)
    lent = ring.ring.lend("x", (8, 1), "<f8")
    assert lent is not None
    assert sum(struct.unpack_from("<q", ring.path.read_bytes(), PAGE + s * size)[0] < 0 for s in range(SLOTS)) == 1


def test_what_was_overwritten_is_refused(ring: RingFile, tmp_path: Path) -> None:
    reader, old = RingReader(tmp_path), blocks(1.0)
    first = ring.ring.put(old)
    assert first is not None
    ring.ring.free_all()
    for turn in range(SLOTS):
        assert ring.ring.put(blocks(2.0 + turn)) is not None
    with pytest.raises(WireError, match="holds content 2, not 1"):
        wire.blocks_of(table(old, first[1]), fetch=reader.fetch)


def test_full_means_none_and_freeing_goes_by_key(ring: RingFile) -> None:
    for key in range(SLOTS):
        found = ring.ring.put(blocks(float(key)))
        assert found is not None
        ring.ring.sent(found[0], key)
    assert ring.ring.put(blocks(9.0)) is None and ring.ring.lend("x", (8, 1), "<f8") is None
    ring.ring.free(1)
    assert ring.ring.in_flight == SLOTS - 2
    taken = [ring.ring.put(blocks(0.0)) for _ in range(3)]
    assert [found is not None for found in taken] == [True, True, False]


def test_a_lent_array_is_not_copied_and_keeps_its_slot(ring: RingFile, tmp_path: Path) -> None:
    lent = ring.ring.lend("x", (8, 1), "<f8")
    other = ring.ring.lend("x", (8, 1), "<f8")  # another slot
    assert lent is not None and other is not None
    lent[:], other[:] = 3.0, 5.0
    found = ring.ring.put({"x": Block(lent, (0, 0))})
    assert found is not None
    slot, places = found
    lent[0] = 4.0  # the reader sees it: there is one array
    read = wire.blocks_of(table({"x": Block(lent, (0, 0))}, places), fetch=RingReader(tmp_path).fetch)
    assert read["x"].array[0] == 4.0
    ring.ring.sent(slot, 1)
    ring.ring.free(1)
    view = lent[2:][::2]
    del lent, read, other
    used = [ring.ring.put(blocks(0.0)) for _ in range(SLOTS)]
    assert [found is None for found in used] == [False] * (SLOTS - 1) + [True]  # the view of a view holds it
    assert (view == 3.0).all()
    del view
    gc.collect()
    assert ring.ring.put(blocks(0.0)) is not None


def test_fields_are_lent_in_one_slot_and_the_rest_joins_them(ring: RingFile) -> None:
    x, p = ring.ring.lend("x", (8, 1), "<f8"), ring.ring.lend("p", (3,), "<f4")
    assert x is not None and p is not None
    ids = np.arange(3, dtype=np.int64)
    found = ring.ring.put({"x": Block(x, (0, 0)), "p": Block(p, (), ids), "none": Block(np.empty((0, 3)), (0, 0))})
    assert found is not None and len({place.slot for place in found[1].values()}) == 1
    shown_again = ring.ring.put({"x": Block(x, (0, 0))})  # was sent: it is an array like any other now
    assert shown_again is not None and shown_again[0] != found[0]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "lend", "drop", "put lent", "undo", "free", "free all"]), st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_nothing_in_use_is_ever_written(tmp_path: Path, operations: list[tuple[str, int]]) -> None:
    file, reader = RingFile(tmp_path, "model", CAPACITY, SLOTS), RingReader(tmp_path)
    ring, key = file.ring, 0
    flying: dict[int, tuple[dict[str, Block], Any]] = {}
    lent: list[tuple[Any, float]] = []
    for number, (what, which) in enumerate(operations):
        value = float(number + 1)
        if what == "lend" and (array := ring.lend("x", (8, 1), "<f8")) is not None:
            array[:] = value
            lent.append((array, value))
        elif what == "drop" and lent:
            lent.pop(which % len(lent))
        elif what in ("put", "put lent", "undo"):
            content = blocks(value)
            if what == "put lent" and lent:
                array, held = lent[-1]
                content = {"x": Block(array, (0, 0))}
                assert (array == held).all()
            found = ring.put(content)
            if found is not None and what == "undo":
                ring.undo(found[0])
            elif found is not None:
                key += 1
                ring.sent(found[0], key)
                flying[key] = ({n: Block(np.array(b.array), b.offset, b.ids) for n, b in content.items()}, found[1])
        elif what == "free":
            ring.free(key - which)
            flying = {k: f for k, f in flying.items() if k > key - which}
        elif what == "free all":
            ring.free_all()
            flying.clear()
        for content, places in flying.values():
            assert same(wire.blocks_of(table(content, places), fetch=reader.fetch), content)
        assert all((array == held).all() for array, held in lent)
    file.close()


PLACES = st.builds(
    Place,
    st.just("shared"),
    st.sampled_from(["", "../x", "missing", "token", "a/b", "real"]),
    st.integers(-(2**40), 2**40) | st.integers(0, SLOTS),
    st.integers(-2, 3),
    st.integers(-(2**40), 2**70) | st.integers(0, 4096),
)
SHAPES = st.lists(st.integers(-1, 2**40) | st.integers(0, 9), max_size=4).map(tuple)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, SHAPES, st.sampled_from(["<f8", "|u1", "O", "<f16"]), st.booleans())
def test_whatever_a_message_names_only_a_sentence_comes_out(
    ring: RingFile, tmp_path: Path, place: Place, shape: tuple[int, ...], dtype: str, has_ids: bool
) -> None:
    (tmp_path / "token").write_text("x" * 32)
    if place.name == "real":
        place = Place("shared", ring.path.name, place.slot, place.generation, place.at)
    entry = BlockEntry("x", dtype, shape, (), has_ids, 0, place)
    with suppress(WireError):
        wire.blocks_of((entry,), fetch=RingReader(tmp_path).fetch)


@pytest.mark.parametrize("damage", ["cut", "magic", "slots"])
def test_a_file_that_is_no_ring_is_refused(ring: RingFile, tmp_path: Path, damage: str) -> None:
    content = blocks(1.0)
    found = ring.ring.put(content)
    assert found is not None
    memory = bytearray(ring.path.read_bytes())
    if damage == "cut":
        del memory[-PAGE:]
    else:
        memory[0 if damage == "magic" else 12] ^= 1
    name = "rank-0-damaged"
    (tmp_path / name).write_bytes(memory)
    places = {field: Place("shared", name, p.slot, p.generation, p.at) for field, p in found[1].items()}
    with pytest.raises(WireError, match="no ring that can be read here"):
        wire.blocks_of(table(content, places), fetch=RingReader(tmp_path).fetch)


def test_no_room_is_said_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.os, "posix_fallocate", full)
    with pytest.raises(LinkError, match=r"need 0 MiB of shared memory .* MiB free .*lower bulk.slots"):
        RingFile(tmp_path, "rank-0", CAPACITY, SLOTS)
    assert not list(tmp_path.iterdir())


def test_needed_counts_ids_and_alignment() -> None:
    assert needed(blocks(1.0, 9)) == {"x": 64, "p": 64 + 128, "none": 0}
