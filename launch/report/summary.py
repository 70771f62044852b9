"""Assembles `summary.json`: what the run folder tells, and facts that only the launcher knows. Nothing is invented.

Facts that the launcher hands over (all optional; a missing one gives null, and any other key is passed through):

    status            "finished", "failed" or "stopped" (Ctrl-C)
    cause             one sentence why, when it did not finish
    case, seed        name of the case, seed of the run
    tolerance         else the tolerance in the trace
    time              {wall_s, reference_wall_s, train_s, and, if measured, direct_step_s, learned_step_s, stall_p50_s,
                      stall_p99_s, train_wall_s}; unmeasured step times and stalls come from the trace
    samples           {produced, admitted, dropped, in_flight, retained, superseded}
    models            [{version, trained_on, promoted_at_step, kind}]
    horizon_error     {bound, measured, coverage, n}; an unknown bound comes from the trace
    dt_error          {field, tolerance} of the task that advised dt
    limits            {errors: [{field, tolerance}], rejected}, limited errors and steps made again for them
    changes           [{step, announced}], changes of controls as the case has them
    ledger            {part: seconds}, where the solver's time went
    switches, fallbacks, rewinds, audits    counts; else counted in the trace
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coupler.trace import Record
from launch.report import regimes, speedup, statistics
from launch.report.dt_error import dt_error, limited
from launch.report.history import History
from launch.report.rundir import RunFolder, TrajectoryError, read_folder

FIRST_PERIODS = 40
"""Periods after the first hand-over over which the plain trajectory error is judged."""
SAMPLES = ("produced", "admitted", "dropped", "in_flight", "retained", "superseded")
TIMES = ("direct_step_s", "learned_step_s", "train_s", "stall_p50_s", "stall_p99_s", "wall_s", "reference_wall_s")


def summarise(run_dir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `summary.json`, JSON-safe: what is unknown, infinite or not a number is None.

    Args:
        run_dir: Run folder; reads the trace, the observables and the reference, as far as they are there.
        facts: See the module's docstring.
    """
    return assemble(read_folder(run_dir), facts)


