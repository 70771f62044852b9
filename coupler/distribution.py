"""Which part of a state each of N readers takes. Pure.

`"steps"`: the readers take whole states in turn, one or several successive ones at a time. `"blocks"`: each takes its
region of every step: cells are cut along their longest axis into nearly equal slabs, particles by ranges of ids.
Scalars go to everybody. Whatever the M writers' decomposition is, every other value goes to exactly one reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from schemas.fields import Block, FieldSpec, Snapshot
from schemas.run import Distribution


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a field.

    Attributes:
        offset: Where it begins in the global array; for particles the first id.
        shape: Its shape; for particles the number of ids, then the shape of a row.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, spec: FieldSpec) -> Region:
        """All of a field."""
        return cls((0,) * len(spec.shape), spec.shape)

    @property
    def window(self) -> tuple[slice, ...]:
        """Where it lies in the global array."""
        return tuple(slice(begin, begin + length) for begin, length in zip(self.offset, self.shape, strict=True))


def cut(length: int, parts: int, index: int) -> tuple[int, int]:
    """Begin and length of one of nearly equal parts; the first ones are longer by one where it does not divide."""
    size, longer = divmod(length, parts)
    return index * size + min(index, longer), size + (index < longer)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several readers takes.

    Attributes:
        distribution: How they share.
        readers: Their number.
        reader: Which one, from 0.
        turn: Successive states that a reader takes at a time, by "steps".
    """

    distribution: Distribution
    readers: int
    reader: int
    turn: int = 1

    def __post_init__(self) -> None:
        if self.distribution not in ("steps", "blocks") or not 0 <= self.reader < self.readers:
            raise ValueError(
                f'reader {self.reader} of {self.readers} by "{self.distribution}" cannot be; readers count from 0, and '
                'share by "steps" or "blocks"'
            )

    def takes(self, number: int) -> bool:
        """Whether this reader takes anything of the step of that number."""
        return self.distribution == "blocks" or number // self.turn % self.readers == self.reader

    def region(self, spec: FieldSpec) -> Region:
        """Its region of a field, in the steps that it takes."""
        lone = spec.is_common or (spec.role != "state" and math.prod(spec.shape) == 1)
        if self.distribution == "steps" or lone:
            return Region.whole(spec)
        axis = 0 if spec.kind == "particle" else max(range(len(spec.shape)), key=lambda a: spec.shape[a])
        begin, length = cut(spec.shape[axis], self.readers, self.reader)
        offset, shape = [0] * len(spec.shape), list(spec.shape)
        offset[axis], shape[axis] = begin, length
        return Region(tuple(offset), tuple(shape))

    def fields(self, fields: Iterable[FieldSpec]) -> tuple[FieldSpec, ...]:
        """Fields as this reader sees them: of the shape of its region.

        Raises:
            ValueError: There are more readers than parts to cut a field into.
        """
        seen = []
        for spec in fields:
            shape = self.region(spec).shape
            if 0 in shape and 0 not in spec.shape:
                raise ValueError(
                    f"{self.readers} ranks cannot share field {spec.name!r} of shape {spec.shape} by blocks: one would "
                    'have nothing of it; use fewer ranks, or distribution = "steps"'
                )
            seen.append(msgspec.structs.replace(spec, shape=shape))
        return tuple(seen)

    def part(self, state: Snapshot, fields: Iterable[FieldSpec]) -> Snapshot:
        """This reader's part of a global state, as a state of `self.fields(fields)`: views of the fields it has."""
        if self.distribution == "steps" or self.readers == 1:
            return state
        blocks = {}
        for spec in fields:
            if spec.name in state.blocks:
                array = state[spec.name][self.region(spec).window]
                blocks[spec.name] = Block(array, (0,) * array.ndim)
        return Snapshot(state.step, state.time, state.dt, blocks, state.controls_until)
