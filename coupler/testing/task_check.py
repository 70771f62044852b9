"""The public check of a Task: measures that it keeps what `coupler.contracts.Task` promises.

Needs no test framework: call `check_task(make, fields, snapshots)` from any test. A broken promise raises
AssertionError with a full sentence. Every part fails on a Task that was broken on purpose; its tests show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coupler.contracts import Forecast, Report, Task
from coupler.norms import relative_error
from coupler.testing.forecast_check import arrays_of, check_forecast
from coupler.testing.simulation_check import difference, overwrite, require
from schemas.fields import Array, FieldSpec, Snapshot, copied, misfit

CHUNK = 20
"""Steps in one call of `learn`."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What `check_task` measured.

    Attributes:
        learned: Report of the call of `learn` that first served a model.
        learn_steps: Steps of `learn` spent until then.
        estimated: The model's own error estimate, mean over a few of the given Snapshots.
        observed: Error found against the Snapshots `horizon` steps later, as rms over rms fluctuation, mean over the
            same ones; NaN for a Task without arrays. They were in the training data: this says that something was
            learned, not how well it generalises.
    """

    learned: Report
    learn_steps: int
    estimated: float
    observed: float


@dataclass(frozen=True, slots=True)
class _Case:
    make: Callable[[], Task]
    fields: tuple[FieldSpec, ...]
    snapshots: Sequence[Snapshot]
    horizon: int
    learn_steps: int

    @property
    def asked(self) -> Sequence[Snapshot]:
        """A few Snapshots, spread over those with direct data `horizon` steps later."""
        usable = len(self.snapshots) - self.horizon
        return self.snapshots[: usable : max(1, usable // 3)]


def check_task(
    make: Callable[[], Task],
    fields: Sequence[FieldSpec],
    snapshots: Sequence[Snapshot],
    *,
    horizon: int = 4,
    learn_steps: int = 1000,
) -> TaskReport:
    """Checks a Task against its contract; trains it about three times.

    Args:
        make: Makes a fresh Task for `fields`; the same one each time (same seed and settings).
        fields: Declared fields of the data.
        snapshots: Directly integrated global Snapshots of consecutive steps, enough to learn from; at least
            `horizon` + 4.
        horizon: Longest horizon asked for, at least 1.
        learn_steps: Steps of `learn` within which a model must be served (its version is at least 1).

    Returns:
        What was measured.

    Raises:
        AssertionError: When the Task breaks its contract.
        ValueError: When the given data cannot be used.
    """
    case = _Case(make, tuple(fields), snapshots, horizon, learn_steps)
    _check_material(case)
    _check_untrained(case)
    task, learned, spent = _taught(case)
    estimated, observed = _scores(case, task)
    _check_independence(case, task)
    state = _check_round_trip(case, task)
    _check_garbage(case, state)
    _check_rewinds(case, task, spent)
    return TaskReport(learned, spent, estimated, observed)


def _check_material(case: _Case) -> None:
    if case.horizon < 1 or len(case.snapshots) < case.horizon + 4:
        raise ValueError(f"{len(case.snapshots)} snapshots are too few for horizon {case.horizon}; give 4 more than it")
    for number, snapshot in enumerate(case.snapshots):
        if snapshot.step != case.snapshots[0].step + number:
            raise ValueError(
                f"snapshots[{number}] is of step {snapshot.step}; steps must follow one another without gap"
            )
        for spec in case.fields:
            block = snapshot.blocks.get(spec.name)
            wrong = f"field {spec.name!r} is missing" if block is None else misfit(spec, block)
            if wrong is None and block is not None and block.array.shape != spec.shape:
                wrong = f"field {spec.name!r} is not global"
            if wrong is not None:
                raise ValueError(f"snapshots[{number}]: {wrong}; a Task sees whole fields as declared")


def _check_untrained(case: _Case) -> None:
    task = case.make()
    require(isinstance(task, Task), f"{type(task).__name__} lacks a method of Task, or the class variable owns")
    owns = task.owns
    require(
        isinstance(owns, frozenset) and bool(owns) and owns <= {"arrays", "dt"},
        f"owns is {owns!r}; it must be a frozenset with arrays, dt or both",
    )
    report = task.learn(1)
    require(isinstance(report, Report), f"learn returned a {type(report).__name__}; it must be a Report")
    require(
        report.version == 0 and not report.promoted,
        f"learn without any data reports version {report.version}; nothing is trained, so it must be 0",
    )
    require(
        _forecast(case, task, case.snapshots[0], case.horizon).version == 0,
        "a Task that has seen no data forecasts with a version above 0; version 0 says that nothing is trained",
    )
    other = case.make()
    other.restore(_checked_state(task))
    require(
        _forecast(case, other, case.snapshots[0], case.horizon).version == 0,
        "the state of an untrained Task, restored in another one, makes it forecast with a version above 0",
    )


def _taught(case: _Case) -> tuple[Task, Report, int]:
    """A Task that learned although the arrays given to observe were overwritten after each call."""
    try:
        return _teach(case, reuse=True)
    except Exception as error:
        # Only to name the cause: when it fails here as well, that failure is the finding.
        _teach(case, reuse=False)
        raise AssertionError(
            "the Task learns only while the arrays given to observe stay as they are; their owner reuses them after "
            f"the call, so copy what is kept (what happened when they were overwritten: {error})"
        ) from error


def _teach(case: _Case, *, reuse: bool) -> tuple[Task, Report, int]:
    task = case.make()
    for snapshot in case.snapshots:
        _observe(task, snapshot, reuse=reuse)
    require(
        _forecast(case, task, case.snapshots[0], case.horizon).version == 0,
        "the Task forecasts with a version above 0 before learn was called; observe only stores",
    )
    report, spent = Report(), 0
    while report.version == 0 and spent < case.learn_steps and not report.idle:
        report = task.learn(CHUNK)
        spent += CHUNK
        _check_report(report, case.snapshots[0].step, case.snapshots[-1].step)
    require(
        report.version >= 1,
        f"after {spent} steps of learn{', then idle,' if report.idle else ''} on {len(case.snapshots)} direct "
        "Snapshots no model is served (version 0); give more, or a larger learn_steps, if these suffice at all",
    )
    require(report.promoted, f"learn raised the version to {report.version} but does not report a promotion")
    for horizon in {1, case.horizon}:
        for snapshot in case.asked:
            version = _forecast(case, task, snapshot, horizon).version
            require(
                version == report.version,
                f"learn reports version {report.version} but the forecast after it says {version}; they must agree",
            )
    return task, report, spent


def _observe(task: Task, snapshot: Snapshot, *, reuse: bool) -> None:
    given = copied(snapshot)
    task.observe(given)
    wrong = difference(snapshot, given)
    require(wrong is None, f"observe changed the Snapshot it was given: {wrong}; it belongs to the caller")
    if reuse:
        overwrite(block.array for block in given.blocks.values())


def _check_report(report: Report, first: int, last: int) -> None:
    if report.version > 0 or report.trained_on > 0:
        require(
            report.trained_on > 0 and first <= report.last_step <= last,
            f"learn reports {report.trained_on} Snapshots with last_step {report.last_step}; given were steps "
            f"{first} to {last}, and steps of a branch that was abandoned do not count",
        )
    for one in report.backtests:
        good = one.horizon >= 1 and 0 <= one.estimated < math.inf and 0 <= one.observed < math.inf
        require(good, f"learn reports {one}; horizons are at least 1, errors finite and not negative")


def _forecast(case: _Case, task: Task, snapshot: Snapshot, horizon: int) -> Forecast:
    """Asks for a forecast and checks its form, and that it left its input alone."""
    given = copied(snapshot)
    forecast = task.forecast(given, horizon)
    check_forecast(forecast, case.fields, task.owns, horizon)
    wrong = difference(snapshot, given)
    require(wrong is None, f"forecast changed the Snapshot it was given: {wrong}; it belongs to the caller")
    for name, array in arrays_of(forecast).items():
        shared = any(np.may_share_memory(array, block.array) for block in given.blocks.values())
        require(not shared, f"the forecast's {name!r} lies in the memory of the Snapshot given; copy it")
    return forecast


def _scores(case: _Case, task: Task) -> tuple[float, float]:
    estimated, observed = [], []
    for snapshot in case.asked:
        forecast = _forecast(case, task, snapshot, case.horizon)
        estimated.append(forecast.error)
        if forecast.arrays is not None:
            truth = case.snapshots[snapshot.step - case.snapshots[0].step + case.horizon]
            there = {name: block.array for name, block in truth.blocks.items()}
            observed.append(relative_error(case.fields, forecast.arrays, there, forecast.scales))
    return float(np.mean(estimated)), float(np.mean(observed)) if observed else math.nan


def _check_independence(case: _Case, task: Task) -> None:
    """A forecast depends on its arguments and the model alone, and stays as it is when others are asked for."""
    first = _forecast(case, task, case.asked[0], case.horizon)
    then = _print_of(first)
    _forecast(case, task, case.asked[-1], case.horizon)
    require(_print_of(first) == then, "a forecast changed when the next one was asked for; give each arrays of its own")
    again = _print_of(_forecast(case, task, case.asked[0], case.horizon))
    require(
        again == then, "the same question got two different forecasts from one model; keep nothing between forecasts"
    )


def _checked_state(task: Task) -> dict[str, Array]:
    """A copy of the Task's state, checked to be arrays that can be stored."""
    state = task.state()
    for name, array in state.items():
        require(
            isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "fiub",
            f"state()[{name!r}] is not an array of numbers; a state is stored as plain arrays by name",
        )
        require(
            array.flags.c_contiguous,
            f"state()[{name!r}] is not in C order; it comes back from a file or a link in C order, and matrix products "
            "then round otherwise, so use that order from the start (numpy.ascontiguousarray)",
        )
    return {name: array.copy() for name, array in state.items()}


