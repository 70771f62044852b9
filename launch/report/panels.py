"""Pictures of fields: the coupled run's state against the all-direct one at the same step."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from launch.report import fields, palette
from launch.report.fields import Look
from launch.report.palette import COLOURS, INK, REFERENCE
from launch.report.rundir import RunFolder, Shown

BODY = "#8a939d"


def compared_step(folder: RunFolder) -> int | None:
    """The step to show; None without views.

    The last learned one that the reference has too, else the last that both have, else the last one there is.
    """
    both = [s for s in folder.views if s in folder.reference_views]
    candidates = both or list(folder.views)
    learned = [s for s in candidates if folder.history.maker_at(s) in ("learned", "hand-over")]
    return max(learned or candidates, default=None)


def chosen(folder: RunFolder) -> Shown | None:
    """The field of the views that shows most."""
    step = compared_step(folder)
    return None if step is None else fields.choose(folder.viewed, folder.view(step).arrays)


def height(folder: RunFolder) -> float:
    """Height in inches that suits the shape of the field."""
    step, spec = compared_step(folder), chosen(folder)
    if step is None or spec is None:
        return 3.0
    seen = fields.look(folder.view(step), spec)
    if seen.form == "few":
        return 1.2 + 1.5 * min(len(seen.values), 4)
    if seen.form != "image":
        return 5.2
    rows, columns = seen.values.shape
    return float(np.clip(1.4 + 2 * 0.43 * palette.WIDTH * rows / columns, 3.2, 9.0))


def compare(figure: Figure, folder: RunFolder) -> None:
    """Direct, learned and difference at one step; series over all views where a state has only a few values."""
    step, spec = compared_step(folder), chosen(folder)
    if step is None or spec is None:
        raise ValueError("there are no views to show")
    found = fields.look(folder.view(step), spec)
    truth = fields.look(folder.reference_view(step), spec) if step in folder.reference_views else None
    if found.form == "few":
        _few(figure, folder, spec)
    elif found.form == "image":
        _images(figure, folder, step, found, truth)
    else:
        _curves(figure, folder, step, found, truth)


def whose(folder: RunFolder, step: int) -> tuple[str, str]:
    """Name and colour of who made the state at a step."""
    maker = folder.history.maker_at(step) or "direct"
    version = next((s.version for s in folder.history.kept if s.first < step <= s.last), 0)
    names = {"learned": f"learned, model version {version}", "hand-over": "hand-over, blended"}
    return names.get(maker, palette.NAMES[maker]), COLOURS[maker]


def image(axes: Axes, seen: Look, scale: float, colours: str = "RdBu_r") -> Any:
    """Draws an image without ticks, bodies in grey; returns it for a colour bar."""
    values: NDArray[np.float64] = seen.values
    low = -scale if seen.signed else float(np.nanmin(values))
    high = scale if seen.signed else float(np.nanmax(values))
    axes.set_facecolor(BODY)
    drawn = axes.imshow(
        values,
        origin="lower",
        cmap=colours if seen.signed else "cividis",
        vmin=low,
        vmax=high,
        interpolation="bilinear" if min(values.shape) > 24 else "nearest",
        interpolation_stage="data",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
    return drawn


def frame(axes: Axes, colour: str) -> None:
    """Edges in the colour of the maker."""
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=2.0)


def _images(figure: Figure, folder: RunFolder, step: int, found: Look, truth: Look | None) -> None:
    label, colour = whose(folder, step)
    scale = fields.scale_of(found.values)
    if truth is None:
        axes = figure.add_subplot()
        drawn = image(axes, found, scale)
        frame(axes, colour)
        axes.set_title(f"{label}, step {step:,}")
        figure.colorbar(drawn, ax=axes, label=_named(found), shrink=0.8)
        return
    grid = figure.subplots(2, 2)
    drawn = image(grid[0, 0], truth, scale)
    frame(grid[0, 0], COLOURS["direct"])
    _bar(figure, drawn, grid[0, 0], "")
    grid[0, 0].set_title(f"all-direct run, step {step:,}")
    image(grid[0, 1], found, scale)
    frame(grid[0, 1], colour)
    grid[0, 1].set_title(f"coupled run: {label}, step {step:,}")
    _bar(figure, drawn, grid[0, 1], _named(found))
    difference = Look("image", "difference", found.unit, found.values - truth.values, signed=True)
    low, spread = fields.scale_of(difference.values), scale
    if not found.signed:
        spread = 0.5 * float(np.nanmax(found.values) - np.nanmin(found.values))
    drawn = image(grid[1, 0], difference, low, "PuOr_r")
    frame(grid[1, 0], palette.RULE)
    grid[1, 0].set_title(_difference_title(difference, spread / low))
    _bar(figure, drawn, grid[1, 0], "")
    _profile(grid[1, 1], found, truth, colour)


def _difference_title(difference: Look, finer: float) -> str:
    if not np.nanmax(np.abs(difference.values)) > 0.0:
        return "difference: none"
    return f"difference, colours {finer:,.0f} times finer" if finer >= 1.5 else "difference, on a scale of its own"


def _named(seen: Look) -> str:
    return f"{seen.name}, {seen.unit}" if seen.unit else seen.name


def _bar(figure: Figure, drawn: Any, axes: Axes, label: str) -> None:
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.015, 0.0, 0.02, 1.0)), label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.label.set_fontsize(7.5)


def _profile(axes: Axes, found: Look, truth: Look, colour: str) -> None:
    row = found.values.shape[0] // 2
    axes.plot(truth.values[row], color=REFERENCE, linewidth=3.4, label="all-direct")
    axes.plot(found.values[row], color=colour, linewidth=1.2, label="coupled")
    if found.signed:
        axes.axhline(0.0, color=palette.FAINT, zorder=0)
    axes.set_box_aspect(found.values.shape[0] / found.values.shape[1])
    axes.set_title("along the centre line")
    axes.set_xlim(0, found.values.shape[1])
    axes.set_xlabel("cell")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=2)


def _curves(figure: Figure, folder: RunFolder, step: int, found: Look, truth: Look | None) -> None:
    label, colour = whose(folder, step)
    top, bottom = figure.subplots(2, 1, height_ratios=[2, 1]) if truth else (figure.add_subplot(), None)
    if found.form == "points":
        if truth is not None:
            top.plot(*truth.values.T, "o", color=REFERENCE, markersize=7, label="all-direct run")
        top.plot(*found.values.T, "o", color=colour, markersize=3, label=f"coupled run: {label}")
        top.set_aspect("equal", adjustable="datalim")
        apart = None if truth is None else np.linalg.norm(found.values - truth.values, axis=1)[None]
    else:
        for i, curve in enumerate(found.values):
            if truth is not None:
                top.plot(truth.values[i], color=REFERENCE, linewidth=3.2, label="all-direct run" if i == 0 else None)
            top.plot(curve, color=colour, label=f"coupled run: {label}" if i == 0 else None)
        apart = None if truth is None else found.values - truth.values
    top.set_title(f"{_named(found)}, step {step:,}")
    top.legend(loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=2)
    if bottom is not None and apart is not None:
        bottom.plot(apart.T, color=INK, linewidth=1.0)
        bottom.axhline(0.0, color=palette.RULE, zorder=0)
        bottom.set_title("distance of the points" if found.form == "points" else "difference")
        bottom.set_xlabel("particle" if found.form == "points" else "cell")


def _few(figure: Figure, folder: RunFolder, spec: Shown) -> None:
    """A state of a few numbers: each as a series over the views."""
    found = [(step, fields.look(folder.view(step), spec).values) for step in folder.views]
    truth = [(step, fields.look(folder.reference_view(step), spec).values) for step in folder.reference_views]
    count = min(len(found[0][1]), 4)
    grid = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for i, axes in enumerate(grid):
        # No lines: views lie many steps apart, and a line would show a motion that was never there.
        if truth:
            axes.scatter([s for s, _ in truth], [v[i] for _, v in truth], s=60, color=REFERENCE, linewidths=0)
        axes.scatter([s for s, _ in found], [v[i] for _, v in found], s=14, c=[whose(folder, s)[1] for s, _ in found])
        unit = "" if spec.unit == "1" else f", {spec.unit}"
        axes.set_title(f"{spec.name}[{i}]{unit}" if count > 1 else f"{spec.name}{unit}")
        palette.steps_axis(axes, folder.history)
    for axes in grid[:-1]:
        axes.set_xlabel("")
    handles = palette.maker_handles(folder.history)
    if truth:
        dot = {"marker": "o", "markersize": 7.5, "linestyle": "none"}
        handles.append(palette.line_handle("all-direct run", color=REFERENCE, **dot))
    palette.legend_above(grid[0], handles)
