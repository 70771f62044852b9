"""Assembly of the Blocks of all ranks into global Snapshots, and back. Pure and bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coupler.distribution import Region
from schemas.fields import Array, Block, FieldSpec, Snapshot, misfit, undeclared


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


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape of a Block of cells, or of a scalar."""


@dataclass(slots=True)
class Layout:
    """Which part of each field a rank owns, as it sent it last: what it gets back of a learned state."""

    boxes: dict[str, Box] = field(default_factory=dict)
    ids: dict[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(slots=True)
class _Partial:
    """A step of which some parts are in.

    Attributes:
        arrays: Where they are put.
        layouts: Layout by rank, in the order in which the parts came.
        withdrawn: Layout by rank of parts that their sender took back, and that may lie over parts of others.
        newest: The part that came last.
    """

    arrays: Mapping[str, Array]
    newest: Snapshot
    layouts: dict[int, Layout] = field(default_factory=dict)
    withdrawn: dict[int, Layout] = field(default_factory=dict)

    def withdraw(self, rank: int) -> None:
        """A rank takes its part back; what others sent before may be overwritten, unless it sends the same again."""
        if rank in self.layouts:
            first = next(iter(self.layouts)) == rank
            layout = self.layouts.pop(rank)
            if not first:
                self.withdrawn.setdefault(rank, layout)

    @property
    def mixed(self) -> str:
        """Why parts that were taken back may show through, as a sentence; empty when they cannot."""
        for rank, old in self.withdrawn.items():
            new = self.layouts[rank]
            if old.boxes != new.boxes or not all(np.array_equal(ids, new.ids[name]) for name, ids in old.ids.items()):
                return f"rank {rank} went back, and sent other cells or particles than before"
        return ""


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
        self._divided = {spec.name: spec for spec in fields if not spec.is_common}
        self._boxes: list[dict[str, Box]] = []  # that were looked at last, and what is wrong with them
        self._wrong = ""
        self._seen = {s.name: np.zeros(s.shape[0], dtype=np.bool_) for s in fields if s.kind == "particle"}

    def add(self, rank: int, part: Snapshot) -> Snapshot | None:
        """Takes one rank's part.

        Args:
            rank: Sender.
            part: Its Blocks; copied, unless they are the whole state already. Those of common fields are rank 0's.

        Returns:
            The global Snapshot once every rank has sent its part of that step, else None. Its arrays are the source's,
            or views of the only rank's Blocks.

        Raises:
            ValueError: A Block does not fit its FieldSpec, a field is missing or was not declared, or all Blocks of a
                step together do not hold every value of a field once (a stale value in a gap, or two ranks that each
                think they own a value, would be wrong silently). The step is given up when the last part came.
        """
        who = f"rank {rank}: " if self._ranks > 1 else ""
        needed = self.fields if rank == 0 else self._divided
        for name, spec in needed.items():
            block = part.blocks.get(name)
            sentence = f"field {name!r} is missing" if block is None else misfit(spec, block)
            if sentence:
                raise ValueError(f"{who}{sentence}")
        if len(part.blocks) != len(needed) and (sentence := undeclared(self.fields, part.blocks)):
            raise ValueError(f"{who}{sentence}")
        if self._ranks == 1 and self._is_whole(part):
            self.layouts = [_layout(part)]
            return part
        for step, other in self._open.items():
            if step >= part.step:  # a rank sends its steps in order: what it sent of later ones is of a branch it left
                other.withdraw(rank)
        partial = self._open.get(part.step)
        if partial is None:
            self._make_room()
            partial = self._open[part.step] = _Partial(self._source.acquire(), part)
        partial.newest = part
        partial.layouts[rank] = _layout(part)
        for name in needed:
            _place(part.blocks[name], partial.arrays[name])
        if len(partial.layouts) < self._ranks:
            return None
        del self._open[part.step]
        layouts = [partial.layouts[rank] for rank in range(self._ranks)]
        if sentence := partial.mixed or self._misjoined(layouts):
            self._source.discard(partial.arrays)
            raise ValueError(sentence)
        self.layouts = layouts
        return whole(partial.newest, partial.arrays)

    def give_up(self, step: int) -> None:
        """Gives up a step that cannot be used, whatever else comes of it."""
        if (partial := self._open.pop(step, None)) is not None:
            self._source.discard(partial.arrays)

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
            elif name in layout.boxes:
                offset, shape = layout.boxes[name]
                blocks[name] = Block(array[Region(offset, shape).window], offset)
            else:  # the same on every rank
                blocks[name] = Block(array, (0,) * array.ndim)
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

    def _misjoined(self, layouts: Sequence[Layout]) -> str:
        """Why parts together do not hold every value once, as a sentence; empty when they do."""
        boxes = [layout.boxes for layout in layouts]
        if boxes != self._boxes:  # on the step path, and a decomposition seldom changes
            self._boxes, self._wrong = boxes, ""
            for name in boxes[0]:
                owned = [own[name] for own in (boxes if name in self._divided else boxes[:1])]
                self._wrong = self._wrong or _untiled(self.fields[name], owned)
        if self._wrong:
            return self._wrong
        for name, seen in self._seen.items():
            ids = [layout.ids[name] for layout in layouts]
            seen[:] = False
            for own in ids:
                seen[own] = True
            # As many ids as particles, and each of them is there: then none is there twice.
            if sum(map(len, ids)) != len(seen) or not seen.all():
                return _unpaired(self.fields[name], ids)
        return ""


def _layout(part: Snapshot) -> Layout:
    layout = Layout()
    for name, block in part.blocks.items():
        if block.ids is None:
            layout.boxes[name] = block.offset, block.array.shape
        else:
            layout.ids[name] = block.ids.copy()
    return layout


def _untiled(spec: FieldSpec, boxes: Sequence[Box]) -> str:
    """Why boxes, by rank, do not hold every cell of a field once, as a sentence; empty when they do."""
    ranks = [rank for rank, (_, shape) in enumerate(boxes) if 0 not in shape]
    begin = np.array([boxes[rank][0] for rank in ranks], np.int64)
    end = begin + np.array([boxes[rank][1] for rank in ranks], np.int64)
    for row in range(len(ranks) - 1):
        meet = ((begin[row] < end[row + 1 :]) & (begin[row + 1 :] < end[row])).all(axis=1)
        if meet.any():
            other = row + 1 + int(meet.argmax())
            cell = tuple(np.maximum(begin[row], begin[other]).tolist())
            return f"ranks {ranks[row]} and {ranks[other]} both hold cell {cell} of field {spec.name!r}"
    return _gap(spec, sum(math.prod(shape) for _, shape in boxes))


def _unpaired(spec: FieldSpec, ids: Sequence[NDArray[np.int64]]) -> str:
    """What is wrong with ids, by rank, of a field that does not have each of them once."""
    counts = np.bincount(np.concatenate(ids), minlength=spec.shape[0])
    if not (counts > 1).any():
        return _gap(spec, sum(map(len, ids)) * math.prod(spec.shape[1:]))
    most = int(counts.argmax())
    ranks = ", ".join(str(rank) for rank, own in enumerate(ids) if most in own)
    return f"id {most} of field {spec.name!r} came {counts[most]} times, from rank {ranks}"


def _gap(spec: FieldSpec, here: int) -> str:
    if here >= math.prod(spec.shape):
        return ""
    return f"the blocks of field {spec.name!r} hold {here} values together; its shape {spec.shape} needs more"


def _place(block: Block, target: Array) -> None:
    if block.ids is not None:
        target[block.ids] = block.array
    else:
        target[Region(block.offset, block.array.shape).window] = block.array


def whole(like: Snapshot, arrays: Mapping[str, Array]) -> Snapshot:
    """A global Snapshot of the same instant as `like` around global arrays."""
    blocks = {name: Block(array, (0,) * array.ndim) for name, array in arrays.items()}
    return Snapshot(like.step, like.time, like.dt, blocks, like.controls_until)