def _check_round_trip(case: _Case, task: Task) -> dict[str, Array]:
    """Compares forecasts across state() and restore(); returns the state."""
    held, kept = task.state(), _checked_state(task)
    require(len(kept) > 0, "state() of a trained Task is empty; it must hold all that forecast needs, with the version")
    wanted = _answers(case, task)
    other = case.make()
    given = {name: array.copy() for name, array in kept.items()}
    other.restore(given)
    require(
        _bytes_of(given) == _bytes_of(kept), "restore changed the arrays it was given; another Task may serve with them"
    )
    require(
        _answers_are(case, other, wanted),
        "a second Task with the restored state forecasts otherwise; state holds all that forecast needs, bitwise",
    )
    task.learn(CHUNK)
    require(_bytes_of(held) == _bytes_of(kept), "a call of learn changed arrays that state had returned; return copies")
    return kept


def _check_garbage(case: _Case, state: Mapping[str, Array]) -> None:
    task = case.make()
    task.restore({name: array.copy() for name, array in state.items()})
    wanted = _answers(case, task)
    misshapen = {name: np.zeros((2, 1, 3, 1, 2), array.dtype) for name, array in state.items()}
    hopeless: dict[str, dict[str, Array]] = {
        "an empty state": {},
        "a state of another kind": {"nonsense": np.zeros(3)},
        "misshapen arrays": misshapen,
    }
    for what, garbage in hopeless.items():
        refused = _refused(task, garbage, what)
        require(refused, f"restore accepted {what}; it must raise ValueError and leave the Task as it was")
        require(
            _answers_are(case, task, wanted),
            f"restore refused {what} but the forecasts changed; check all, then take over",
        )
    for name in state:
        for what, garbage in (
            (f"a state without {name!r}", {key: array.copy() for key, array in state.items() if key != name}),
            (f"a state with a misshapen {name!r}", {**state, name: misshapen[name]}),
        ):
            if _refused(task, garbage, what):
                same = _answers_are(case, task, wanted)
                require(same, f"restore refused {what} but the forecasts changed; check all, then take over")
                continue
            try:
                _answers(case, task)
            except Exception as error:
                raise AssertionError(
                    f"restore accepted {what}, and forecast then failed ({error}); it must raise ValueError or work"
                ) from error
            task.restore(dict(state))


