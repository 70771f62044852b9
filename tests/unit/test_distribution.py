"""Every value goes to exactly one reader."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.distribution import Region, Share, cut
from schemas.fields import FieldSpec, Snapshot

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


def test_turns_of_several_states() -> None:
    shares = [Share("steps", 2, reader, turn=3) for reader in (0, 1)]
    assert [shares[1].takes(n) for n in range(8)] == [False] * 3 + [True] * 3 + [False] * 2
    assert all(shares[0].takes(n) != shares[1].takes(n) for n in range(50))


@given(SHAPES, st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_a_reader_sees_its_fields(shape: tuple[int, ...], readers: int, seed: int) -> None:
    spec = FieldSpec("f", "<f8", shape, "1")
    state = Snapshot.of(3, 0.3, 0.1, controls_until=9.0, f=np.random.default_rng(seed).normal(size=shape))
    for reader in range(readers):
        share = Share("blocks", readers, reader)
        part = share.part(state, (spec,))
        assert part["f"].shape == share.region(spec).shape and np.shares_memory(part["f"], state["f"]) == (
            part["f"].size > 0
        )
        assert (part.step, part.time, part.dt, part.controls_until) == (3, 0.3, 0.1, 9.0)
        if part["f"].size or not state["f"].size:
            assert share.fields((spec,))[0].shape == part["f"].shape
        else:
            with pytest.raises(ValueError, match="cannot share field 'f'"):
                share.fields((spec,))


def test_what_is_one_value_goes_to_everybody() -> None:
    lone = FieldSpec("e", "<f8", (1,), "J", role="observable")
    assert all(Share("blocks", 3, reader).region(lone) == Region((0,), (1,)) for reader in range(3))
