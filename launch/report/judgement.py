"""What a simulation says about its own run against its baselines: figures, a table, and curves of dt over time.

`SelfJudged.judge` gives numbers by name, and may give `table`, a list of rows with one `run` each, and `curves`, by
name of the run `{"time": [...], "dt": [...]}`.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from launch.report import palette
from launch.report.rundir import RunFolder
from launch.report.tables import Table, compared
from launch.report.words import number


def judgement(folder: RunFolder) -> dict[str, Any]:
    """The judgement of a run; empty when there is none."""
    return dict(folder.summary.get("judgement") or {})


def tables(found: dict[str, Any]) -> list[Table]:
    """The figures, and the runs side by side."""
    figures = [(name, number(value)) for name, value in found.items() if not isinstance(value, list | dict)]
    made = [Table("Figures of merit, as the simulation gives them.", ("", ""), tuple(figures))] if figures else []
    if rows := found.get("table"):
        made.append(compared(rows))
    return made


def dt(figure: Figure, folder: RunFolder) -> None:
    """Dt over simulated time of every run that was compared."""
    axes = figure.add_subplot()
    colours = [palette.COLOURS["learned"], palette.COLOURS["direct"], palette.INK, palette.COLOURS["audit"]]
    for index, (name, curve) in enumerate(judgement(folder)["curves"].items()):
        colour = colours[index % len(colours)]
        axes.step(curve["time"], curve["dt"], where="pre", color=colour, linewidth=1.1, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("simulated time")
    axes.set_title("dt of a solver step")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=4)
