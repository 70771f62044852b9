"""The wire: any Blocks there and back, and whatever else comes is a WireError and nothing else."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
import make as golden

from schemas import messages, wire
from schemas.fields import DTYPES, Block
from schemas.messages import BlockEntry, Message, Push, Refusal, Stamp

HERE = Path(__file__).parents[1] / "golden"
BIG = 1 << 30


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Block]:
    """Blocks of any dtype, shape, order and content (NaN and denormals too), some with ids."""
    made = {}
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        count = int(np.prod(shape)) * dtype.itemsize
        array = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), dtype).reshape(shape)
        if draw(st.booleans()):
            array = np.asfortranarray(array)
        if dtype.itemsize > 1 and draw(st.booleans()):
            array = array.astype(dtype.newbyteorder(">"))
        number = st.integers(-(2**63), 2**63 - 1)
        own = np.array(draw(st.lists(number, min_size=shape[0], max_size=shape[0])), np.int64) if shape else None
        ids = own if draw(st.booleans()) else None
        made[name] = Block(array, () if ids is not None else tuple(draw(st.integers(0, 9)) for _ in shape), ids)
    return made


def framed(parts: dict[str, Block], digest: bool = True) -> list[bytes]:
    table, frames = wire.block_table(parts, digest)
    stamp = Stamp(0, 1, 2, 3, 0.1, 0.2, float("inf"), table)
    return [bytes(frame) for frame in wire.encode(Push(stamp), frames)]


@given(blocks(), st.booleans())
def test_any_blocks_come_back_as_they_left(parts: dict[str, Block], digest: bool) -> None:
    message, back = wire.decode(framed(parts, digest), BIG)
    assert isinstance(message, Push) and list(back) == list(parts)
    for name, block in parts.items():
        assert back[name].array.dtype == block.array.dtype.newbyteorder("<")
        assert back[name].array.shape == block.array.shape and back[name].offset == block.offset
        assert back[name].array.tobytes() == block.array.astype(back[name].array.dtype).tobytes()
        assert (back[name].ids is None) == (block.ids is None)
        assert block.ids is None or np.array_equal(back[name].ids, block.ids)


@given(blocks(), st.data())
def test_any_damage_to_any_frame_is_a_wire_error(parts: dict[str, Block], data: st.DataObject) -> None:
    frames = framed(parts)
    which = data.draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[which])
    damage = data.draw(st.sampled_from(["flip", "cut", "grow", "drop", "double"]))
    if damage == "flip" and frame:
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    elif damage == "cut" and frame:
        del frame[data.draw(st.integers(0, len(frame) - 1)) :]
    elif damage == "grow":
        frame += data.draw(st.binary(min_size=1, max_size=9))
    elif damage == "drop":
        del frames[which]
    else:
        frames.insert(which, frames[which])
    if damage in ("flip", "cut", "grow"):
        if bytes(frame) == frames[which]:
            return
        frames[which] = bytes(frame)
    with pytest.raises(wire.WireError):
        wire.decode(frames, BIG)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=40), max_size=3), st.booleans())
def test_noise_is_a_wire_error(frames: list[bytes], sealed: bool) -> None:
    if frames and sealed:  # so that the noise reaches the decoder
        frames[0] += b"\xcf" + xxhash.xxh3_64_digest(frames[0])
    try:
        message, _ = wire.decode(frames, BIG)
    except wire.WireError:
        return
    assert isinstance(message, messages.Halt | Refusal)  # the only kinds that so little noise can spell


def sealed(head: bytes) -> bytes:
    return head + b"\xcf" + xxhash.xxh3_64_digest(head)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\x92\x03\xa2\xff\xfe",  # a reason that is not UTF-8
        b"\x92\x03\xdb\xff\xff\xff\xff",  # a text of 4 GiB
        b"\xdd\xff\xff\xff\xff\x03",  # four billion fields
        b"\x91" * 100_000,
        b"\x92\x63\xa1a",  # a tag that no message has
        b"\x93\x03\xa1a\xa1b",  # one field too many
        b"\x92\x03\x01",  # a number for a sentence
    ],
)
def test_hostile_heads_are_wire_errors(head: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode([sealed(head)], BIG)


def table(**changes: object) -> tuple[BlockEntry, ...]:
    entry = BlockEntry("u", "<f8", (2,), (0,), False, 0)
    return (msgspec.structs.replace(entry, **changes),)


@pytest.mark.parametrize(
    ("entries", "arrays", "says"),
    [
        (table(dtype="|O"), [b"x" * 16], "'|O'"),
        (table(dtype="<f2"), [b"x" * 4], "'<f2'"),
        (table(dtype="f8,f8"), [b"x" * 32], "'f8,f8'"),
        (table(shape=(-2,)), [b"x" * 16], "impossible shape"),
        (table(shape=(0, 1 << 62, 1 << 62)), [b""], "impossible shape"),
        (table(shape=(0, 1 << 70)), [b""], "Frame 0"),
        (table(shape=(1,) * 70), [b"x" * 8], "impossible shape"),
        (table(shape=(1,) * 33), [b"x" * 8], "impossible shape"),
        (table(shape=(1 << 60,)), [b"x" * 16], "16 bytes"),
        (table(shape=(3,)), [b"x" * 16], "16 bytes"),
        (table(has_ids=True), [b"x" * 16], "announces 2"),
        (table(has_ids=True), [b"x" * 16, b"x" * 8], "8 bytes of ids"),
        (table(has_ids=True, shape=()), [b"x" * 8, b""], "0 bytes of ids"),
        (table() * 2, [b"x" * 16] * 2, "twice"),
        (table(), [b"x" * 16] * 2, "announces 1"),
        ((), [b""], "announces 0"),
        (table(digest=7), [b"x" * 16], "damaged"),
        (table(data=b"x" * 15), [], "15 bytes"),
        (table(data=b"x" * 16), [b"x" * 16], "announces 0"),
        (table(data=b"x" * 16, has_ids=True), [], "without all of its bytes"),
    ],
)
def test_hostile_block_tables_are_wire_errors(entries: tuple[BlockEntry, ...], arrays: list[bytes], says: str) -> None:
    plain = msgspec.to_builtins(Push(Stamp(0, 1, 1, 0, 0.0, 1.0, 1.0, ())))
    plain[1][-1] = [list(msgspec.structs.astuple(entry)) for entry in entries]
    try:
        head = msgpack.packb(plain)
    except OverflowError:
        head = b"\xc1"
    with pytest.raises(wire.WireError, match=says):
        wire.decode([sealed(head), *arrays], BIG)


def test_what_is_too_large_is_refused_before_anything_is_made() -> None:
    frames = framed({"u": Block(np.zeros(1000), (0,))})
    with pytest.raises(wire.WireError, match="larger than the 7999 bytes"):
        wire.decode(frames, 7999)
    with pytest.raises(wire.WireError, match="at most"):
        wire.decode([bytes(wire.MAX_HEAD_BYTES + 1)], BIG)
    bomb = sealed(b"\x92\x03\xdb\x7f\xff\xff\xff" + b"a" * 100)
    tracemalloc.start()
    with pytest.raises(wire.WireError):
        wire.decode([bomb], BIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_contiguous_arrays_are_not_copied() -> None:
    array = np.arange(10.0)
    frame = wire.block_table({"u": Block(array, (0,))})[1][0]
    assert np.shares_memory(np.frombuffer(frame), array)
    back = wire.decode(framed({"u": Block(array, (0,))}), BIG)[1]["u"].array
    assert not back.flags.writeable and not back.flags.owndata


def test_small_arrays_lie_in_frame_0() -> None:
    small, large = Block(np.arange(8.0), (0,)), Block(np.arange(9.0), (0,))
    with_ids = Block(np.arange(2.0), (), np.arange(2))
    assert len(framed({"lift": Block(np.array(1.5)), "probe": small})) == 1
    assert [len(f) for f in framed({"u": large, "lift": Block(np.array(1.5)), "r": with_ids})[1:]] == [72, 16, 16]


def test_digests_can_be_left_out_but_frame_0_is_always_sealed() -> None:
    frames = framed({"u": Block(np.zeros(20), (0,))}, digest=False)
    assert wire.decode([frames[0], b"y" * 160], BIG)[1]["u"].array[0] != 0.0
    with pytest.raises(wire.WireError):
        wire.decode([frames[0][:-1] + b"\0", frames[1]], BIG)


# ---------------------------------------------------------------------------------------------- the golden files


def plain(value: object) -> object:
    """What MessagePack makes of a message: tuples are lists, enumerations numbers."""
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", golden.examples())
def test_golden_files_hold_what_is_sent_today(name: str) -> None:
    message, parts = golden.examples()[name]
    assert (HERE / f"{name}.bin").read_bytes() == golden.packed(golden.frames(message, parts))


@pytest.mark.parametrize("name", golden.examples())
def test_golden_files_read_back_and_agree_with_an_independent_reader(name: str) -> None:
    frames = golden.unpacked((HERE / f"{name}.bin").read_bytes())
    message, back = wire.decode(frames, BIG)
    assert repr(message) == repr(golden.examples()[name][0])  # some hold NaN, which equals nothing
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(frames[0])
    read, seal = list(unpacker)
    assert repr(read) == repr(plain(msgspec.to_builtins(message, builtin_types=(bytes,))))
    assert seal == xxhash.xxh3_64_intdigest(frames[0][:-9])
    for entry in wire._table(message):
        own = frames.pop(1) if entry.data is None else entry.data
        assert back[entry.field].array.tobytes() == own
        assert np.array_equal(golden.BLOCKS[entry.field].array, back[entry.field].array)
        if entry.has_ids:
            assert struct.unpack(f"<{entry.shape[0]}q", frames.pop(1)) == tuple(golden.BLOCKS[entry.field].ids)


def test_every_kind_of_message_has_a_golden_file() -> None:
    kinds = {type(message) for message, _ in golden.examples().values()}
    assert kinds == set(Message.__args__)
    assert {p.stem for p in HERE.glob("*.bin")} == set(golden.examples())