def _refused(task: Task, garbage: Mapping[str, Array], what: str) -> bool:
    try:
        task.restore(garbage)
    except ValueError:
        return True
    except Exception as error:
        raise AssertionError(
            f"restore of {what} raised {type(error).__name__} ({error}); it must be ValueError"
        ) from error
    return False


def _check_rewinds(case: _Case, trained: Task, spent: int) -> None:
    """Steps that jump ahead or go back: nothing may fail, and the abandoned branch leaves the training data."""
    half = len(case.snapshots) // 2
    fresh = case.make()
    for snapshot in (*case.snapshots, *case.snapshots[1 : half + 1]):
        _observe(fresh, snapshot, reuse=True)
    try:
        for _ in range(0, spent, CHUNK):
            report = fresh.learn(CHUNK)
            _check_report(report, case.snapshots[0].step, case.snapshots[half].step)
            require(
                report.superseded > 0,
                f"the observed steps went back from {case.snapshots[-1].step} to {case.snapshots[1].step}, and learn "
                "reports that no Snapshot was superseded; count those that were dropped",
            )
        _observe(fresh, case.snapshots[-1], reuse=True)
        fresh.learn(CHUNK)
        _forecast(case, fresh, case.asked[0], case.horizon)
        _observe(trained, case.snapshots[0], reuse=True)
        trained.learn(CHUNK)
        version = _forecast(case, trained, case.asked[0], case.horizon).version
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"after the observed steps jumped or went back, the Task raised {type(error).__name__} ({error}); "
            "such a step starts a new trajectory, and later steps of the old one are dropped"
        ) from error
    require(version >= 1, "a trained Task stopped serving its model when the observed steps went back")


def _bytes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def _print_of(forecast: Forecast) -> tuple[object, ...]:
    """All that a forecast says, bitwise comparable."""
    numbers = (forecast.horizon, forecast.error, forecast.version, forecast.dt, forecast.residual, forecast.in_range)
    return (*numbers, dict(forecast.scales), forecast.arrays is None, _bytes_of(arrays_of(forecast)))


def _answers(case: _Case, task: Task) -> list[tuple[object, ...]]:
    asked: Iterable[Snapshot] = case.asked
    return [_print_of(_forecast(case, task, snapshot, h)) for snapshot in asked for h in sorted({1, case.horizon})]


def _answers_are(case: _Case, task: Task, wanted: list[tuple[object, ...]]) -> bool:
    try:
        return _answers(case, task) == wanted
    except Exception:
        # A model that was spoilt may fail in any way; the caller reports what spoilt it.
        return False
