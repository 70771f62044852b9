"""What a person would look at in a view: an image, curves or points, whatever the fields allow. Pure.

A 2-D velocity becomes its vorticity, which shows a wake better than the speed does. The longer axis lies horizontally
and carries component 0, the usual layout of a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from launch.report.rundir import Shown, View
from schemas.fields import Array

Floats = NDArray[np.float64]
Form = Literal["image", "curves", "points", "few"]

FEW = 16
"""Fields with no more values than this are shown as series over the steps."""


@dataclass(frozen=True, slots=True)
class Look:
    """A field made ready to draw.

    Attributes:
        form: `image` (ny, nx); `curves` (components, n); `points` (n, 2); `few` (n,).
        name: What it is, such as "vorticity".
        unit: Unit of the values, "" when dimensionless.
        values: float64; NaN where there is nothing, such as inside a body.
        signed: Whether zero is the natural middle of the colours.
    """

    form: Form
    name: str
    unit: str
    values: Floats
    signed: bool = False


def choose(viewed: tuple[Shown, ...], arrays: Mapping[str, Array]) -> Shown | None:
    """The field that shows most: a 2-D one before all others, a vector before a scalar."""
    named = {f.name: f for f in viewed}
    present = [named.get(name) or Shown(name, "<f4", a.shape) for name, a in arrays.items()]
    order = {"image": 0, "curves": 1, "points": 1, "few": 2}

    def rank(spec: Shown) -> tuple[int, int]:
        form, components = _form(spec.shape, spec.kind)
        return order[form], -components

    return min(present, key=rank, default=None)


def look(view: View, spec: Shown) -> Look:
    """Prepares one field of a view for drawing."""
    values = np.asarray(view.arrays[spec.name], np.float64)
    unit = "" if spec.unit == "1" else spec.unit
    form, _ = _form(values.shape, spec.kind)
    if form == "few":
        return Look("few", spec.name, unit, values.ravel())
    if form == "points":
        return Look("points", spec.name, unit, values.reshape(len(values), -1)[:, :2])
    if form == "curves":
        return Look("curves", spec.name, unit, values.reshape(-1, values.shape[-1])[:4])
    return _image(values, spec.name, unit)


def _form(shape: tuple[int, ...], kind: str) -> tuple[Form, int]:
    """How to draw an array of this shape, and the number of components it has."""
    if int(np.prod(shape)) <= FEW:
        return "few", 1
    if kind == "particle":
        return ("points", shape[1]) if len(shape) == 2 and shape[1] >= 2 else ("curves", 1)
    long = [n for n in shape if n > 4]
    if len(long) < 2:
        return "curves", 1
    return "image", max(1, int(np.prod([n for n in shape if n <= 4])))


def _image(values: Floats, name: str, unit: str) -> Look:
    """Vorticity of a 2-D vector, speed of another one, the middle plane across the shortest axis of a volume."""
    if values.ndim > 2 and values.shape[-1] <= 4 < values.shape[0]:
        values = np.moveaxis(values, -1, 0)
    components = values.shape[0] if values.ndim > 2 and values.shape[0] <= 4 else 0
    while values.ndim > 2 + bool(components):
        first = int(bool(components))
        shortest = first + int(np.argmin(values.shape[first:]))
        values = values.take(values.shape[shortest] // 2, axis=shortest)
    if values.shape[-2] > values.shape[-1]:
        values = np.swapaxes(values, -1, -2)
    if components == 2:
        return Look(
            "image",
            "vorticity" if name == "velocity" else f"vorticity of {name}",
            f"{unit} per cell".strip(),
            vorticity(values),
            signed=True,
        )
    if components:
        return Look("image", f"magnitude of {name}", unit, np.sqrt(np.sum(values**2, axis=0)))
    return Look("image", name, unit, values, signed=bool(np.nanmin(values) < 0 < np.nanmax(values)))


def vorticity(velocity: Floats) -> Floats:
    """dv/dx - du/dy by central differences on unit cells, NaN in and next to resting bodies.

    Args:
        velocity: Shape (2, ny, nx); component 0 along x, the last axis.
    """
    turning: Floats = np.gradient(velocity[1], axis=1) - np.gradient(velocity[0], axis=0)
    body = np.all(velocity == 0.0, axis=0)
    if body.mean() < 0.25:
        # The jump to exact zero at a wall on the lattice is no shear of the flow.
        near = body.copy()
        near[1:] |= body[:-1]
        near[:-1] |= body[1:]
        near[:, 1:] |= body[:, :-1]
        near[:, :-1] |= body[:, 1:]
        turning[near] = np.nan
    return turning


def scale_of(values: Floats, quantile: float = 0.995) -> float:
    """Half-width of a symmetric colour scale: almost the largest magnitude, so that single cells do not set it."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.quantile(finite, quantile)) or 1.0 if finite.size else 1.0
