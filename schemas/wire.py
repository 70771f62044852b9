"""Messages and Blocks as frames, and back. The only code that knows bytes.

Frame 0 is the message as MessagePack, followed by the xxh3-64 of its bytes as a MessagePack integer (always 9 bytes:
0xcf and the value, big-endian). Then, for each entry of its block table, one raw little-endian C-ordered frame with the
array, and one int64 frame with ids where the entry says so. Nothing is copied when arrays are contiguous. An entry has
no frames if its array is small and lies in the entry itself, or if it has a place: then its bytes lie in a slot of
shared memory or in a stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import xxhash

from schemas.fields import DTYPES, Block
from schemas.messages import Advice, Ask, BlockEntry, Message, Place, Push

Frame = bytes | memoryview
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
MAX_HEAD_BYTES = 1 << 20
"""Frame 0 may not be larger: it holds no arrays."""
MAX_AXES = 32
DATA_BYTES = 64
"""An array of at most so many bytes lies in frame 0: a frame of its own costs each side several microseconds."""
SEAL_BYTES = 9
"""Bytes of the digest at the end of frame 0."""
_DTYPES = {name: np.dtype(name) for name in DTYPES}


class WireError(ValueError):
    """Bytes that are not a message of ours; the text says what is wrong with them."""


class BlocksLost(WireError):
    """A message of ours whose Blocks are damaged or gone.

    Attributes:
        message: The message.
    """

    def __init__(self, text: str, message: Message) -> None:
        """Args: text: What is wrong. message: See the attribute."""
        super().__init__(text)
        self.message = message


def block_table(blocks: Mapping[str, Block], digest: bool = True) -> tuple[tuple[BlockEntry, ...], list[memoryview]]:
    """Makes the block table and the frames of some Blocks.

    Args:
        blocks: Blocks by field name. A non-contiguous or big-endian array is copied, any other is viewed.
        digest: Whether to compute digests (about 30 GB/s).

    Returns:
        The table, with the small arrays, and the frames of the others in its order. They view the arrays, which must
        not change before they are sent.
    """
    table, frames = [], []
    for name, block in blocks.items():
        array = np.asarray(block.array, order="C")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        if 0 < array.nbytes <= DATA_BYTES and block.ids is None:
            data = array.tobytes()
            table.append(BlockEntry(name, array.dtype.str, array.shape, block.offset, False, 0, None, data))
            continue
        parts = [raw(array)]
        if block.ids is not None:
            parts.append(raw(np.asarray(block.ids, dtype="<i8", order="C")))
        value = _digest(parts) if digest else 0
        offset = () if block.ids is not None else block.offset
        table.append(BlockEntry(name, array.dtype.str, array.shape, offset, block.ids is not None, value))
        frames += parts
    return tuple(table), frames


def entry(name: str, block: Block, place: Place) -> BlockEntry:
    """The line of the table for a Block that lies in a place. There is no digest: nothing carries it anywhere."""
    array, has_ids = block.array, block.ids is not None
    offset = () if has_ids else block.offset
    return BlockEntry(name, array.dtype.newbyteorder("<").str, array.shape, offset, has_ids, 0, place)


def encode(message: Message, frames: Sequence[Frame] = ()) -> list[Frame]:
    """The frames of a message; `frames` are those that `block_table` made for its table."""
    head = _encode(message)
    return [head + _seal(head), *frames]


def decode(
    frames: Sequence[Frame], max_bytes: int, fetch: Callable[[BlockEntry], Sequence[Frame]] | None = None
) -> tuple[Message, dict[str, Block]]:
    """Reads a message and its Blocks.

    Args:
        frames: What a Link received. The Blocks view them.
        max_bytes: Largest sum of the array frames that is accepted.
        fetch: Gives the bytes (and those of the ids) of an entry whose Block lies elsewhere, or raises WireError.

    Returns:
        The message and its Blocks by field name.

    Raises:
        BlocksLost: The message is whole, but its Blocks cannot be had.
        WireError: Not ours, too large, of the wrong shape or damaged. Nothing was allocated in proportion to it.
    """
    if not frames:
        raise WireError("A message without frames.")
    if len(frames[0]) > MAX_HEAD_BYTES:
        raise WireError(f"Frame 0 has {len(frames[0])} bytes; at most {MAX_HEAD_BYTES} are allowed.")
    head = memoryview(frames[0])
    if head[-SEAL_BYTES:] != _seal(head[:-SEAL_BYTES]):
        raise WireError("Frame 0 was damaged on the way, or is none of ours: its digest does not fit its bytes.")
    try:
        message = _decode(head[:-SEAL_BYTES])
    except (ValueError, OverflowError, RecursionError) as error:  # msgspec lets UnicodeDecodeError through
        raise WireError(f"Frame 0 is not a message of this version: {error}") from error
    try:
        return message, blocks_of(_table(message), frames[1:], max_bytes, fetch)
    except WireError as error:
        raise BlocksLost(str(error), message) from error


def blocks_of(
    table: tuple[BlockEntry, ...],
    frames: Sequence[Frame] = (),
    max_bytes: int = 0,
    fetch: Callable[[BlockEntry], Sequence[Frame]] | None = None,
) -> dict[str, Block]:
    """The Blocks of a table; see `decode`.

    Raises:
        WireError: They cannot be had.
    """
    expected = sum([1 + entry.has_ids for entry in table if entry.place is None and entry.data is None])
    if len(frames) != expected:
        raise WireError(f"The block table announces {expected} array frames, {len(frames)} came.")
    if sum(map(len, frames)) > max_bytes:
        raise WireError(f"The arrays are larger than the {max_bytes} bytes allowed.")
    blocks: dict[str, Block] = {}
    rest = iter(frames)
    for entry in table:
        if entry.field in blocks:
            raise WireError(f"Field {entry.field!r} is in the block table twice.")
        if entry.data is not None:
            blocks[entry.field] = _block(entry, iter((entry.data,)))
        elif entry.place is None:
            blocks[entry.field] = _block(entry, rest)
        elif fetch is None:
            raise WireError(f"Field {entry.field!r} lies in {entry.place.name!r}, which cannot be read here.")
        else:
            blocks[entry.field] = _block(entry, iter(fetch(entry)))
    return blocks


def _table(message: Message) -> tuple[BlockEntry, ...]:
    if isinstance(message, (Ask, Push)):
        return message.stamp.blocks
    return message.blocks if isinstance(message, Advice) else ()


def _block(entry: BlockEntry, frames: Iterator[Frame]) -> Block:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise WireError(f"Field {entry.field!r} has dtype {entry.dtype!r}; allowed are {', '.join(DTYPES)}.")
    if len(entry.shape) > MAX_AXES or min(entry.shape, default=0) < 0:
        raise WireError(f"Field {entry.field!r} has the impossible shape {entry.shape}.")
    parts = [_next(entry, frames)]
    if len(parts[0]) != math.prod(entry.shape) * dtype.itemsize:
        raise WireError(f"Field {entry.field!r}: {len(parts[0])} bytes for shape {entry.shape} of {entry.dtype}.")
    try:
        array = np.frombuffer(parts[0], dtype).reshape(entry.shape)
    except (ValueError, OverflowError) as error:  # too many axes, or an axis no array can have beside one of length 0
        raise WireError(f"Field {entry.field!r} has the impossible shape {entry.shape}.") from error
    ids = None
    if entry.has_ids:
        parts.append(_next(entry, frames))
        if not entry.shape or len(parts[1]) != 8 * entry.shape[0]:
            raise WireError(f"Field {entry.field!r}: {len(parts[1])} bytes of ids for shape {entry.shape}.")
        ids = np.frombuffer(parts[1], dtype="<i8")
    if entry.digest and _digest(parts) != entry.digest:
        raise WireError(f"Field {entry.field!r} was damaged on the way: its digest does not fit its bytes.")
    return Block(array, entry.offset, ids)


def _next(entry: BlockEntry, frames: Iterator[Frame]) -> Frame:
    frame = next(frames, None)
    if frame is None:
        raise WireError(f"Field {entry.field!r} came without all of its bytes.")
    return frame


def raw(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a C-ordered array."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _seal(head: Frame) -> bytes:
    return b"\xcf" + xxhash.xxh3_64_digest(head)  # canonical xxHash digests are big-endian, as MessagePack is


def _digest(parts: Sequence[Frame]) -> int:
    if len(parts) == 1:
        return int(xxhash.xxh3_64_intdigest(parts[0])) or 1
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return int(state.intdigest()) or 1
