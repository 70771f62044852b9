"""Whose the blocks of a step are."""

from __future__ import annotations

import msgspec
import numpy as np

from coupler.bulks.parts import StepLayout
from schemas.fields import Block


def test_a_layout_says_where_each_block_lies_after_its_journey() -> None:
    layout = StepLayout(9, 2**40, 0.1, [(2**62, 0), (7, 3), (8, 1)], {})
    layout.add(0, "x", Block(np.zeros((4, 3)), (0, 0)))
    layout.add(2, "x", Block(np.zeros((5, 3)), (4, 0)))
    layout.add(2, "load", Block(np.array(1.0), ()))
    layout.add(1, "v", Block(np.zeros((2, 3)), (), np.arange(2)))
    seen = msgspec.json.decode(msgspec.json.encode(layout), type=StepLayout)
    assert seen == layout and seen.parts[0] == (2**62, 0)
    assert seen.block_of(0, "x") == (0, (0, 0), (4, 3))
    assert seen.block_of(2, "x") == (1, (4, 0), (5, 3))
    assert seen.block_of(2, "load") == (0, (), ())
    assert seen.block_of(1, "v") == (0, (0, 0), (2, 3))
    assert seen.block_of(1, "x") is None and seen.block_of(0, "none") is None
