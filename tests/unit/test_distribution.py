"""Every value goes to exactly one reader."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.distribution import Region, Share, cut
from schemas.fields import FieldSpec

SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.sampled_from(["cell", "particle"]), st.integers(1, 7))
def test_regions_cover_a_field_once(shape: tuple[int, ...], kind: str, readers: int) -> None:
    spec = FieldSpec("f", "<f8", shape, "1", kind)  # type: ignore[arg-type]
    seen = np.zeros(shape, int)
    for reader in range(readers):
        region = Share("blocks", readers, reader).region(spec)
        seen[tuple(slice(o, o + n) for o, n in zip(region.offset, region.shape, strict=True))] += 1
    assert (seen == 1).all()


@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_are_nearly_equal(length: int, parts: int) -> None:
    sizes = [cut(length, parts, index)[1] for index in range(parts)]
    assert sum(sizes) == length and max(sizes) - min(sizes) <= 1


@given(st.integers(0, 50), st.integers(1, 9))
def test_steps_go_round(number: int, readers: int) -> None:
    assert [Share("steps", readers, r).takes(number) for r in range(readers)].count(True) == 1
    assert all(Share("blocks", readers, r).takes(number) for r in range(readers))


def test_what_is_not_cut() -> None:
    scalar = FieldSpec("e", "<f8", (), "J", "scalar", "observable")
    rod = FieldSpec("t", "<f8", (5, 3), "K")
    assert Share("blocks", 4, 2).region(scalar) == Region((), ())
    assert Share("steps", 4, 2).region(rod) == Region((0, 0), (5, 3))


@pytest.mark.parametrize(("how", "readers", "reader"), [("halves", 2, 0), ("steps", 2, 2), ("blocks", 1, -1)])
def test_shares_that_cannot_be(how: str, readers: int, reader: int) -> None:
    with pytest.raises(ValueError, match=how):
        Share(how, readers, reader)  # type: ignore[arg-type]
