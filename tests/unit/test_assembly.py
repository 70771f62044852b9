"""Assembly: Blocks of any decomposition join to the global state, in any order, and part again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import MemoryArrays

from coupler import assembly as assembly_module
from coupler.assembly import Assembly
from coupler.blending import blend, unmixable
from schemas.fields import Block, FieldSpec, Kind, Snapshot

FIELDS = (
    FieldSpec("u", "<f8", (7, 5), "m/s"),
    FieldSpec("r", "<f4", (9, 2), "1", "particle", blend="linear"),
    FieldSpec("g", "<f8", (), "1", "scalar"),
)


def cuts(draw: st.DrawFn, n: int, parts: int) -> list[slice]:
    inner = sorted(draw(st.integers(0, n)) for _ in range(parts - 1))
    return [slice(a, b) for a, b in zip([0, *inner], [*inner, n], strict=True)]


def bricks(draw: st.DrawFn, ranks: int) -> list[tuple[slice, slice]]:
    """Irregular slabs, or two columns of irregular slabs."""
    if ranks > 1 and draw(st.booleans()):
        middle, left = draw(st.integers(0, 5)), ranks // 2
        return [(s, slice(0, middle)) for s in cuts(draw, 7, left)] + [
            (s, slice(middle, 5)) for s in cuts(draw, 7, ranks - left)
        ]
    return [(s, slice(0, 5)) for s in cuts(draw, 7, ranks)]


@st.composite
def decomposed(draw: st.DrawFn, steps: int = 3) -> tuple[int, list[Mapping[str, np.ndarray]], list[list[Snapshot]]]:
    """Some global states, each split over ranks anew, particles wandering in between."""
    ranks = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    states, parts = [], []
    for step in range(steps):
        state = {"u": rng.random((7, 5)), "r": rng.random((9, 2)).astype("<f4"), "g": np.array(rng.random())}
        where, order = rng.integers(0, ranks, 9), rng.permutation(9)
        own = []
        for rank, (rows, columns) in enumerate(bricks(draw, ranks)):
            ids = order[where[order] == rank].astype(np.int64)
            blocks = {
                "u": Block(state["u"][rows, columns], (rows.start, columns.start)),
                "r": Block(state["r"][ids], (), ids),
                "g": Block(state["g"] + rank),  # rank 0's value counts
            }
            if rank and draw(st.booleans()):
                del blocks["g"]  # and rank 0 sends it for all
            own.append(Snapshot(step, 0.5 * step, 0.5, blocks))
        states.append(state)
        parts.append(own)
    return ranks, states, parts


@given(decomposed(), st.data())
def test_any_decomposition_in_any_order_of_ranks(
    made: tuple[int, Sequence[Mapping[str, np.ndarray]], Sequence[Sequence[Snapshot]]], data: st.DataObject
) -> None:
    ranks, states, parts = made
    assembly = Assembly(FIELDS, ranks)
    waiting = [list(range(len(states))) for _ in range(ranks)]
    whole = {}
    while any(waiting):  # each rank sends its steps in order; how they interleave is anyone's guess
        rank = data.draw(st.sampled_from([r for r in range(ranks) if waiting[r]]))
        part = parts[waiting[rank].pop(0)][rank]
        if (snapshot := assembly.add(rank, part)) is not None:
            whole[snapshot.step] = snapshot
            back = [assembly.part(r, states[snapshot.step]) for r in range(ranks)]
            for r in range(ranks):
                assert back[r]["g"].array == states[snapshot.step]["g"]
                for name in ("u", "r"):
                    own = parts[snapshot.step][r].blocks[name]
                    assert np.array_equal(back[r][name].array, own.array) and back[r][name].offset == own.offset
                    assert own.ids is None or np.array_equal(back[r][name].ids, own.ids)
    assert sorted(whole) == list(range(len(states))) and assembly.dropped == 0
    for step, snapshot in whole.items():
        assert all(np.array_equal(snapshot[name], states[step][name]) for name in ("u", "r", "g"))
        assert snapshot.time == 0.5 * step


def slab(step: int, rank: int, value: float = 1.0, time: float = 0.0, **changes: Block) -> Snapshot:
    """Half of a state: rows 0 to 3 and ids 0 to 3, or the rest."""
    ids = np.arange(4) if rank == 0 else np.arange(4, 9)
    u, r = Block(np.full((4 - rank, 5), value), (4 * rank, 0)), Block(np.full((len(ids), 2), value, "<f4"), (), ids)
    return Snapshot(step, time, 1.0, {"u": u, "r": r, "g": Block(np.array(0.0))} | changes)


def test_what_never_completes_is_bounded_dropped_and_counted() -> None:
    source = MemoryArrays(FIELDS)
    assembly = Assembly(FIELDS, 2, source, depth=3)
    for step in range(10):
        assert assembly.add(0, slab(step, 0)) is None
    assert (source.out, assembly.dropped) == (3, 7)
    assert assembly.add(1, slab(7, 1)) is not None  # the oldest went, the last three are open
    assembly.clear()
    assert source.out == 1 and assembly.add(1, slab(8, 1)) is None  # the other half of step 8 was given up


def test_a_rank_that_goes_back_takes_back_what_it_sent_of_later_steps() -> None:
    assembly = Assembly(FIELDS, 2)
    assembly.add(0, slab(5, 0, value=-1.0))
    assembly.add(0, slab(3, 0))
    assert assembly.add(1, slab(3, 1)) is not None
    assert assembly.add(1, slab(5, 1)) is None
    done = assembly.add(0, slab(5, 0))
    assert done is not None and (done["u"] == 1.0).all()


def test_sending_twice_counts_once() -> None:
    assembly = Assembly(FIELDS, 2)
    assert assembly.add(0, slab(0, 0, value=-1.0)) is None and assembly.add(0, slab(0, 0)) is None
    done = assembly.add(1, slab(0, 1))
    assert done is not None and (done["u"] == 1.0).all()


def particles(*ids: int) -> Block:
    return Block(np.zeros((len(ids), 2), "<f4"), (), np.array(ids, np.int64))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"u": None}, "'u' is missing"),
        ({"u": Block(np.zeros((7, 6)), (0, 0))}, "does not fit"),
        ({"u": Block(np.zeros((7, 5)), (-1, 0))}, "does not fit"),
        ({"r": particles(*range(1, 10))}, "ids outside"),
        ({"u": Block(np.zeros((6, 5)), (0, 0))}, "'u' hold 30 values"),
        ({"r": particles(*range(8))}, "'r' hold 16 values"),
        ({"r": particles(0, 1, 2, 3, 4, 5, 6, 7, 7)}, "id 7 of field 'r' came 2 times, from rank 0"),
        ({"w": Block(np.zeros(3), (0,))}, "'w' was not declared; declared are 'u', 'r', 'g'"),
    ],
)
def test_what_does_not_fit_or_leaves_a_gap_is_an_error(change: dict[str, Block | None], says: str) -> None:
    source = MemoryArrays(FIELDS)
    whole = {"u": Block(np.zeros((7, 5)), (0, 0)), "r": particles(*range(9)), "g": Block(np.array(0.0))}
    part = Snapshot(0, 0.0, 1.0, {k: b for k, b in (whole | change).items() if b is not None})
    with pytest.raises(ValueError, match=says):
        Assembly(FIELDS, 1, source).add(0, part)
    assert source.out == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"u": Block(np.zeros((3, 5)), (3, 0))}, r"ranks 0 and 1 both hold cell \(3, 0\) of field 'u'"),
        ({"u": Block(np.zeros((4, 5)), (3, 0))}, "both hold cell"),
        ({"u": Block(np.zeros((2, 5)), (5, 0))}, "'u' hold 30 values"),
        ({"r": particles(3, 5, 6, 7, 8)}, "id 3 of field 'r' came 2 times, from rank 0, 1"),
        ({"r": particles(5, 5, 6, 7, 8)}, "id 5 of field 'r' came 2 times, from rank 1"),
        ({"r": particles(5, 6, 7, 8)}, "'r' hold 16 values"),
        ({"r": particles(3, 4, 5, 6, 7, 8)}, "id 3 of field 'r' came 2 times"),
        ({"u": Block(np.zeros((3, 4)), (4, 2))}, "rank 1: field 'u' .* does not fit"),
    ],
)
def test_every_value_comes_once_from_one_rank(change: dict[str, Block], says: str) -> None:
    source = MemoryArrays(FIELDS)
    assembly = Assembly(FIELDS, 2, source)
    for step in range(6):  # right and wrong in turn, so that no verdict outlives what it was about
        assert assembly.add(0, slab(step, 0)) is None
        if step % 3 == 0:
            assert assembly.add(1, slab(step, 1)) is not None
            continue
        with pytest.raises(ValueError, match=says):
            assembly.add(1, slab(step, 1, **change))
        assembly.give_up(step)
        assert source.out == 1 + step // 3  # what was given away whole


def test_a_decomposition_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    whole = assembly_module._untiled

    def counting(spec: FieldSpec, boxes: Sequence[assembly_module.Box]) -> str:
        looked.append(spec.name)
        return whole(spec, boxes)

    monkeypatch.setattr(assembly_module, "_untiled", counting)
    assembly = Assembly(FIELDS, 2)
    for step in range(5):
        assembly.add(0, slab(step, 0))
        assert assembly.add(1, slab(step, 1)) is not None
    assert looked == ["u", "g"]


def test_empty_blocks_lie_over_nobodys() -> None:
    assembly = Assembly(FIELDS, 3)
    assembly.add(0, slab(0, 0))
    assembly.add(2, slab(0, 0, u=Block(np.zeros((0, 5)), (2, 0)), r=particles()))
    assert assembly.add(1, slab(0, 1)) is not None


@pytest.mark.parametrize("kind", ["scalar", "cell"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_scalar_is_rank_0s_and_whole(kind: Kind, ranks: int) -> None:
    """Also a single value that was declared as a cell: every rank has it."""
    fields = (FieldSpec("g", "<f8", () if kind == "cell" else (3,), "1", kind),)
    for length, complete in ((3, True), (2, kind == "cell")):
        assembly = Assembly(fields, ranks)
        for rank in reversed(range(ranks)):
            array = np.full(fields[0].shape and (length,), float(rank))
            part = Snapshot(0, 0.0, 1.0, {"g": Block(array, (0,) * array.ndim)})
            if rank or complete:
                done = assembly.add(rank, part)
            else:
                with pytest.raises(ValueError, match="'g' hold 2 values"):
                    assembly.add(rank, part)
        assert not complete or (done is not None and (done["g"] == 0.0).all())


def test_what_a_rank_took_back_does_not_show_through() -> None:
    """It went back, and owned other particles then: the old ones lie over those of another rank."""
    assembly = Assembly(FIELDS, 3)
    nothing = {"u": Block(np.zeros((0, 5)), (0, 0)), "r": particles()}
    assembly.add(1, slab(5, 1))
    assembly.add(0, slab(5, 0, value=-1.0, r=Block(np.full((4, 2), -1.0, "<f4"), (), np.arange(5, 9))))
    assembly.add(0, slab(5, 0))
    with pytest.raises(ValueError, match="rank 0 went back"):
        assembly.add(2, slab(5, 0, **nothing))
    assembly.add(1, slab(6, 1))
    for value in (-1.0, 1.0):  # of the same cells and particles nothing is left
        assembly.add(0, slab(6, 0, value=value))
    done = assembly.add(2, slab(6, 0, **nothing))
    assert done is not None and (done["u"] == 1.0).all() and (done["r"] == 1.0).all()


def test_a_step_that_everybody_took_back_begins_anew() -> None:
    assembly = Assembly(FIELDS, 2)
    assembly.add(0, slab(5, 0, time=9.0))
    assembly.add(0, slab(5, 0, time=2.0))
    done = assembly.add(1, slab(5, 1, time=2.0))
    assert done is not None and done.time == 2.0


def test_blending_mixes_linear_fields_by_particle_and_takes_the_others_whole() -> None:
    own = Block(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], "<f4"), (), np.array([7, 1, 4]))
    told = Block(np.array([[10.0, 10.0], [30.0, 30.0], [20.0, 20.0]], "<f4"), (), np.array([7, 4, 1]))
    cells = Block(np.ones((7, 5)), (0, 0))
    now = Snapshot(2, 0.0, 1.0, {"r": own, "u": Block(np.zeros((7, 5)), (0, 0))})
    assert unmixable(now, {"r": told, "u": cells}) == ""
    mixed = blend(FIELDS, now, {"r": told, "u": cells}, 0.5)
    assert mixed["r"].array.tolist() == [[5.5, 5.5], [16.5, 16.5], [11.0, 11.0]] and mixed["r"].array.dtype == "<f4"
    assert mixed["r"].ids is told.ids and (mixed["u"].array == 1.0).all()
    assert blend(FIELDS, now, {"r": told}, 1.0)["r"] is told


@pytest.mark.parametrize("ids", [[7, 1, 5], [7, 1]])
def test_particles_that_came_or_went_cannot_be_blended(ids: list[int]) -> None:
    own = Block(np.zeros((len(ids), 2), "<f4"), (), np.array(ids))
    told = {"r": Block(np.zeros((3, 2), "<f4"), (), np.array([7, 4, 1]))}
    assert "'r'" in unmixable(Snapshot(2, 0.0, 1.0, {"r": own}), told)
