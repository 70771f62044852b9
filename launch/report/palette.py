"""One look for all pictures: colours, type, and the few marks that several of them share.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness tell apart. Blue hues mean that
the solver integrates, orange hues that the model leads; the audit, a check, has a colour of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from launch.report.history import MAKERS, History, Maker, merged

INK = "#1c2733"
MUTED = "#5d6875"
RULE = "#c9d0d8"
FAINT = "#e9edf1"
REFERENCE = "#b4bcc6"
COLOURS: dict[Maker, str] = {
    "direct": "#0072B2",
    "trial": "#56B4E9",
    "audit": "#CC79A7",
    "hand-over": "#F6CF87",
    "learned": "#E69F00",
}
NAMES: dict[Maker, str] = {
    "direct": "direct",
    "trial": "direct, model on trial",
    "audit": "audit",
    "hand-over": "hand-over (blended)",
    "learned": "learned",
}
WIDTH = 10.0
"""Width of a picture in inches."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.0,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.6,
    "legend.borderaxespad": 0.0,
    "lines.linewidth": 1.2,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def picture(path: Path, width: float, height: float, draw: Callable[[Figure], None]) -> Path:
    """Draws into a new figure of the common style and writes it as PNG; no global state of pyplot is touched."""
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        figure = Figure(figsize=(width, height), dpi=150, layout=layout)
        draw(figure)
        figure.savefig(path, metadata={"Software": None})
    return path


def lanes(axes: Axes, history: History, low: float, high: float) -> None:
    """Fills a band of the axes with the colour of who advanced each step."""
    stretches = merged(history.kept)
    for maker in MAKERS:
        spans = [(s.first, s.steps) for s in stretches if s.maker == maker]
        axes.broken_barh(spans, (low, high - low), facecolors=COLOURS[maker], linewidth=0, antialiased=False)


def shade(axes: Axes, history: History) -> None:
    """Tints the background of learned stretches. Audits are too short to leave a gap that reads."""
    spans: list[list[int]] = []
    for s in history.kept:
        if s.maker not in ("learned", "hand-over", "audit"):
            continue
        if spans and spans[-1][1] == s.first:
            spans[-1][1] = s.last
        elif s.maker != "audit":
            spans.append([s.first, s.last])
    for first, last in spans:
        axes.axvspan(first, last, color=COLOURS["learned"], alpha=0.10, linewidth=0, zorder=0)


def traced(axes: Axes, history: History, steps: Sequence[int], values: NDArray[np.float64], width: float = 1.2) -> None:
    """Draws a series in the colour of who advanced each step."""
    if not len(steps):
        return
    at = np.asarray(steps)
    for stretch in merged(history.kept):
        first, last = np.searchsorted(at, [stretch.first, stretch.last])
        piece = slice(int(first), int(last) + 1)
        zorder = 3.2 if stretch.maker == "audit" else 3.0
        axes.plot(at[piece], values[piece], color=COLOURS[stretch.maker], linewidth=width, zorder=zorder)


def maker_handles(history: History) -> list[Any]:
    """Legend entries of the makers that occur."""
    present = {s.maker for s in history.kept}
    return [Patch(facecolor=COLOURS[m], linewidth=0, label=NAMES[m]) for m in MAKERS if m in present]


def line_handle(label: str, **style: Any) -> Any:
    """Legend entry of a line."""
    return Line2D([], [], label=label, **style)


def legend_above(axes: Axes, handles: Iterable[Any], columns: int = 8) -> None:
    """A legend on the line of the title, at the right."""
    axes.legend(handles=list(handles), loc="lower right", bbox_to_anchor=(1.0, 1.015), ncols=columns)


def percent_axis(axis: Any) -> None:
    """Labels a relative quantity in per cent."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    axis.set_minor_formatter(NullFormatter())


def steps_axis(axes: Axes, history: History) -> None:
    """The common horizontal axis."""
    axes.set_xlim(0, max(history.last_step, 1))
    axes.set_xlabel("coupling step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
