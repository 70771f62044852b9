"""Draws all pictures of a run folder, or says why one could not be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from launch.report import curves, hero, judgement, palette, panels, statistics
from launch.report.rundir import RunFolder

Draw = Callable[[Figure, RunFolder], None]


@dataclass(frozen=True, slots=True)
class Gallery:
    """What was drawn.

    Attributes:
        pictures: PNG by name, in the order of the page.
        lacking: Why each of the others is not there, one sentence by name.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)


def draw(folder: RunFolder) -> Gallery:
    """Writes the PNGs into the run folder. Never raises for what a run lacks: a torn run has a report too."""
    gallery = Gallery()
    for name, why_not, size, how in _plan(folder):
        path = folder.path / f"{name}.png"
        if why_not:
            gallery.lacking[name] = why_not
            path.unlink(missing_ok=True)
            continue
        try:
            width, height = size(folder)
            palette.picture(path, width, height, lambda figure, how=how: how(figure, folder))  # type: ignore[misc]
            gallery.pictures[name] = path
        except Exception as error:  # One picture that fails must not cost the report: the page names it.
            gallery.lacking[name] = f"{name}.png could not be drawn: {error}"
            path.unlink(missing_ok=True)
    return gallery


Size = Callable[[RunFolder], tuple[float, float]]


def _plan(folder: RunFolder) -> list[tuple[str, str, Size, Draw]]:
    """Name, reason against (empty for none), size and function of each picture."""
    no_trace = "" if folder.history.kept else "the trace holds no steps"
    no_views = "" if folder.views else "the run left no views of its fields"
    switched = "" if folder.history.first_handover is not None else "no model took over in this run"
    rows = min(len(statistics.names(folder.observed)), curves.MAX_OBSERVABLES)
    no_series = "" if rows else "the run left no observables"
    judged = folder.errors or folder.history.audits or any(r.action == "learned" for r in folder.records)
    no_errors = "" if judged else "no forecast was adopted, audited or compared"
    controls = {name for r in folder.records for name in r.controls}
    judged_dt = bool(judgement.judgement(folder).get("curves"))
    wide = palette.WIDTH
    return [
        (
            "switching",
            no_trace or no_views or no_series or switched,
            lambda _: (hero.WIDTH, hero.HEIGHT),
            hero.switching,
        ),
        ("fields", no_views, lambda f: (wide, panels.height(f)), panels.compare),
        ("timeline", no_trace, lambda _: (wide, 2.5), curves.timeline),
        ("error", no_trace or no_errors, lambda _: (wide, 3.6), curves.error),
        ("observables", no_trace or no_series, lambda _: (wide, 0.7 + 2.0 * rows), curves.observables),
        ("dt", no_trace, lambda _: (wide, 1.9 + 1.2 * min(len(controls), 4)), curves.dt),
        *([("judgement", "", lambda _: (wide, 3.4), judgement.dt)] if judged_dt else []),
        ("time", no_trace, lambda _: (wide, 2.4), curves.time),
    ]
