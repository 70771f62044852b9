"""The one picture that tells the story: the flow at a few moments, above the timeline and the lift."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.report import curves, fields, palette, panels, statistics
from launch.report.fields import Look
from launch.report.palette import COLOURS, INK, MUTED, REFERENCE
from launch.report.rundir import RunFolder

WIDTH, HEIGHT = 11.0, 8.2
MOMENTS = 4


class Moment(NamedTuple):
    """A step worth showing, and why."""

    step: int
    text: str


def moments(folder: RunFolder) -> list[Moment]:
    """Up to four moments in order of steps: direct, on trial, learned, and learned again after a change."""
    history = folder.history
    by_maker: dict[str, list[int]] = {}
    for step in folder.views:
        by_maker.setdefault(history.maker_at(step) or "", []).append(step)
    first = history.first_handover
    turn = min([s for s, _ in curves.changes(folder)] + [r.to for r in history.rewinds], default=None)
    before = [s for s in folder.views if first is None or s <= first]
    direct = [s for s in by_maker.get("direct", []) if s in before]
    trial = [s for s in by_maker.get("trial", []) if s in before]
    learned = by_maker.get("learned", [])
    early = [s for s in learned if turn is None or s <= turn]
    late = [s for s in learned if turn is not None and s > turn]
    picked: dict[int, str] = {}
    if direct:
        picked[direct[-1]] = "the solver integrates, the server trains"
    if trial:
        picked[trial[-1]] = "the solver still integrates, the model is on trial"
    if early:
        picked[early[len(early) // 2]] = "the model has taken over"
    relearning = [s for s in by_maker.get("direct", []) if turn is not None and s > turn]
    if late:
        picked[late[len(late) // 2]] = "the model again, retrained after the change"
    elif relearning:
        picked[relearning[-1]] = "the solver again, after the change"
    if len(picked) < MOMENTS and direct and all(abs(direct[0] - s) > history.last_step / 12 for s in picked):
        picked[direct[0]] = "the start"
    for step in learned[::-1]:
        if len(picked) >= MOMENTS:
            break
        if all(abs(step - s) > history.last_step / 12 for s in picked):
            picked[step] = "still the model"
    return [Moment(step, picked[step]) for step in sorted(picked)][:MOMENTS]


def switching(figure: Figure, folder: RunFolder) -> None:
    """Draws the picture. Raises ValueError when the views or the history are too few to tell a story."""
    shown, spec = moments(folder), panels.chosen(folder)
    if len(shown) < 2 or spec is None:
        raise ValueError("fewer than two views at different phases")
    looks = [fields.look(folder.view(m.step), spec) for m in shown]
    if looks[0].form != "image":
        raise ValueError(f"the view {spec.name!r} is no two-dimensional field")
    lower = figure_parts(figure, folder, shown, looks)
    name = _lift(folder)
    if name is None:
        lower[1].set_visible(False)
        lower[2].set_visible(False)
        return
    low, high = curves.close_up(folder, periods=5.0)
    _window(lower[1], folder, name, low, high, "The model takes over")
    low, high, title = _second_window(folder)
    _window(lower[2], folder, name, low, high, title)
    handles = [palette.line_handle("all-direct run", color=REFERENCE, linewidth=3.4)] if folder.reference else []
    if any(s.last > low and s.first < high for s in folder.history.discarded):
        handles.append(palette.line_handle("undone", color=COLOURS["learned"], linewidth=1.3, linestyle=(0, (1, 1))))
    if handles:
        palette.legend_above(lower[1], handles)


def figure_parts(figure: Figure, folder: RunFolder, shown: list[Moment], looks: list[Look]) -> tuple[Axes, ...]:
    """Panels on top, timeline in the middle; returns the timeline and the two axes below it."""
    rows = (len(shown) + 1) // 2
    tall = looks[0].values.shape[0] / looks[0].values.shape[1] * 0.5 * WIDTH + 0.35
    grid = figure.add_gridspec(rows + 2, 2, height_ratios=[*([tall] * rows), 0.62, 1.75])
    scale = fields.scale_of(looks[min(1, len(looks) - 1)].values, 0.99)
    for i, (moment, seen) in enumerate(zip(shown, looks, strict=True)):
        axes = figure.add_subplot(grid[i // 2, i % 2])
        _, colour = panels.whose(folder, moment.step)
        panels.image(axes, seen, scale)
        panels.frame(axes, colour)
        _badge(axes, i, colour, 0.014, 1.075, axes.transAxes)
        axes.set_title(f"      step {moment.step:,}: {moment.text}", fontweight="normal", fontsize=9.5)
    strip = figure.add_subplot(grid[rows, :])
    palette.lanes(strip, folder.history, 0.0, 1.0)
    room, free = 0.02 * folder.history.last_step, 0.0
    for i, moment in enumerate(shown):
        _, colour = panels.whose(folder, moment.step)
        at = max(float(moment.step), free)
        strip.plot([moment.step, moment.step, at], [0.0, 1.0, 1.45], color=INK, linewidth=1.0, zorder=5)
        _badge(strip, i, colour, at, 1.45, strip.transData)
        free = at + room
    for rewind in folder.history.rewinds:
        place: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8, "color": INK}
        strip.annotate("rewind", (rewind.to, 1.45), (-4, 0), textcoords="offset points", **place)
        strip.plot(
            [rewind.to, rewind.found], [1.45, 1.45], color=INK, linewidth=2.2, solid_capstyle="butt", clip_on=False
        )
    strip.set_ylim(0, 1.9)
    strip.set_yticks([])
    strip.spines["left"].set_visible(False)
    palette.steps_axis(strip, folder.history)
    palette.legend_above(strip, palette.maker_handles(folder.history))
    strip.set_title("Who made each step")
    return strip, figure.add_subplot(grid[rows + 1, 0]), figure.add_subplot(grid[rows + 1, 1])


def _badge(axes: Axes, index: int, colour: str, x: float, y: float, transform: object) -> None:
    box: dict[str, Any] = {"boxstyle": "circle,pad=0.22", "facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
    style: dict[str, Any] = {
        "color": "white",
        "fontweight": "bold",
        "fontsize": 9,
        "ha": "center",
        "va": "center",
    }
    axes.text(x, y, "abcd"[index], transform=transform, bbox=box, clip_on=False, zorder=9, **style)


def _lift(folder: RunFolder) -> str | None:
    """The observable to draw: the one that swings most about its mean."""
    best, most = None, -1.0
    for name in statistics.names(folder.observed):
        _, _, values = statistics.series(folder.observed, name)
        later = values[len(values) // 3 :]
        swing = float(np.std(later)) / (abs(float(np.mean(later))) + 1e-12)
        if swing > most:
            best, most = name, swing
    return best


def _second_window(folder: RunFolder) -> tuple[float, float, str]:
    """Around the first rewind or change of a control, else the end of the run."""
    history, period = folder.history, curves.period(folder)
    if history.rewinds:
        rewind = history.rewinds[0]
        return rewind.to - 2.5 * period, rewind.found + 4.5 * period, "The flow changes: audit, rewind, solver"
    if changed := curves.changes(folder):
        return changed[0][0] - 3 * period, changed[0][0] + 4 * period, "The flow changes"
    last = float(history.last_step)
    return max(0.0, last - 7 * period), last, "The end of the run"


def _window(axes: Axes, folder: RunFolder, name: str, low: float, high: float, title: str) -> None:
    palette.shade(axes, folder.history)
    curves.series(axes, folder, name, width=1.5)
    steps, _, values = statistics.series(folder.superseded, name)
    inside = (steps >= low) & (steps <= high)
    axes.plot(steps[inside], values[inside], color=COLOURS["learned"], linewidth=1.3, linestyle=(0, (1, 1)), zorder=4)
    for step, label in curves.changes(folder):
        if low < step < high:
            axes.axvline(step, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
            place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "top", "color": INK}
            axes.annotate(label, (step, 1.0), (4, 2), xycoords=("data", "axes fraction"), **place)
    for rewind in folder.history.rewinds:
        if low < rewind.found < high:
            low_place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "bottom", "color": MUTED}
            axes.axvline(rewind.found, color=COLOURS["audit"], linewidth=1.2)
            axes.annotate("audit", (rewind.found, 0.0), (3, 2), xycoords=("data", "axes fraction"), **low_place)
    palette.steps_axis(axes, folder.history)
    axes.set_xlim(low, high)
    steps, _, values = statistics.series(folder.observed, name)
    near = values[(steps >= low) & (steps <= high)]
    if near.size and (spread := float(np.ptp(near))) > 0:
        axes.set_ylim(near.min() - 0.12 * spread, near.max() + 0.22 * spread)
    axes.set_title(f"{title}: {name}")