def assemble(folder: RunFolder, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same from a folder that was read already."""
    history, records = folder.history, folder.records
    after = history.first_handover if history.first_handover is not None else -1
    observables = statistics.compare(folder.observed, folder.reference, after)
    parts = _regimes(folder, after, facts.get("changes"))
    period = period_steps(folder, parts[0]["observables"] if parts else observables, observables)
    time = step_times(records) | {k: v for k, v in (facts.get("time") or {}).items() if v is not None}
    derived: dict[str, Any] = {
        "status": None,
        "cause": None,
        "case": None,
        "seed": None,
        "steps": history.last_step,
        "learned_fraction": history.learned_fraction,
        "first_handover_step": history.first_handover,
        "switches": len(history.switches),
        "fallbacks": len(history.fallbacks),
        "rewinds": len(history.rewinds),
        "audits": len(history.audits),
        "unverified_steps": history.unverified_steps,
        "superseded_steps": sum(s.steps for s in history.discarded),
        "steps_by": {maker: history.steps_by(maker) for maker in ("direct", "trial", "audit", "hand-over", "learned")},
        "tolerance": next((r.tolerance for r in reversed(records) if math.isfinite(r.tolerance)), None),
        "net_speedup": speedup.net_speedup(time.get("reference_wall_s"), time.get("wall_s")),
        "models": [],
        "recording": None,
    }
    computed = {
        "period_steps": period,
        "error": trajectory_error(folder.errors, after, period if after >= 0 else None),
        "horizon_error": _horizon_error(records, facts.get("horizon_error") or {}),
        "step_error": _step_error(history),
        "dt_error": dt_error(folder.observed, facts.get("dt_error")),
        "limits": limited(folder.observed, facts.get("limits")),
        "effective_speedup": _effective(history, time),
        "time": {key: time.get(key) for key in TIMES} | time,
        "samples": dict.fromkeys(SAMPLES) | dict(facts.get("samples") or {}),
        "rewound": [{"found_at_step": r.found, "to_step": r.to, "reason": r.reason} for r in history.rewinds],
        "changes": regimes.answers(records, facts.get("changes")),
        "observables": observables,
        "regimes": parts,
    }
    given = {key: value for key, value in facts.items() if value is not None}
    return _json_safe(derived | given | computed)  # type: ignore[no-any-return]


def _regimes(folder: RunFolder, after: int, known: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    parts = regimes.regimes(folder.records, max(after, 0), folder.history.last_step, known)
    for part in parts:
        inside = [r for r in folder.observed if r["step"] <= part["to_step"]]
        part["observables"] = statistics.compare(inside, folder.reference, part["from_step"])
    return parts


def step_times(records: Sequence[Record]) -> dict[str, float | None]:
    """Seconds of one direct and of one learned step, and quantiles of the stall, from the trace.

    A decision's time runs from its exchange to the next one, its own stall counted, the next one's not. Medians: a
    first call that compiles, or a pause of the machine, does not count.
    """
    spent: dict[str, list[float]] = {"direct": [], "learned": []}
    for record, later in itertools.pairwise(records):
        if record.action in spent and later.step > record.step:
            seconds = later.wall_s - record.wall_s - later.stall_s + record.stall_s
            spent[record.action].append(seconds / (later.step - record.step))
    stalls = [record.stall_s for record in records]
    return {
        "direct_step_s": _quantile(spent["direct"], 0.5),
        "learned_step_s": _quantile(spent["learned"], 0.5),
        "stall_p50_s": _quantile(stalls, 0.5),
        "stall_p99_s": _quantile(stalls, 0.99),
    }


def period_steps(folder: RunFolder, *tables: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Coupling steps in the longest period of any periodic observable; None when none is periodic.

    The longest, because a drag swings twice while a lift swings once. The first table that knows one decides, and in it
    the reference's frequency goes before the coupled run's.
    """
    seen = folder.observed
    if len(seen) < 2 or seen[-1]["step"] == seen[0]["step"]:
        return None
    step_time = (seen[-1]["time"] - seen[0]["time"]) / (seen[-1]["step"] - seen[0]["step"])
    for table in tables:
        frequencies = [
            next((f for f in ((row[k] or {}).get("frequency") for k in ("reference", "coupled")) if f), None)
            for row in table.values()
        ]
        if known := [f for f in frequencies if f]:
            return float(1.0 / (min(known) * step_time)) if step_time > 0 else None
    return None


def trajectory_error(
    errors: Sequence[TrajectoryError] | None, after: int, period: float | None
) -> dict[str, Any] | None:
    """Trajectory error after the first hand-over, and over the first 40 periods and beyond where there is a period.

    Args:
        errors: Errors in order of steps, None without a reference.
        after: Step of the first hand-over.
        period: Period in coupling steps, None when nothing is periodic.

    Returns:
        None without a reference; else max, mean, final, n and `periods`: over the first 40 periods the plain error,
        beyond them the error after removing a phase shift, and the largest such shift in periods.
    """
    if not errors:
        return None
    later = [e for e in errors if e.step > after] or list(errors)
    values = np.array([e.error for e in later])
    found: dict[str, Any] = {
        "max": float(values.max()),
        "mean": float(values.mean()),
        "final": float(values[-1]),
        "n": len(values),
        "not_finite": int(np.count_nonzero(~np.isfinite(values))),
        "periods": None,
    }
    if period is not None:
        limit = after + FIRST_PERIODS * period
        aligned = [e.aligned for e in later if e.step > limit and e.aligned is not None]
        shifts = [abs(e.shift) / period for e in later if e.step > limit and e.shift is not None]
        found["periods"] = {
            "period_steps": period,
            "periods_after_handover": (later[-1].step - after) / period,
            "max_first_40": max((e.error for e in later if e.step <= limit), default=None),
            "max_aligned_beyond": max(aligned, default=None),
            "max_shift_periods": max(shifts, default=None),
        }
    return found


def _horizon_error(records: Sequence[Record], given: Mapping[str, Any]) -> dict[str, Any]:
    bounds = [r.bound for r in records if r.action == "learned" and math.isfinite(r.bound)]
    found: dict[str, Any] = {"bound": max(bounds, default=None), "measured": None, "coverage": None, "n": None}
    return found | {key: value for key, value in given.items() if value is not None}


def _step_error(history: History) -> dict[str, Any]:
    errors = [a.error for a in history.audits]
    return {
        "max": max(errors, default=None),
        "mean": float(np.mean(errors)) if errors else None,
        "n": len(errors),
    }


def _effective(history: History, time: Mapping[str, Any]) -> dict[str, Any]:
    """Effective speedup of the trajectory.

    Training beside the solver costs wall time only where the launcher says so (`time.train_wall_s`); else all of
    `train_s` is charged, which is the cautious reading.
    """
    n_lookup = history.steps_by("learned")
    n_train = history.last_step - n_lookup
    found: dict[str, Any] = {"S": None, "n_lookup": n_lookup, "n_train": n_train, "break_even": None}
    direct, learned = time.get("direct_step_s"), time.get("learned_step_s")
    training = time.get("train_wall_s", time.get("train_s"))
    if direct is None or learned is None or training is None or n_train <= 0:
        return found
    reference = time.get("reference_wall_s")
    t_seq = reference / history.last_step if reference else direct
    t_learn = training / n_train
    found["S"] = speedup.effective_speedup(t_seq, learned, direct, t_learn, n_lookup, n_train)
    found["break_even"] = speedup.break_even(t_seq, learned, direct, t_learn, n_train)
    return found


def _quantile(values: Sequence[float], q: float) -> float | None:
    return float(np.quantile(values, q)) if values else None


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(v) for v in value]
    if isinstance(value, (np.floating, float)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
