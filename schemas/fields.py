"""Fields, Blocks and Snapshots: the state of a simulation at one instant, and one rank's part of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Kind = Literal["cell", "particle", "scalar"]
Role = Literal["state", "control", "observable"]
Blend = Literal["linear", "never"]

KINDS: tuple[str, ...] = ("cell", "particle", "scalar")
DTYPES: tuple[str, ...] = ("<f4", "<f8", "<i4", "<i8", "|u1")
MAX_FIELD_BYTES = 1 << 40
"""No global array is larger; a larger shape is a mistake."""


class FieldSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One declared field. Declared once, at the handshake, and the same from then on.

    Attributes:
        name: Identifier, unique in a simulation.
        dtype: Little-endian NumPy type string, one of `DTYPES`.
        shape: Global shape. `()` for a scalar; for particles the first axis is the particle count.
        unit: Unit as text, `"1"` for a dimensionless field. There is no default: nothing physical is assumed.
        kind: `cell` (blocks are placed by offset), `particle` (blocks are placed by id) or `scalar` (the same on
            every rank; rank 0 sends it).
        role: `state` is what a model advances; `control` is imposed from outside, such as an inflow speed;
            `observable` is a scalar series such as lift, forecast for every covered step.
        blend: Whether a hand-over may mix learned and integrated values of this field.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str
    kind: Kind = "cell"
    role: Role = "state"
    blend: Blend = "never"

    @property
    def nbytes(self) -> int:
        """Size of the global array in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_common(self) -> bool:
        """Whether every rank holds the same, so that rank 0 sends it for all."""
        return self.kind == "scalar" or not self.shape


