"""The public check of a Simulation: measures that it keeps what `coupler.contracts.Simulation` promises.

Needs no test framework: call `check_simulation(make)` from any test. A broken promise raises AssertionError with a full
sentence. Every part fails on a Simulation that was broken on purpose; the tests of this module show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Invariant, Simulation
from coupler.ranks import Ranks
from schemas.fields import DTYPES, KINDS, Array, Block, FieldSpec, Snapshot, copied, misfit, with_role

ROUNDING = 1e-5
"""What an adopted field may differ from what was given, over its scale, where a Simulation rebuilds it (rounding)."""

Fields = tuple[FieldSpec, ...]


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What `check_simulation` measured.

    Attributes:
        fields: The declared fields.
        defects: By state field, the rms difference between one direct step and the same step after
            `adopt(snapshot())`, over the largest rms value of that field seen during the check.
        drifts: By invariant, the change of its global value over `steps` direct steps.
        unmoved: State fields that did not change during the check, so that whether `adopt` takes them over could not
            be seen; make another start or more steps to be sure.
    """

    fields: Fields
    defects: Mapping[str, float]
    drifts: Mapping[str, float]
    unmoved: tuple[str, ...]

    @property
    def defect(self) -> float:
        """The largest one-step defect of any state field; 0 when there is none."""
        return max(self.defects.values(), default=0.0)


