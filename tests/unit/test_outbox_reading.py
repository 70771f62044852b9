"""Where Blocks go and why; rings that grow or find no room; and a reader that believes nothing it is told."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.bulks.bulk import Bulk
from coupler.bulks.choice import ADIOS_BYTES, FAR, SMALL_BYTES, BulkRules
from coupler.bulks.outbox import Outbox, Parcel
from coupler.bulks.ring import PAGE
from coupler.bulks.shared import RingReader
from schemas import wire
from schemas.fields import DTYPES, Block
from schemas.messages import BlockEntry, Place, Push, Stamp

AUTO, NONE = BulkRules(), "no adios"
TABLE = [
    (AUTO, SMALL_BYTES, "", NONE, "shared"),
    (AUTO, SMALL_BYTES - 1, "", "", "inline"),
    (AUTO, ADIOS_BYTES, FAR, "", "adios"),
    (AUTO, ADIOS_BYTES - 1, FAR, "", "inline"),
    (AUTO, ADIOS_BYTES, FAR, NONE, "inline"),
    (AUTO, ADIOS_BYTES, "no room", "", "inline"),
    (BulkRules(use="inline"), ADIOS_BYTES, "", "", "inline"),
    (BulkRules(use="shared"), 8, "", NONE, "shared"),
    (BulkRules(use="shared"), ADIOS_BYTES, FAR, "", "inline"),
    (BulkRules(use="adios"), 8, "", "", "adios"),
    (BulkRules(use="adios"), ADIOS_BYTES, "", NONE, "inline"),
    (BulkRules(use="inline", fields={"u": "shared"}), 8, "", NONE, "shared"),
    (BulkRules(use="shared", fields={"v": "inline"}), 8, "", NONE, "shared"),
]


def outbox(folder: Path, slots: int = 3, use: str = "shared") -> Outbox:
    made = Outbox(BulkRules(use=use), folder=folder, stem="up-0", slots=slots)
    made.near = ""
    return made


def cells(count: int, value: float = 1.0) -> dict[str, Block]:
    return {"u": Block(np.full(count, value), (0,))}


def put(made: Outbox, blocks: dict[str, Block], key: int) -> Parcel:
    parcel = made.put(0, 0.0, blocks)
    made.sent(parcel, key)
    return parcel


def read(folder: Path, parcel: Parcel) -> dict[str, Block]:
    """What the other side makes of a message with this parcel."""
    message = Push(Stamp(0, 1, 1, 0, 0.0, 1.0, 0.0, parcel.table))
    bulk = Bulk(Outbox(AUTO), RingReader(folder))
    return wire.decode([*wire.encode(message, parcel.frames)], 1 << 30, bulk.fetch)[1]


def test_ring_grows_and_the_old_one_goes_when_it_was_read(tmp_path: Path) -> None:
    made = outbox(tmp_path)
    first = put(made, cells(1000, 1.0), 1)
    second = put(made, cells(2000, 2.0), 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert read(tmp_path, first)["u"].array[-1] == 1.0 and read(tmp_path, second)["u"].array[-1] == 2.0
    put(made, cells(2400), 3)  # within the room that growth gave it
    assert len(list(tmp_path.iterdir())) == 2
    made.free(1)
    assert len(list(tmp_path.iterdir())) == 1
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_particles_may_become_more(tmp_path: Path) -> None:
    made = outbox(tmp_path)
    for count in (100, 90, 110, 400):
        ids = np.arange(count, dtype=np.int64)
        found = read(tmp_path, put(made, {"x": Block(np.full((count, 3), 0.5), (), ids)}, count))["x"]
        assert found.ids is not None and list(found.ids) == list(ids) and found.array.shape == (count, 3)
        made.free(count)
    assert len(list(tmp_path.iterdir())) == 1
    made.close()


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = outbox(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(2):
        parcel = made.put(0, 0.0, cells(1000))
        assert not parcel.slots and parcel.table[0].place is None and len(parcel.frames) == 1
    assert made.routes["u"].use == "inline"
    assert "No space left on device" in made.routes["u"].why and "bulk.slots" in made.routes["u"].why
    assert list(tmp_path.iterdir()) == []
    made.close()


def test_no_room_to_grow_leaves_what_is_under_way_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = outbox(tmp_path)
    first = put(made, cells(1000, 7.0), 1)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert not put(made, cells(9000), 2).slots
    assert read(tmp_path, first)["u"].array[0] == 7.0
    made.free(1)
    assert list(tmp_path.iterdir()) == []
    made.close()


def test_all_slots_busy(tmp_path: Path) -> None:
    made = outbox(tmp_path, slots=2)
    parcels = [put(made, cells(1000, float(key)), key) for key in (1, 2, 3)]
    assert made.framed == {"u": 1} and not parcels[2].slots
    assert [read(tmp_path, parcel)["u"].array[0] for parcel in parcels] == [1.0, 2.0, 3.0]
    made.free(1)
    assert put(made, cells(1000), 4).slots and made.framed == {"u": 1}
    made.free_all()
    assert made.put(0, 0.0, cells(1000)).slots
    made.close()


def test_undone_slot_is_free_again(tmp_path: Path) -> None:
    made = outbox(tmp_path, slots=1)
    for _ in range(3):
        parcel = made.put(0, 0.0, cells(1000))
        assert parcel.slots
        made.undo(parcel)
    assert not made.framed
    made.close()


def test_lent_array_lies_where_the_reader_looks(tmp_path: Path) -> None:
    made = outbox(tmp_path)
    early = made.lend("u", (1000,), "<f8")  # before the first put there is no ring
    early[...] = 1.0
    parcel = put(made, {"u": Block(early, (0,))}, 1)
    assert read(tmp_path, parcel)["u"].array[0] == 1.0
    array = made.lend("u", (1000,), "<f8")
    array[...] = 2.0
    parcel = put(made, {"u": Block(array, (0,))}, 2)
    array[0] = 3.0  # seen by the reader: nothing was copied
    assert read(tmp_path, parcel)["u"].array[0] == 3.0
    assert made.lend("u", (5000,), "<f8").shape == (5000,)  # larger than a slot: ordinary memory
    made.close()


def test_far_side_gets_frames(tmp_path: Path) -> None:
    made = outbox(tmp_path)
    made.greeted(near=False)
    assert not made.put(0, 0.0, cells(1000)).slots and FAR in made.routes["u"].why
    made.greeted(near=True)  # another server, on this node
    parcel = made.put(0, 0.0, cells(1000))
    assert parcel.slots
    made.close()


@pytest.fixture
def sent(tmp_path: Path) -> tuple[Path, BlockEntry]:
    made = outbox(tmp_path, slots=2)
    return tmp_path, put(made, cells(1000), 1).table[0]


WRONG = {
    "stale generation": ({"generation": 9}, "overwritten"),
    "no generation": ({"slot": 1, "generation": 0}, "holds content"),
    "being written": ({"generation": -1}, "holds content"),
    "unknown name": ({"name": "up-0-ffff"}, "no ring"),
    "path": ({"name": "../x"}, "no name of a ring"),
    "absolute path": ({"name": "/etc/passwd"}, "no name of a ring"),
    "empty name": ({"name": ""}, "no name of a ring"),
    "slot": ({"slot": 2}, "has 2 slots"),
    "negative slot": ({"slot": -1}, "has 2 slots"),
    "offset": ({"at": 1 << 40}, "do not fit"),
    "header": ({"at": 0}, "do not fit"),
    "negative offset": ({"at": -64}, "do not fit"),
    "bulk": ({"bulk": "pigeon"}, "not read here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_place(sent: tuple[Path, BlockEntry], case: str) -> None:
    folder, entry = sent
    change, sentence = WRONG[case]
    assert entry.place is not None
    place = msgspec.structs.replace(entry.place, **change)
    with pytest.raises(wire.BlocksLost, match=sentence) as caught:
        read(folder, Parcel((msgspec.structs.replace(entry, place=place),), []))
    assert isinstance(caught.value.message, Push)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (2**62, 2**62)},
        {"shape": (2**63 - 1,)},
        {"shape": (-1,)},
        {"shape": (1001,) * 3},
        {"shape": (0,) * 40},
        {"shape": (0, 2**62, 2**62)},
        {"dtype": "|O"},
        {"shape": (), "has_ids": True},
        {"shape": (500, 2**40), "has_ids": True},
    ],
)
def test_wrong_entry(sent: tuple[Path, BlockEntry], change: dict[str, object]) -> None:
    folder, entry = sent
    with pytest.raises(wire.BlocksLost, match="Field 'u'"):
        read(folder, Parcel((msgspec.structs.replace(entry, **change),), []))


def test_file_that_is_no_ring(sent: tuple[Path, BlockEntry]) -> None:
    folder, entry = sent
    assert entry.place is not None
    path = folder / entry.place.name
    whole = path.read_bytes()
    for content in (whole[: PAGE + 100], whole[:100], b"", b"NOTARING" + whole[8:], whole[:8] + b"\x09" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(wire.BlocksLost, match="no ring that can be read here"):
            read(folder, Parcel((entry,), []))


def test_ring_that_grew_too_often_for_the_reader_is_mapped_again(tmp_path: Path) -> None:
    made, reader = outbox(tmp_path), RingReader(tmp_path)
    entries = [put(made, cells(1000 * 2**k, float(k)), k + 1).table[0] for k in range(4)]
    for entry, value in (*zip(entries, range(4), strict=True), (entries[0], 0)):
        assert np.frombuffer(reader.fetch(entry)[0])[0] == value
    made.close()


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-2, 5) | st.integers(0, 9000)


@given(
    name=st.sampled_from(["ring", "ring", "ring", "..", "a\0b", "é", "x" * 300]) | st.text(max_size=8),
    place=st.tuples(NUMBERS, NUMBERS | st.just(1), NUMBERS | st.just(64)),
    shape=st.lists(NUMBERS, max_size=40),
    dtype=st.sampled_from([*DTYPES, "|O", "", ">f8"]),
    has_ids=st.booleans(),
)
def test_reader_raises_nothing_but_wire_errors(
    ring: tuple[Path, str], name: str, place: tuple[int, int, int], shape: list[int], dtype: str, has_ids: bool
) -> None:
    folder, real = ring
    found = Place("shared", real if name == "ring" else name, *place)
    entry = BlockEntry("u", dtype, tuple(shape), (), has_ids, 0, found)
    with contextlib.suppress(wire.WireError):
        wire.blocks_of((entry,), [], 1 << 30, RingReader(folder).fetch)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("rings")
    entry = put(outbox(folder, slots=2), cells(1000), 1).table[0]
    assert entry.place is not None
    return folder, entry.place.name
