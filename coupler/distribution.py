"""Which part of a state each of N readers takes. Pure.

`"steps"`: reader i takes the whole of every step whose number leaves i when divided by N. `"blocks"`: each takes its
region of every step: cells are cut along their longest axis into nearly equal slabs, particles by ranges of ids;
scalars go to everybody. Whatever the M writers' decomposition is, every value goes to exactly one reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.fields import FieldSpec

Distribution = Literal["steps", "blocks"]


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


def cut(length: int, parts: int, index: int) -> tuple[int, int]:
    """Begin and length of one of nearly equal parts; the first ones are longer by one where it does not divide."""
    size, longer = divmod(length, parts)
    return index * size + min(index, longer), size + (index < longer)


def region(spec: FieldSpec, readers: int, reader: int, distribution: Distribution) -> Region:
    """The region of one reader; with `"steps"` all of it, of the steps that are its own (`takes`)."""
    if distribution == "steps" or spec.kind == "scalar" or not spec.shape:
        return Region.whole(spec)
    axis = 0 if spec.kind == "particle" else max(range(len(spec.shape)), key=lambda a: spec.shape[a])
    begin, length = cut(spec.shape[axis], readers, reader)
    offset, shape = [0] * len(spec.shape), list(spec.shape)
    offset[axis], shape[axis] = begin, length
    return Region(tuple(offset), tuple(shape))


def takes(number: int, readers: int, reader: int, distribution: Distribution) -> bool:
    """Whether a reader takes anything of the step of that number."""
    return distribution == "blocks" or number % readers == reader
