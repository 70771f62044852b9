"""Assembly of the Blocks of all ranks into global Snapshots, and back. Pure and bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array, Block, FieldSpec, Snapshot, misfit


class ArraySource(Protocol):
    """Where the global arrays come from that states are assembled in."""

    def acquire(self) -> Mapping[str, Array]:
        """Arrays by field name for one state."""
        ...

    def discard(self, arrays: Mapping[str, Array]) -> None:
        """Takes arrays back whose state was given up."""
        ...


class FreshArrays:
    """New arrays for every state."""

    def __init__(self, fields: Sequence[FieldSpec]) -> None:
        """Args: fields: Declared fields."""
        self._fields = tuple(fields)

    def acquire(self) -> Mapping[str, Array]:
        """See `ArraySource.acquire`; zeros, so that a gap in a decomposition is at least deterministic."""
        return {spec.name: np.zeros(spec.shape, dtype=spec.dtype) for spec in self._fields}

    def discard(self, arrays: Mapping[str, Array]) -> None:
        """See `ArraySource.discard`."""


@dataclass(slots=True)
class Layout:
    """Which part of each field a rank owns, as it sent it last: what it gets back of a learned state."""

    offset: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ids: dict[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(slots=True)
class _Partial:
    arrays: Mapping[str, Array]
    snapshot: Snapshot
    ranks: set[int] = field(default_factory=set)


class Assembly:
    """Joins what the ranks send for one step. At most `depth` steps are open; an older one is dropped and counted.

    Attributes:
        layouts: Layout by rank.
        dropped: Steps given up because a block never came.
    """

    def __init__(self, fields: Sequence[FieldSpec], ranks: int, source: ArraySource | None = None, depth: int = 4):
        """Makes an empty assembly.

        Args:
            fields: Declared fields.
            ranks: Number of ranks that each step needs.
            source: Where the global arrays come from; new ones for each state when None.
            depth: Steps that may be open at once.
        """
        self.fields = {spec.name: spec for spec in fields}
        self.layouts = [Layout() for _ in range(ranks)]
        self.dropped = 0
        self._ranks, self._depth = ranks, depth
        self._source = source or FreshArrays(fields)
        self._open: dict[int, _Partial] = {}

    def add(self, rank: int, part: Snapshot) -> Snapshot | None:
        """Takes one rank's part.

        Args:
            rank: Sender.
            part: Its Blocks; copied.

        Returns:
            The global Snapshot once every rank has sent its part of that step, else None.

        Raises:
            ValueError: A Block does not fit its FieldSpec, or a field is missing.
        """
        for name, spec in self.fields.items():
            block = part.blocks.get(name)
            sentence = f"field {name!r} is missing" if block is None else misfit(spec, block)
            if sentence:
                raise ValueError(sentence)
        partial = self._open.get(part.step)
        if partial is None:
            self._make_room()
            partial = self._open[part.step] = _Partial(self._source.acquire(), part)
        for name, spec in self.fields.items():
            self._place(rank, spec, part.blocks[name], partial.arrays[name])
        partial.ranks.add(rank)
        if len(partial.ranks) < self._ranks:
            return None
        del self._open[part.step]
        return whole(partial.snapshot, partial.arrays)

    def part(self, rank: int, arrays: Mapping[str, Array]) -> dict[str, Block]:
        """The Blocks of a global state that belong to a rank, as it owned them in its last message."""
        layout, blocks = self.layouts[rank], {}
        for name, array in arrays.items():
            if name in layout.ids:
                ids = layout.ids[name]
                blocks[name] = Block(array[ids], (), ids)
            elif name in layout.offset:
                offset = layout.offset[name]
                window = tuple(slice(o, o + n) for o, n in zip(offset, layout.shape[name], strict=True))
                blocks[name] = Block(array[window], offset)
        return blocks

    def _make_room(self) -> None:
        while len(self._open) >= self._depth:
            self._source.discard(self._open.pop(min(self._open)).arrays)
            self.dropped += 1

    def _place(self, rank: int, spec: FieldSpec, block: Block, target: Array) -> None:
        layout = self.layouts[rank]
        if block.ids is not None:
            if block.ids.size and not (block.ids.min() >= 0 and block.ids.max() < spec.shape[0]):
                raise ValueError(f"field {spec.name!r} came with ids outside 0..{spec.shape[0] - 1}")
            layout.ids[spec.name] = block.ids.copy()
            target[block.ids] = block.array
        elif spec.kind != "scalar" or rank == 0:
            layout.offset[spec.name], layout.shape[spec.name] = block.offset, block.array.shape
            window = tuple(slice(o, o + n) for o, n in zip(block.offset, block.array.shape, strict=True))
            target[window] = block.array
        else:
            layout.offset[spec.name], layout.shape[spec.name] = block.offset, block.array.shape


def whole(like: Snapshot, arrays: Mapping[str, Array]) -> Snapshot:
    """A global Snapshot of the same instant as `like` around global arrays."""
    blocks = {name: Block(array, (0,) * array.ndim) for name, array in arrays.items()}
    return Snapshot(like.step, like.time, like.dt, blocks, like.controls_until)


def blend(
    fields: Sequence[FieldSpec], integrated: Snapshot, learned: Mapping[str, Block], weight: float
) -> dict[str, Block]:
    """Mixes a learned state into an integrated one: weight * learned + (1 - weight) * integrated.

    Fields that declare `blend = "never"` are taken from the learned state whole.

    Args:
        fields: Declared fields.
        integrated: This rank's part of the integrated state, at the same step.
        learned: This rank's Blocks of the learned state.
        weight: In (0, 1].
    """
    linear = {spec.name for spec in fields if spec.blend == "linear"}
    mixed = {}
    for name, block in learned.items():
        if name in linear and weight < 1.0:
            array = weight * np.asarray(block.array, float) + (1.0 - weight) * np.asarray(integrated[name], float)
            mixed[name] = Block(array.astype(block.array.dtype), block.offset, block.ids)
        else:
            mixed[name] = block
    return mixed
