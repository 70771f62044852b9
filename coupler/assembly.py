"""Assembly of the Blocks of all ranks into global Snapshots, and back. Pure and bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coupler.distribution import Region
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

    def note(self, name: str, block: Block) -> None:
        """Notes where a Block belongs."""
        self.offset[name], self.shape[name] = block.offset, block.array.shape
        if block.ids is not None:
            self.ids[name] = block.ids.copy()

    def count(self, name: str) -> int:
        """Values of a field that the rank owns."""
        return math.prod(self.shape[name])


@dataclass(slots=True)
class _Partial:
    arrays: Mapping[str, Array]
    snapshot: Snapshot
    layouts: dict[int, Layout] = field(default_factory=dict)


class Assembly:
    """Joins what the ranks send for one step. At most `depth` steps are open; the oldest is dropped and counted.

    Attributes:
        layouts: Layout by rank, of the last complete state; particles wander, so layouts of two states do not mix.
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
            part: Its Blocks; copied, unless they are the whole state already.

        Returns:
            The global Snapshot once every rank has sent its part of that step, else None. Its arrays are the source's,
            or views of the only rank's Blocks.

        Raises:
            ValueError: A Block does not fit its FieldSpec, a field is missing, or all Blocks of a step together do not
                fill a field (a stale value in the gap would be wrong silently).
        """
        for name, spec in self.fields.items():
            block = part.blocks.get(name)
            sentence = f"field {name!r} is missing" if block is None else misfit(spec, block)
            if sentence:
                raise ValueError(sentence)
        if self._ranks == 1 and self._is_whole(part):
            self.layouts = [_layout(part)]
            return part
        for step, other in self._open.items():
            if step >= part.step:  # a rank sends its steps in order: what it sent of later ones is of a branch it left
                other.layouts.pop(rank, None)
        partial = self._open.get(part.step)
        if partial is None:
            self._make_room()
            partial = self._open[part.step] = _Partial(self._source.acquire(), part)
        partial.layouts[rank] = _layout(part)
        for name, spec in self.fields.items():
            if spec.kind != "scalar" or rank == 0:
                _place(part.blocks[name], partial.arrays[name])
        if len(partial.layouts) < self._ranks:
            return None
        del self._open[part.step]
        self.layouts = [partial.layouts[rank] for rank in range(self._ranks)]
        if gap := self._gap():
            self._source.discard(partial.arrays)
            raise ValueError(gap)
        return whole(partial.snapshot, partial.arrays)

    def clear(self) -> None:
        """Gives up every open step: the ranks start again, or left the branch that they were on."""
        for partial in self._open.values():
            self._source.discard(partial.arrays)
        self._open.clear()

    def part(self, rank: int, arrays: Mapping[str, Array]) -> dict[str, Block]:
        """The Blocks of a global state that belong to a rank, as it owned them in its last message."""
        layout, blocks = self.layouts[rank], {}
        for name, array in arrays.items():
            if name in layout.ids:
                ids = layout.ids[name]
                blocks[name] = Block(array[ids], (), ids)
            elif name in layout.offset:
                offset = layout.offset[name]
                blocks[name] = Block(array[Region(offset, layout.shape[name]).window], offset)
        return blocks

    def _is_whole(self, part: Snapshot) -> bool:
        return all(
            spec.kind != "particle" and part.blocks[name].array.shape == spec.shape
            for name, spec in self.fields.items()
        )

    def _make_room(self) -> None:
        while len(self._open) >= self._depth:
            self._source.discard(self._open.pop(next(iter(self._open))).arrays)
            self.dropped += 1

    def _gap(self) -> str:
        for name, spec in self.fields.items():
            here = sum(layout.count(name) for layout in self.layouts)
            if spec.kind != "scalar" and here < math.prod(spec.shape):
                return f"the blocks of field {name!r} hold {here} values together; its shape {spec.shape} needs more"
        return ""


def _layout(part: Snapshot) -> Layout:
    layout = Layout()
    for name, block in part.blocks.items():
        layout.note(name, block)
    return layout


def _place(block: Block, target: Array) -> None:
    if block.ids is not None:
        target[block.ids] = block.array
    else:
        target[Region(block.offset, block.array.shape).window] = block.array


def whole(like: Snapshot, arrays: Mapping[str, Array]) -> Snapshot:
    """A global Snapshot of the same instant as `like` around global arrays."""
    blocks = {name: Block(array, (0,) * array.ndim) for name, array in arrays.items()}
    return Snapshot(like.step, like.time, like.dt, blocks, like.controls_until)
