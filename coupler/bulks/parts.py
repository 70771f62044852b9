"""What several ranks put into one step of a stream with one writer, and how the step says whose each block is. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from schemas.fields import Block


class Part(NamedTuple):
    """What one rank put into a step.

    Attributes:
        member: Name of the rank in the stream, 63 bits.
        number: Number of what it put, counted by it.
        blocks: Blocks by field name. Empty ones do not travel.
    """

    member: int
    number: int
    blocks: dict[str, Block]


class StepLayout(msgspec.Struct, frozen=True):
    """What a step is, and whose its blocks are; JSON in the stream.

    Attributes:
        number: Number of the step in the stream.
        step: Coupling step.
        time: Simulated time, finite.
        parts: For each rank its name in the stream, and the number of what it put.
        of: By variable, for each rank the index of its block, and that block's offset and shape, which ADIOS2 cannot
            tell of every type; nothing where it put none.
    """

    number: int
    step: int
    time: float
    parts: list[tuple[int, int]]
    of: dict[str, list[list[int]]]

    def add(self, row: int, name: str, block: Block) -> None:
        """Notes that the rank at `row` has put a Block of a variable. Called in the order in which they are put."""
        of = self.of.setdefault(name, [[] for _ in self.parts])
        index = sum(1 for place in of if place)
        of[row] = [index, *(block.offset or (0,) * block.array.ndim), *block.array.shape]

    def block_of(self, row: int, name: str) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
        """Index, offset and shape of a rank's block of a variable; None where it put none."""
        if name not in self.of or not self.of[name][row]:
            return None
        index, *where = self.of[name][row]
        axes = len(where) // 2
        return index, tuple(where[:axes]), tuple(where[axes:])