@dataclass(frozen=True, slots=True)
class Block:
    """One rank's part of one field.

    Attributes:
        array: The values, shape `(n0, n1, ...)`, in the unit of the FieldSpec. It may be a view of the solver's own
            memory: whoever keeps it beyond the call copies it.
        offset: Position of `array[0, 0, ...]` in the global array (cells); zeros for scalars. Any sequence of whole
            numbers, NumPy's too; kept as a tuple of int.
        ids: Global int64 ids of the particles in `array`, shape `(n0,)`; None for cells and scalars.
    """

    array: Array
    offset: tuple[int, ...] = ()
    ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        offset = self.offset
        if type(offset) is tuple:
            for number in offset:  # on the step path: `all` takes three times as long
                if type(number) is not int:
                    break
            else:
                return
        object.__setattr__(self, "offset", _whole_numbers(offset))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One instant of a simulation, or one rank's part of it.

    Attributes:
        step: Coupling step, counted from 0 by the simulation.
        time: Simulated time, in the simulation's unit.
        dt: Simulated time that one coupling step advances from here.
        blocks: Blocks by field name.
        controls_until: Simulated time of the next known change of any control; infinity when none is known.
    """

    step: int
    time: float
    dt: float
    blocks: Mapping[str, Block] = field(default_factory=dict)
    controls_until: float = math.inf

    @classmethod
    def of(cls, step: int, time: float, dt: float, controls_until: float = math.inf, **arrays: object) -> Snapshot:
        """Makes a Snapshot that holds whole fields (one rank, zero offsets) from arrays or numbers."""
        blocks = {}
        for name, value in arrays.items():
            array = np.asarray(value)
            blocks[name] = Block(array, (0,) * array.ndim)
        return cls(step, time, dt, blocks, controls_until)

    def __getitem__(self, name: str) -> Array:
        """The array of the named field."""
        return self.blocks[name].array

    @property
    def nbytes(self) -> int:
        """Bytes held by all arrays."""
        return sum(block.array.nbytes for block in self.blocks.values())


def with_role(fields: tuple[FieldSpec, ...], role: Role) -> tuple[FieldSpec, ...]:
    """The fields that play one role, in declared order."""
    return tuple(spec for spec in fields if spec.role == role)


def copied(snapshot: Snapshot) -> Snapshot:
    """The same Snapshot with arrays of its own (C order), for whoever keeps it beyond the call."""
    blocks = {
        name: Block(np.array(b.array, order="C"), b.offset, None if b.ids is None else b.ids.copy())
        for name, b in snapshot.blocks.items()
    }
    return Snapshot(snapshot.step, snapshot.time, snapshot.dt, blocks, snapshot.controls_until)


def misfit(spec: FieldSpec, block: Block) -> str | None:
    """Says in one sentence why a Block does not fit its FieldSpec, or None when it does."""
    array, dtype = block.array, np.dtype(spec.dtype)
    if not isinstance(array, np.ndarray | np.generic):
        return f"field {spec.name!r} needs a NumPy array of {spec.dtype}, not {type(array).__name__}"
    if array.dtype != dtype and array.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        return f"field {spec.name!r} was declared as {spec.dtype} but came as {array.dtype.str}"
    if array.ndim != len(spec.shape):
        return f"field {spec.name!r} was declared with shape {spec.shape} but came with shape {array.shape}"
    if spec.kind == "particle":
        return _particle_misfit(spec, block)
    if block.ids is not None:
        return f"field {spec.name!r} is of kind {spec.kind}, which has no ids, but came with some"
    offset = block.offset
    if type(offset) is not tuple or len(offset) != array.ndim:
        return _misplaced(spec, block)
    for begin, length, total in zip(offset, array.shape, spec.shape, strict=True):
        if type(begin) is not int:
            return _misplaced(spec, block)
        if begin < 0 or begin + length > total:
            return _bounds(spec, array.shape, offset)
    return None


def undeclared(fields: Mapping[str, FieldSpec], blocks: Mapping[str, Block]) -> str | None:
    """Says in one sentence which Block is of no declared field, or None when there is none."""
    strange = [name for name in blocks if name not in fields]
    return f"field {strange[0]!r} was not declared; declared are {', '.join(map(repr, fields))}" if strange else None


def flaw(fields: tuple[FieldSpec, ...]) -> str | None:
    """Says in one sentence why fields cannot be declared like this, or None when they can."""
    names = [spec.name for spec in fields]
    for spec in fields:
        if names.count(spec.name) > 1:
            return f"field {spec.name!r} is declared twice"
        if spec.dtype not in DTYPES:
            return f"field {spec.name!r} has dtype {spec.dtype!r}; allowed are {', '.join(DTYPES)}"
        if any(n < 0 for n in spec.shape) or spec.nbytes > MAX_FIELD_BYTES:
            return f"field {spec.name!r} has the impossible shape {spec.shape}"
        if spec.kind == "particle" and not spec.shape:
            return f"field {spec.name!r} is of kind particle and needs a first axis for them"
        if spec.role == "control" and spec.kind != "scalar":
            return f"control {spec.name!r} is of kind {spec.kind}; a control is a scalar, the same on every rank"
    return None


def _whole_numbers(offset: Iterable[SupportsIndex]) -> Any:
    """An offset as a tuple of int; as it is where it cannot be one, for `misfit` to say so."""
    try:
        return tuple(map(operator.index, offset))
    except TypeError:
        return offset


def _particle_misfit(spec: FieldSpec, block: Block) -> str | None:
    shape, ids = block.array.shape, block.ids
    if not isinstance(ids, np.ndarray) or ids.shape != shape[:1] or ids.dtype != np.int64:
        return f"field {spec.name!r} is of kind particle and needs one int64 id per row of its {shape} array"
    if shape[1:] != spec.shape[1:]:
        return _bounds(spec, shape)
    if ids.size and not (ids.min() >= 0 and ids.max() < spec.shape[0]):
        return f"field {spec.name!r} came with ids outside 0..{spec.shape[0] - 1}"
    return None


def _misplaced(spec: FieldSpec, block: Block) -> str:
    return f"field {spec.name!r} needs an offset of {block.array.ndim} whole numbers, not {block.offset}"


def _bounds(spec: FieldSpec, shape: tuple[int, ...], offset: tuple[int, ...] = ()) -> str:
    where = f" at offset {offset}" if offset else ""
    return f"field {spec.name!r} has global shape {spec.shape}; a block of shape {shape}{where} does not fit in it"
