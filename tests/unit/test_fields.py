"""Fields, Blocks and Snapshots: what fits and what does not."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from schemas import wire
from schemas.fields import Block, FieldSpec, Snapshot, copied, flaw, misfit, with_role

CELLS = FieldSpec("u", "<f8", (4, 6), "m/s")
ATOMS = FieldSpec("r", "<f8", (10, 3), "1", "particle")
NUMBER = FieldSpec("g", "<f8", (), "1", "scalar", "control")


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("spec", "block"),
    [
        (CELLS, Block(np.zeros((4, 6)), (0, 0))),
        (CELLS, Block(np.zeros((2, 3)), (2, 3))),
        (CELLS, Block(np.zeros((0, 6)), (4, 0))),
        (CELLS, Block(np.zeros((4, 6), ">f8"), (0, 0))),
        (CELLS, Block(np.zeros((6, 4)).T, (0, 0))),
        (ATOMS, Block(np.zeros((2, 3)), (), ids(9, 0))),
        (ATOMS, Block(np.zeros((0, 3)), (), ids())),
        (NUMBER, Block(np.array(1.0))),
        (NUMBER, Block(np.float64(1.0))),
        (CELLS, Block(np.zeros((2, 3)), (np.int64(2), np.int32(3)))),
        (CELLS, Block(np.zeros((2, 3)), np.array([2, 3]))),
        (CELLS, Block(np.zeros((2, 3)), [2, 3])),
    ],
)
def test_blocks_that_fit(spec: FieldSpec, block: Block) -> None:
    assert misfit(spec, block) is None


@pytest.mark.parametrize(
    ("spec", "block", "says"),
    [
        (CELLS, Block(np.zeros((4, 6), "<f4"), (0, 0)), "came as <f4"),
        (CELLS, Block(np.zeros((4, 6), object), (0, 0)), "came as"),
        (CELLS, Block(np.zeros(4), (0,)), "shape (4,)"),
        (CELLS, Block(np.zeros((2, 3)), (3, 0)), "does not fit"),
        (CELLS, Block(np.zeros((2, 3)), (-1, 0)), "does not fit"),
        (CELLS, Block(np.zeros((2, 3)), (0,)), "offset of 2 whole numbers"),
        (CELLS, Block(np.zeros((2, 6)), (0, 0), ids(0, 1)), "has no ids"),
        (ATOMS, Block(np.zeros((2, 3)), ()), "one int64 id per row"),
        (ATOMS, Block(np.zeros((2, 3)), (), ids(1)), "one int64 id per row"),
        (ATOMS, Block(np.zeros((2, 3)), (), np.zeros(2)), "one int64 id per row"),
        (ATOMS, Block(np.zeros((2, 2)), (), ids(0, 1)), "does not fit"),
        (ATOMS, Block(np.zeros((2, 3)), (), ids(0, 10)), "outside 0..9"),
        (ATOMS, Block(np.zeros((2, 3)), (), ids(-1, 1)), "outside 0..9"),
        (ATOMS, Block(np.zeros((2, 3)), (), [0, 1]), "one int64 id per row"),
        (NUMBER, Block(np.zeros(1), (0,)), "shape (1,)"),
        (NUMBER, Block(1.0), "needs a NumPy array of <f8, not float"),
        (CELLS, Block([[0.0, 0.0]], (0, 0)), "needs a NumPy array of <f8, not list"),
        (CELLS, Block(np.zeros((2, 3)), (2.0, 3)), "offset of 2 whole numbers, not (2.0, 3)"),
        (CELLS, Block(np.zeros((2, 3)), (2, np.float64(3))), "offset of 2 whole numbers"),
        (CELLS, Block(np.zeros((2, 3)), None), "offset of 2 whole numbers, not None"),
    ],
)
def test_blocks_that_do_not_fit_say_why(spec: FieldSpec, block: Block, says: str) -> None:
    sentence = misfit(spec, block)
    assert sentence is not None and says in sentence and repr(spec.name) in sentence


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ((CELLS, CELLS), "declared twice"),
        ((FieldSpec("a", "|O", (), "1"),), "'|O'"),
        ((FieldSpec("a", ">f8", (), "1"),), "'>f8'"),
        ((FieldSpec("a", "<f8", (-1,), "1"),), "impossible shape"),
        ((FieldSpec("a", "<f8", (1 << 62, 1 << 62), "1"),), "impossible shape"),
        ((FieldSpec("a", "<f8", (), "1", "particle"),), "first axis"),
        ((FieldSpec("a", "<f8", (3,), "1", "cell", "control"),), "a control is a scalar"),
    ],
)
def test_fields_that_cannot_be_declared_say_why(fields: tuple[FieldSpec, ...], says: str) -> None:
    sentence = flaw(fields)
    assert sentence is not None and says in sentence
    assert flaw((CELLS, ATOMS, NUMBER)) is None


@pytest.mark.parametrize("offset", [(np.int64(3), np.int32(0)), np.array([3, 0]), [3, 0], (3, False)])
def test_an_offset_of_any_whole_numbers_is_kept_as_a_tuple_of_int(offset: Any) -> None:
    kept = Block(np.zeros((1, 1)), offset).offset
    assert kept == (3, 0) and type(kept) is tuple and {type(n) for n in kept} == {int}
    table, _ = wire.block_table({"u": Block(np.zeros((1, 1)), offset)})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(table))[0][3] == [3, 0]


def test_a_copied_snapshot_stands_alone() -> None:
    array, own = np.arange(6.0).reshape(2, 3).T, ids(1, 2, 0)
    kept = copied(Snapshot(3, 1.5, 0.5, {"r": Block(array, (), own)}, 9.0))
    array[:], own[:] = -1.0, 7
    assert kept["r"].flags.c_contiguous and kept["r"][0, 0] == 0.0
    assert kept.blocks["r"].ids is not None and list(kept.blocks["r"].ids) == [1, 2, 0]
    assert (kept.step, kept.time, kept.dt, kept.controls_until, kept.nbytes) == (3, 1.5, 0.5, 9.0, 48)


def test_roles_and_sizes() -> None:
    assert with_role((CELLS, NUMBER), "control") == (NUMBER,) and CELLS.nbytes == 192 and NUMBER.nbytes == 8
    assert Snapshot.of(0, 0.0, 1.0, a=2.0, b=[1, 2]).blocks["b"].offset == (0,)