def require(holds: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence unless it holds; unlike `assert` also under `python -O`."""
    if not holds:
        raise AssertionError(sentence)


def check_simulation(
    make: Callable[[], Simulation],
    *,
    steps: int = 3,
    allowed_defect: float = 0.0,
    allowed_return: float = 0.0,
    other_dt: float | None = None,
    ranks: Ranks | None = None,
) -> SimulationReport:
    """Checks a Simulation against its contract; integrates about 15 times `steps` coupling steps.

    Args:
        make: Makes a fresh Simulation; called three times, and expected to make the same one each time (same seed).
        steps: Coupling steps between the saved states that are compared, at least 1. Enough for the fields to change.
        allowed_defect: Largest one-step defect of `adopt(snapshot())` (see `SimulationReport.defects`) that counts as
            correct. 0 demands that it is bitwise invisible; more is for a Simulation that rebuilds hidden state.
        allowed_return: Largest difference, over the rms value of a field, between what follows a restored state and
            what followed it the first time. 0 demands that they are bitwise the same; more is for a Simulation that
            rebuilds something, such as neighbour lists. The restored instant itself is always compared bitwise.
        other_dt: Another dt that the Simulation can integrate with, to see that it does and that `adopt` sets dt; None
            for a Simulation with a fixed dt.
        ranks: The ranks of the Simulation, when it has several; all of them call this function. Run it with
            `mpiexec ... python -m mpi4py`, which ends all ranks when one raises.

    Returns:
        What was measured.

    Raises:
        AssertionError: When the Simulation breaks its contract.
        ValueError: When `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; the check needs at least 1 to see the state change")
    ranks = ranks or Ranks()
    simulation = make()
    require(isinstance(simulation, Simulation), f"{type(simulation).__name__} lacks a method of Simulation")
    fields = tuple(simulation.fields())
    _check_fields(fields)
    _check_cover(fields, _look(simulation, fields), ranks)
    _check_saving(simulation, fields, steps, allowed_return, ranks)
    drifts = _check_invariants(simulation, steps, ranks)
    defects = _check_defect(simulation, fields, steps, ranks)
    worst = max(defects, key=lambda name: defects[name], default="")
    require(
        not defects or defects[worst] <= allowed_defect,
        f"one step after adopt(snapshot()) the field {worst!r} is off by {defects.get(worst)} of its rms value, "
        f"allowed is {allowed_defect}; declare what is missing as a state field, or state the defect of rebuilding it",
    )
    unmoved = _check_adopt(simulation, fields, steps, max(allowed_defect, ROUNDING), other_dt, ranks)
    _check_undisturbed(make, fields, steps)
    return SimulationReport(fields, defects, drifts, unmoved)


def difference(first: Snapshot, second: Snapshot) -> str | None:
    """Says in one clause where two Snapshots first differ in any bit, or None when they are the same."""
    for what in ("step", "time", "dt", "controls_until"):
        a, b = getattr(first, what), getattr(second, what)
        if a != b:
            return f"{what} is {b} instead of {a}"
    for name, block in first.blocks.items():
        other = second.blocks.get(name)
        if other is None:
            return f"the field {name!r} is missing"
        if other.array.tobytes() != block.array.tobytes():
            return f"the field {name!r} has other values"
        if (other.offset, other.array.shape) != (block.offset, block.array.shape):
            return f"the field {name!r} lies elsewhere"
        if (other.ids is None) != (block.ids is None) or not np.array_equal(other.ids, block.ids):  # type: ignore[arg-type]
            return f"the field {name!r} has other ids"
    return None


def overwrite(arrays: Iterable[Array]) -> None:
    """Fills arrays in place with values that nobody can use: NaN, or all bits of an integer set."""
    for array in arrays:
        array[...] = np.nan if array.dtype.kind == "f" else np.array(-1).astype(array.dtype)


def _check_fields(fields: Fields) -> None:
    require(len(fields) > 0, "fields() is empty; declare at least one FieldSpec")
    for spec in fields:
        name = f"field {spec.name!r}"
        require(spec.name.isidentifier(), f"{name} must be named by an identifier")
        require(spec.dtype in DTYPES, f"{name} has dtype {spec.dtype!r}; allowed are {', '.join(DTYPES)}")
        require(spec.kind in KINDS, f"{name} is of kind {spec.kind!r}; allowed are {', '.join(KINDS)}")
        require(
            spec.role in ("state", "control", "observable"),
            f"{name} has role {spec.role!r}; allowed are state, control, observable",
        )
        require(spec.blend in ("linear", "never"), f"{name} has blend {spec.blend!r}; allowed are linear, never")
        require(bool(spec.unit.strip()), f'{name} has no unit; "1" stands for a dimensionless field')
        positive = isinstance(spec.shape, tuple) and all(
            isinstance(length, int) and length > 0 for length in spec.shape
        )
        require(positive, f"{name} has shape {spec.shape}; it must be a tuple of positive integers")
        require(
            spec.kind != "scalar" or spec.shape == (), f"{name} is a scalar and must have shape (), not {spec.shape}"
        )
        require(spec.kind == "scalar" or spec.shape != (), f"{name} has shape (); a single number is of kind scalar")
        require(
            spec.role != "observable" or spec.shape == (),
            f"{name} is an observable and must be a single number at each instant, not of shape {spec.shape}",
        )
        mixable = spec.role == "state" and np.dtype(spec.dtype).kind == "f"
        require(
            spec.blend == "never" or mixable, f"{name} declares blend = linear; only floating state fields can be mixed"
        )
    names = [spec.name for spec in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"fields() declares {', '.join(map(repr, twice))} more than once; names must be unique")


def _look(simulation: Simulation, fields: Fields) -> Snapshot:
    """The present Snapshot, checked against the declared fields, with arrays of its own."""
    now = tuple(simulation.fields())
    require(now == fields, f"fields() changed from {fields} to {now}; declare them once, they are constant for life")
    snapshot = simulation.snapshot()
    require(
        isinstance(snapshot.step, int) and snapshot.step >= 0 and math.isfinite(snapshot.time),
        f"the Snapshot is at step {snapshot.step}, time {snapshot.time}; both must be finite, the step a count from 0",
    )
    require(
        math.isfinite(snapshot.dt) and snapshot.dt > 0,
        f"the Snapshot has dt {snapshot.dt}; it must be positive and finite",
    )
    require(
        snapshot.controls_until >= snapshot.time,
        f"controls_until is {snapshot.controls_until} at time {snapshot.time}; the next known change lies ahead",
    )
    declared, present = {spec.name for spec in fields}, set(snapshot.blocks)
    require(present == declared, f"the Snapshot holds {sorted(present)}, but declared are {sorted(declared)}")
    for spec in fields:
        block = snapshot.blocks[spec.name]
        wrong = misfit(spec, block)
        require(wrong is None, f"at step {snapshot.step} {wrong}; make it fit the declaration or change that")
        finite = bool(np.isfinite(block.array).all())
        require(finite, f"field {spec.name!r} is not finite at step {snapshot.step}; raise SimulationFailed instead")
    return copied(snapshot)


def _check_cover(fields: Fields, snapshot: Snapshot, ranks: Ranks) -> None:
    held = np.array([snapshot[spec.name].size if spec.kind != "scalar" else 0 for spec in fields], dtype=np.float64)
    together = ranks.allreduce(held, "sum")
    for spec, found in zip(fields, together, strict=True):
        wanted = math.prod(spec.shape)
        require(
            spec.kind == "scalar" or found == wanted,
            f"the blocks of field {spec.name!r} hold {found:.0f} values on {ranks.size} ranks, declared are {wanted}; "
            "each value belongs to exactly one rank (pass `ranks` when there are several)",
        )


def _advanced(simulation: Simulation, fields: Fields, n: int, other_dt: float | None = None) -> Snapshot:
    """Integrates n steps, with the present dt unless told otherwise, and checks what it did to step and time."""
    before = _look(simulation, fields)
    dt = other_dt or before.dt
    simulation.integrate(dt, n)
    after = _look(simulation, fields)
    require(
        after.step == before.step + n,
        f"integrate(dt, {n}) went from step {before.step} to step {after.step}; it must advance exactly {n}",
    )
    elapsed = n * dt
    slack = 1e-6 * elapsed + 8 * np.spacing(abs(before.time) + elapsed)
    require(
        abs(after.time - before.time - elapsed) <= slack,
        f"integrate({dt}, {n}) went from time {before.time} to {after.time}; it must advance {elapsed}",
    )
    return after


def _check_saving(simulation: Simulation, fields: Fields, steps: int, allowed: float, ranks: Ranks) -> None:
    start, start_invariants, token = _look(simulation, fields), dict(simulation.invariants()), simulation.save()
    changed = difference(start, _look(simulation, fields))
    require(changed is None, f"save() changed the state: {changed}; it may only read")
    middle = _advanced(simulation, fields, steps)
    second = simulation.save()
    end = _advanced(simulation, fields, steps)
    returns = (("first", token, start, middle), ("second", second, middle, end), ("first", token, start, middle))
    for order, saved, there, later in returns:
        simulation.restore(saved)
        wrong = difference(there, _look(simulation, fields))
        require(
            wrong is None,
            f"after restore of the {order} of two tokens {wrong}; a token holds the whole state bitwise, and stays "
            "valid and as it was while the simulation goes on, saves again and restores",
        )
        wrong = _departure(later, _advanced(simulation, fields, steps), allowed, ranks)
        require(
            wrong is None,
            f"{steps} steps after restore of the {order} of two tokens {wrong}; save must hold the hidden parts of the "
            "state too (populations, thermostat, random numbers)",
        )
    simulation.restore(token)
    now = dict(simulation.invariants())
    require(
        now == start_invariants, f"after restore the invariants are {now} instead of {start_invariants}; save them too"
    )


def _departure(first: Snapshot, second: Snapshot, allowed: float, ranks: Ranks) -> str | None:
    """Says where two Snapshots of one instant differ by more than `allowed` rms values of a field, or None."""
    if not allowed:
        return difference(first, second)
    for name, block in first.blocks.items():
        then, now = _values(block, ranks), _values(second.blocks[name], ranks)
        if then.shape != now.shape:
            return f"the field {name!r} has another shape"
        off = _rms(now - then) / (_rms(then) or 1.0)
        if not off <= allowed:
            return f"the field {name!r} is off by {off:.3g} of its rms value, allowed is {allowed}"
    bare = [Snapshot(one.step, one.time, one.dt, {}, one.controls_until) for one in (first, second)]
    return difference(*bare)


def _check_invariants(simulation: Simulation, steps: int, ranks: Ranks) -> dict[str, float]:
    start = _invariants(simulation)
    simulation.integrate(simulation.snapshot().dt, steps)
    end = _invariants(simulation)
    reductions = [{name: one.reduction for name, one in found.items()} for found in (start, end)]
    require(
        reductions[0] == reductions[1],
        f"invariants() gave {reductions[0]} first and {reductions[1]} after {steps} steps; names and reductions "
        "are fixed",
    )
    drifts = {}
    for name in sorted(start):
        values = [ranks.allreduce(np.array([one[name].value]), one[name].reduction)[0] for one in (start, end)]
        drifts[name] = abs(float(values[1] - values[0]))
    return drifts


def _invariants(simulation: Simulation) -> dict[str, Invariant]:
    found = dict(simulation.invariants())
    for name, one in found.items():
        require(math.isfinite(one.value), f"invariant {name!r} is {one.value}; it must be finite")
        require(one.reduction in ("sum", "max"), f"invariant {name!r} has reduction {one.reduction!r}, not sum or max")
    return found


def _check_defect(simulation: Simulation, fields: Fields, steps: int, ranks: Ranks) -> dict[str, float]:
    """One direct step against the same step after adopt(snapshot()), from a state that has developed for some steps."""
    start = _advanced(simulation, fields, steps)
    token = simulation.save()
    truth = _advanced(simulation, fields, 1)
    simulation.restore(token)
    _adopt(simulation, _state_of(start, fields))
    found = _advanced(simulation, fields, 1)
    defects = {}
    for spec in with_role(fields, "state"):
        a, b, c = (_values(one.blocks[spec.name], ranks) for one in (found, truth, start))
        require(
            a.shape == b.shape,
            f"one step after adopt(snapshot()) this rank holds {a.shape} of field {spec.name!r} instead of {b.shape}",
        )
        squares = np.array([np.sum((a - b) ** 2), np.sum(b**2), np.sum(c**2)])
        off, *sizes = ranks.allreduce(squares, "sum")
        defects[spec.name] = math.sqrt(off / (max(sizes) or 1.0))
    return defects


def _check_adopt(
    simulation: Simulation, fields: Fields, steps: int, tolerance: float, other_dt: float | None, ranks: Ranks
) -> tuple[str, ...]:
    """Adopts an instant other than the present one: all of it must be taken over, and nothing of it kept or changed."""
    start = _look(simulation, fields)
    far = _advanced(simulation, fields, steps, other_dt)
    given = _state_of(start, fields)
    _adopt(simulation, given)
    wrong = difference(_state_of(start, fields), given)
    require(wrong is None, f"adopt changed the Snapshot it was given: {wrong}; it belongs to the caller")
    taken = _look(simulation, fields)
    for what in ("step", "time", "dt"):
        a, b = getattr(start, what), getattr(taken, what)
        require(a == b, f"adopt got a Snapshot with {what} {a} and the simulation says {b} afterwards; take it over")
    unmoved = []
    for spec in with_role(fields, "state"):
        then, now, elsewhere = (_values(one.blocks[spec.name], ranks) for one in (start, taken, far))
        scale = max(_rms(then), _rms(elsewhere)) or 1.0
        off = _rms(now - then) / scale if now.shape == then.shape else math.inf
        require(
            off <= tolerance,
            f"after adopt the field {spec.name!r} differs from the one given by {off:.3g} of its rms value; take over "
            "every state field",
        )
        if then.shape == elsewhere.shape and _rms(elsewhere - then) / scale <= 2 * tolerance:
            unmoved.append(spec.name)
    overwrite(block.array for block in given.blocks.values())
    wrong = difference(taken, copied(simulation.snapshot()))
    require(wrong is None, f"when the caller reuses the arrays given to adopt, {wrong}; copy them in adopt")
    return tuple(unmoved)


def _adopt(simulation: Simulation, given: Snapshot) -> None:
    try:
        simulation.adopt(given)
    except Exception as error:
        raise AssertionError(
            f"adopt of a Snapshot of this very simulation, with its state fields only, raised {type(error).__name__}: "
            f"{error}; a learned Snapshot holds neither controls nor observables"
        ) from error


def _check_undisturbed(make: Callable[[], Simulation], fields: Fields, steps: int) -> None:
    watched, alone = make(), make()
    dt = watched.snapshot().dt
    for _ in range(steps):
        _look(watched, fields)
        watched.save()
        watched.invariants()
        watched.integrate(dt, 1)
        alone.integrate(dt, 1)
    wrong = difference(_look(alone, fields), _look(watched, fields))
    require(
        wrong is None,
        f"of two simulations made alike, one was looked at and saved on its way, and after {steps} steps {wrong}; "
        "snapshot, save and invariants may only read, and the same seed must give the same trajectory",
    )


def _state_of(snapshot: Snapshot, fields: Fields) -> Snapshot:
    """What a learned Snapshot holds: the state fields, in arrays of its own, and no controls or observables."""
    blocks = {spec.name: snapshot.blocks[spec.name] for spec in with_role(fields, "state")}
    return copied(Snapshot(snapshot.step, snapshot.time, snapshot.dt, blocks))


def _values(block: Block, ranks: Ranks) -> NDArray[np.float64]:
    """The values as float64. Particles: those of all ranks in the order of their ids, since they may change rank."""
    array = np.asarray(block.array, dtype=np.float64)
    if block.ids is None:
        return array
    parts = ranks.bcast(ranks.gather((block.ids, array)))
    ids, together = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.asarray(together[np.argsort(ids)], dtype=np.float64)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
