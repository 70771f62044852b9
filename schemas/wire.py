"""Messages and Blocks as frames, and back. The only code that knows bytes.

Frame 0 is the message as MessagePack. Then, for each entry of its block table, one raw little-endian C-ordered frame
with the array, and one int64 frame with ids where the entry says so. Nothing is copied when arrays are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import xxhash

from schemas.fields import DTYPES, Block
from schemas.messages import Advice, Ask, BlockEntry, Message, Push

Frame = bytes | memoryview
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
MAX_HEAD_BYTES = 1 << 20
"""Frame 0 may not be larger: it holds no arrays."""


class WireError(ValueError):
    """Bytes that are not a message of ours; the text says what is wrong with them."""


def block_table(blocks: Mapping[str, Block], digest: bool = True) -> tuple[tuple[BlockEntry, ...], list[memoryview]]:
    """Makes the block table and the frames of some Blocks.

    Args:
        blocks: Blocks by field name. A non-contiguous or big-endian array is copied, any other is viewed.
        digest: Whether to compute digests (about 30 GB/s).

    Returns:
        The table, and the frames in table order; they view the arrays, which must not change before they are sent.
    """
    table, frames = [], []
    for name, block in blocks.items():
        array = np.asarray(block.array, order="C")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        parts = [_raw(array)]
        if block.ids is not None:
            parts.append(_raw(np.asarray(block.ids, dtype="<i8", order="C")))
        value = _digest(parts) if digest else 0
        offset = () if block.ids is not None else block.offset
        table.append(BlockEntry(name, array.dtype.str, array.shape, offset, block.ids is not None, value))
        frames += parts
    return tuple(table), frames


def encode(message: Message, frames: Sequence[Frame] = ()) -> list[Frame]:
    """The frames of a message; `frames` are those that `block_table` made for its table."""
    return [_encode(message), *frames]


def decode(frames: Sequence[Frame], max_bytes: int) -> tuple[Message, dict[str, Block]]:
    """Reads a message and its Blocks.

    Args:
        frames: What a Link received. The Blocks view them.
        max_bytes: Largest sum of the array frames that is accepted.

    Returns:
        The message and its Blocks by field name.

    Raises:
        WireError: Not ours, too large, of the wrong shape or damaged. Nothing was allocated in proportion to it.
    """
    if not frames:
        raise WireError("A message without frames.")
    if len(frames[0]) > MAX_HEAD_BYTES:
        raise WireError(f"Frame 0 has {len(frames[0])} bytes; at most {MAX_HEAD_BYTES} are allowed.")
    try:
        message = _decode(frames[0])
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"Frame 0 is not a message of this version: {error}") from error
    table = _table(message)
    expected = sum(2 if entry.has_ids else 1 for entry in table)
    if len(frames) - 1 != expected:
        raise WireError(f"The block table announces {expected} array frames, {len(frames) - 1} came.")
    if sum(len(frame) for frame in frames[1:]) > max_bytes:
        raise WireError(f"The arrays are larger than the {max_bytes} bytes allowed.")
    blocks, rest = {}, iter(frames[1:])
    for entry in table:
        if entry.field in blocks:
            raise WireError(f"Field {entry.field!r} is in the block table twice.")
        blocks[entry.field] = _block(entry, rest)
    return message, blocks


def _table(message: Message) -> tuple[BlockEntry, ...]:
    if isinstance(message, Ask | Push):
        return message.stamp.blocks
    return message.blocks if isinstance(message, Advice) else ()


def _block(entry: BlockEntry, frames: Any) -> Block:
    if entry.dtype not in DTYPES:
        raise WireError(f"Field {entry.field!r} has dtype {entry.dtype!r}; allowed are {', '.join(DTYPES)}.")
    if any(n < 0 for n in entry.shape):
        raise WireError(f"Field {entry.field!r} has the impossible shape {entry.shape}.")
    parts = [next(frames)]
    itemsize = np.dtype(entry.dtype).itemsize
    if len(parts[0]) != math.prod(entry.shape) * itemsize:
        raise WireError(f"Field {entry.field!r}: {len(parts[0])} bytes for shape {entry.shape} of {entry.dtype}.")
    array = np.frombuffer(parts[0], dtype=entry.dtype).reshape(entry.shape)
    ids = None
    if entry.has_ids:
        parts.append(next(frames))
        if not entry.shape or len(parts[1]) != 8 * entry.shape[0]:
            raise WireError(f"Field {entry.field!r}: {len(parts[1])} bytes of ids for shape {entry.shape}.")
        ids = np.frombuffer(parts[1], dtype="<i8")
    if entry.digest and _digest(parts) != entry.digest:
        raise WireError(f"Field {entry.field!r} was damaged on the way: its digest does not fit its bytes.")
    return Block(array, entry.offset, ids)


def _raw(array: np.ndarray[Any, Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _digest(parts: Sequence[Frame]) -> int:
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return int(state.intdigest()) or 1
