"""Pictures over the steps of a run: timeline, errors, dt, observables, and where the time went."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch

from coupler.trace import Record
from launch.report import palette, statistics, words
from launch.report.history import MAKERS, merged
from launch.report.palette import COLOURS, INK, MUTED, NAMES, REFERENCE
from launch.report.regimes import control_changes
from launch.report.rundir import RunFolder

FEW_EVENTS = 8
MAX_OBSERVABLES = 6


def timeline(figure: Figure, folder: RunFolder) -> None:
    """Who made each step, the events on it, and what was undone."""
    history = folder.history
    axes = figure.add_subplot()
    lanes = [
        "events",
        "trajectory",
        *(["undone"] if history.discarded else []),
        *(["models"] if _models(folder) else []),
    ]
    heights = {"events": 1.1, "trajectory": 1.2, "undone": 0.5, "models": 0.6}
    tops, y = {}, 0.0
    for lane in lanes:
        tops[lane] = y
        y -= heights[lane] + 0.18
    palette.lanes(axes, history, tops["trajectory"] - heights["trajectory"], tops["trajectory"])
    if "undone" in tops:
        undone = merged(replace(s, maker="learned", version=0) for s in history.discarded)
        spans = [(s.first, s.steps) for s in undone]
        style: dict[str, Any] = {
            "facecolor": "white",
            "edgecolor": COLOURS["learned"],
            "hatch": "/////",
            "linewidth": 0.8,
        }
        axes.broken_barh(spans, (tops["undone"] - heights["undone"], heights["undone"]), **style)
    if "models" in tops:
        _promotions(axes, _models(folder), tops["models"] - 0.5 * heights["models"])
    _events(axes, folder, tops["trajectory"] + 0.12)
    for step, label in changes(folder):
        axes.axvline(step, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=5)
        axes.annotate(label, (step, 0.0), (4, -2), textcoords="offset points", fontsize=8, va="top", color=INK)
    axes.set_ylim(y, 0.05)
    axes.set_yticks([tops[lane] - 0.5 * heights[lane] for lane in lanes], lanes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    palette.steps_axis(axes, history)
    axes.set_title("Who made each step")
    palette.legend_above(axes, palette.maker_handles(history))


def _models(folder: RunFolder) -> list[Mapping[str, Any]]:
    models = folder.summary.get("models") or []
    return [m for m in models if isinstance(m, Mapping) and m.get("promoted_at_step") is not None]


def _promotions(axes: Axes, models: Sequence[Mapping[str, Any]], y: float) -> None:
    steps = [m["promoted_at_step"] for m in models]
    axes.plot(steps, np.full(len(steps), y), "D", color=MUTED, markersize=3.5, linestyle="none")
    room = 0.09 * max(axes.dataLim.x1, 1)
    for model, following in zip(models, [*steps[1:], math.inf], strict=True):
        if following - model["promoted_at_step"] > room:
            text = f"v{model['version']} {model.get('kind') or ''}".strip()
            place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "va": "center", "color": MUTED}
            axes.annotate(text, (model["promoted_at_step"], y), (6, 0), **place)


def _events(axes: Axes, folder: RunFolder, floor: float) -> None:
    history, high = folder.history, floor + 0.34
    passed = [a.step for a in history.audits if a.passed]
    failed = [a.step for a in history.audits if not a.passed]
    back = [s for s in history.fallbacks if s not in [r.found for r in history.rewinds]]
    marks: list[tuple[Sequence[int], float, dict[str, Any]]] = [
        (passed, floor, {"marker": "|", "color": COLOURS["audit"], "markersize": 7, "markeredgewidth": 1.4}),
        (failed, floor, {"marker": "X", "color": INK, "markersize": 7, "markeredgecolor": "white"}),
        (history.switches, high, {"marker": "v", "color": COLOURS["learned"]}),
        (back, high, {"marker": "v", "color": COLOURS["direct"]}),
    ]
    for steps, level, style in marks:
        if steps:  # an empty line that is not clipped has a bounding box at the figure's corner
            axes.plot(steps, [level] * len(steps), linestyle="none", clip_on=False, zorder=6, **style)
    for rewind in history.rewinds[: 4 * FEW_EVENTS]:
        ends = ((rewind.found, high - 0.1), (rewind.to, high - 0.1))
        arc: dict[str, Any] = {
            "connectionstyle": "arc3,rad=0.35",
            "arrowstyle": "-|>",
            "mutation_scale": 8,
            "color": INK,
        }
        axes.add_patch(FancyArrowPatch(*ends, **arc, linewidth=1.0, clip_on=False, zorder=6))
    notes: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "textcoords": "offset points", "va": "center"}
    if len(history.switches) + len(back) <= FEW_EVENTS:
        for step in history.switches:
            axes.annotate("model takes over", (step, high), (7, 0), **notes)
        for step in back:
            axes.annotate("solver again", (step, high), (7, 0), **notes)
    if len(history.rewinds) <= FEW_EVENTS:
        for rewind in history.rewinds:
            axes.annotate(f"rewind to {rewind.to:,}", (rewind.found, high), (8, 0), **notes)


def changes(folder: RunFolder) -> list[tuple[int, str]]:
    """Steps at which a control changed, with a label; empty when it changes all the time."""
    seen = control_changes(folder.records)
    known = {c["step"]: c for c in folder.summary.get("changes") or [] if isinstance(c, Mapping) and "step" in c}
    if len(seen) - 1 > FEW_EVENTS:
        return []
    found = []
    for (_, before), (step, after) in itertools.pairwise(seen):
        moved = [k for k in after if after[k] != before.get(k)]
        at = min((s for s in known if s <= step), key=lambda s: step - s, default=step)
        quiet = ", unannounced" if at in known and known[at].get("announced") is False else ""
        found.append((at, ", ".join(f"{k} {before.get(k, math.nan):.4g} → {after[k]:.4g}" for k in moved) + quiet))
    return found or [(step, "control changes") for step in known]


def error(figure: Figure, folder: RunFolder) -> None:
    """The three errors on one logarithmic axis, each with its own mark, and the tolerance."""
    axes = figure.add_subplot()
    history, handles, seen = folder.history, [], []
    palette.shade(axes, history)
    for label, style, points in _error_lines(folder):
        steps, values = np.array([p[0] for p in points]), np.array([p[1] for p in points], np.float64)
        axes.plot(steps, np.where(values > 0, values, np.nan), **style)
        handles.append(palette.line_handle(label, **style))
        seen.append(values)
    seen.append(_bounds(axes, folder, handles))
    tolerance = folder.summary.get("tolerance") or next((r.tolerance for r in folder.records[::-1]), math.nan)
    if math.isfinite(tolerance):
        axes.axhline(tolerance, color=INK, linewidth=1.0, linestyle=(0, (5, 3)))
        place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "bottom", "color": INK}
        label = f"tolerance of the horizon error {100 * tolerance:.3g} %"
        axes.annotate(label, (0, tolerance), (4, 2), **place)
        seen.append(np.array([tolerance, 2 * tolerance]))
    everything = np.concatenate([np.ravel(s) for s in seen]) if seen else np.array([])
    everything = everything[np.isfinite(everything) & (everything > 0)]
    axes.set_yscale("log")
    if everything.size:
        top = float(everything.max())
        floor = 1e-3 * (tolerance if math.isfinite(tolerance) else top)
        axes.set_ylim(max(float(everything.min()), floor, 1e-12) / 1.6, 1.8 * top)
    palette.percent_axis(axes.yaxis)
    axes.grid(axis="y")
    axes.set_ylabel("rms error / rms fluctuation")
    palette.steps_axis(axes, history)
    axes.set_title("Three errors")
    palette.legend_above(axes, handles)


def _error_lines(folder: RunFolder) -> list[tuple[str, dict[str, Any], list[tuple[int, float]]]]:
    lines: list[tuple[str, dict[str, Any], list[tuple[int, float]]]] = []
    start = folder.history.first_handover or 0
    errors = [e for e in folder.errors or () if e.step > start]
    if errors:
        plain = {"color": INK, "linewidth": 1.3, "zorder": 4}
        lines.append(("trajectory error", plain, [(e.step, e.error) for e in errors]))
    if aligned := [(e.step, e.aligned) for e in errors if e.aligned is not None]:
        thin = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (1.5, 1.5)), "zorder": 4}
        lines.append(("phase shift removed", thin, aligned))
    if audits := folder.history.audits:
        dots = {"color": COLOURS["audit"], "marker": "o", "markersize": 5, "linestyle": "none", "zorder": 5}
        lines.append(("step error, audits", {**dots, "markeredgecolor": "white"}, [a[:2] for a in audits]))
    if failed := [a[:2] for a in audits if not a.passed]:
        cross = {"color": INK, "marker": "X", "markersize": 8, "linestyle": "none", "zorder": 6}
        lines.append(("failed audit", {**cross, "markeredgecolor": "white"}, failed))
    return lines


def _bounds(axes: Axes, folder: RunFolder, handles: list[Any]) -> Any:
    """Calibrated bound of each adopted forecast, as a line over the steps that it covers."""
    used = [r for r in folder.records if r.action == "learned" and math.isfinite(r.bound) and r.bound > 0]
    if not used:
        return np.array([])
    lines = [[(r.step, r.bound), (max(r.to_step, r.step + 1), r.bound)] for r in used]
    axes.add_collection(LineCollection(lines, colors=COLOURS["learned"], linewidths=2.0, zorder=3))
    handles.insert(0, palette.line_handle("horizon error, bound", color=COLOURS["learned"], linewidth=2.0))
    return np.array([r.bound for r in used])


def dt(figure: Figure, folder: RunFolder) -> None:
    """The dt of every decision, and each control below it."""
    kept = _by_step(folder.records)
    steps = np.array([r.step for r in kept])
    names = list(dict.fromkeys(name for r in kept for name in r.controls))[:4]
    grid = figure.subplots(1 + len(names), 1, sharex=True, squeeze=False)[:, 0]
    values = np.array([r.dt for r in kept], np.float64)
    palette.traced(grid[0], folder.history, list(steps), values)
    grid[0].set_title("dt of a coupling step")
    if values.min() > 0 and values.max() / values.min() > 20:
        grid[0].set_yscale("log")
    for axes, name in zip(grid[1:], names, strict=True):
        level = np.array([r.controls.get(name, math.nan) for r in kept])
        axes.plot(steps, level, color=INK, drawstyle="steps-post")
        axes.set_title(f"control: {name}")
    for axes in grid:
        axes.margins(y=0.25)
        palette.steps_axis(axes, folder.history)
    for axes in grid[:-1]:
        axes.set_xlabel("")
    palette.legend_above(grid[0], palette.maker_handles(folder.history))


def _by_step(records: Sequence[Record]) -> list[Record]:
    """The decision that counted at each step, in order of steps."""
    last = {r.step: r for r in records if r.action in ("direct", "learned")}
    return [last[step] for step in sorted(last)]


def observables(figure: Figure, folder: RunFolder) -> None:
    """Every observable, whole and close up at the first hand-over, on the all-direct reference."""
    names = statistics.names(folder.observed)[:MAX_OBSERVABLES]
    grid = figure.subplots(len(names), 2, squeeze=False, width_ratios=[2.1, 1.0])
    low, high = close_up(folder)
    for (whole, near), name in zip(grid, names, strict=True):
        for axes in (whole, near):
            palette.shade(axes, folder.history)
            series(axes, folder, name)
            palette.steps_axis(axes, folder.history)
            axes.set_xlabel("")
        whole.set_title(name + _cut_start(whole, folder, name))
        near.set_xlim(low, high)
        inside = [r["values"][name] for r in folder.observed if low <= r["step"] <= high and name in r["values"]]
        if inside and (spread := max(inside) - min(inside)) > 0:
            near.set_ylim(min(inside) - 0.1 * spread, max(inside) + 0.1 * spread)
    grid[0, 1].set_title("close up, first hand-over" if folder.history.first_handover is not None else "close up")
    for axes in grid[-1]:
        axes.set_xlabel("coupling step")
    handles = palette.maker_handles(folder.history)
    if folder.reference:
        handles.append(palette.line_handle("all-direct reference", color=REFERENCE, linewidth=3.2))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))


def _cut_start(axes: Axes, folder: RunFolder, name: str) -> str:
    """Leaves a violent start out of the vertical range, where it would flatten all that follows; says so."""
    steps, _, values = statistics.series(folder.observed, name)
    later = values[(steps > 0.05 * folder.history.last_step) & np.isfinite(values)]
    spread = float(np.ptp(later)) if later.size else 0.0
    if spread <= 0.0 or float(np.ptp(values[np.isfinite(values)])) < 3.0 * spread:
        return ""
    axes.set_ylim(float(later.min()) - 0.3 * spread, float(later.max()) + 0.3 * spread)
    return ", start cut off"


def series(axes: Axes, folder: RunFolder, name: str, width: float = 1.1) -> None:
    """One observable in the colours of its makers, over a broad grey line that is the reference."""
    if folder.reference:
        steps, _, values = statistics.series(folder.reference, name)
        axes.plot(steps, values, color=REFERENCE, linewidth=width + 2.2, zorder=2)
    steps, _, values = statistics.series(folder.observed, name)
    palette.traced(axes, folder.history, list(steps), values, width)


def close_up(folder: RunFolder, periods: float = 4.0) -> tuple[float, float]:
    """Steps of a window around the first hand-over, or the end of the run when there was none."""
    last = folder.history.last_step
    half = periods * period(folder)
    middle = folder.history.first_handover
    if middle is None:
        return max(0.0, last - 2 * half), float(max(last, 1))
    return max(0.0, middle - 0.6 * half), middle + 1.4 * half


def period(folder: RunFolder) -> float:
    """Coupling steps in a period as the summary has them, or a fiftieth of the run."""
    known = folder.summary.get("period_steps")
    return float(known) if known else max(folder.history.last_step / 50.0, 4.0)


def time(figure: Figure, folder: RunFolder) -> None:
    """Wall time of the coupled run by what it was spent on, beside the all-direct run and the trainer."""
    axes = figure.add_subplot()
    spent = where_time_went(folder.records, (folder.summary.get("time") or {}).get("wall_s"))
    given = folder.summary.get("time") or {}
    rows = [("coupled run", spent)]
    if given.get("reference_wall_s"):
        rows.insert(0, ("all-direct run", {"direct": float(given["reference_wall_s"])}))
    if given.get("train_s"):
        rows.append(("trainer, beside it", {"training": float(given["train_s"])}))
    looks: dict[str, dict[str, Any]] = {str(name): {"facecolor": COLOURS[name]} for name in MAKERS} | {
        "start-up and end": {"facecolor": REFERENCE},
        "inside the library": {"facecolor": INK},
        "training": {"facecolor": "white", "edgecolor": MUTED, "hatch": "/////"},
    }
    for y, (_, parts) in enumerate(rows):
        left = 0.0
        for part, seconds in parts.items():
            axes.barh(y, seconds, 0.62, left, linewidth=0.8 if part == "training" else 0, **looks[part])
            left += seconds
        axes.annotate(words.seconds(left), (left, y), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.set_xlabel("wall time, s")
    axes.set_title("Where the time went")
    shown = [p for p in looks if any(p in parts and parts[p] > 0 for _, parts in rows)]
    names: dict[str, str] = {str(maker): text for maker, text in NAMES.items()}
    handles = [Patch(**looks[p], linewidth=0, label=names.get(p, p)) for p in shown]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=len(handles))


def where_time_went(records: Sequence[Record], wall_s: float | None) -> dict[str, float]:
    """Seconds of the coupled run by part, from the trace: start-up and end, each maker's steps, the library.

    The time from one exchange to the next belongs to the decision that was carried out in between; the next exchange's
    own stall belongs to the library, except that the wait for a learned state is what a learned step costs.
    """
    spent: dict[str, float] = {"start-up and end": 0.0, **dict.fromkeys(MAKERS, 0.0), "inside the library": 0.0}
    if not records:
        return {}
    spent["start-up and end"] += max(records[0].wall_s - records[0].stall_s, 0.0)
    for i, record in enumerate(records):
        maker = _payer(record)
        spent[maker if record.action == "learned" else "inside the library"] += record.stall_s
        if i + 1 < len(records):
            later = records[i + 1]
            spent[maker] += max(later.wall_s - later.stall_s - record.wall_s, 0.0)
    if wall_s is not None:
        spent["start-up and end"] += max(wall_s - records[-1].wall_s, 0.0)
    return {part: seconds for part, seconds in spent.items() if seconds > 0}


def _payer(record: Record) -> str:
    if record.action == "learned":
        return "learned" if record.weight >= 1.0 else "hand-over"
    return record.phase if record.phase in ("trial", "audit") and record.action == "direct" else "direct"
