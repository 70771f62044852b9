"""Makes a run folder that looks like a coupled vortex street: known signals, a hidden gust, a rewind, failed audit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from coupler.trace import Observed, Record, Recorder

PERIOD = 24.0
"""Lift period in coupling steps before the gust."""
GUST_FACTOR = 1.15
TOLERANCE = 0.02
DT = 0.5
DIRECT_S, LEARNED_S = 0.03, 0.002


class Street:
    """Travelling Lamb-Oseen vortices behind a cylinder in a 2-D velocity field of shape (2, ny, nx)."""

    def __init__(self, ny: int, nx: int) -> None:
        self.ny, self.nx = ny, nx
        self.d = ny / 6.5
        y, x = np.mgrid[0:ny, 0:nx].astype(float)
        self.x, self.y = x - 0.16 * nx, y - ny / 2
        self.solid = self.x**2 + self.y**2 < (self.d / 2) ** 2

    def velocity(self, cycles: float, inflow: float = 1.0) -> np.ndarray:
        """Velocity when `cycles` lift periods have passed."""
        u, v = np.full((self.ny, self.nx), inflow), np.zeros((self.ny, self.nx))
        wavelength = 4.6 * self.d
        newest = math.floor(2 * cycles)
        for k in range(newest, newest - int(2 * self.nx / wavelength) - 3, -1):
            age = cycles - k / 2
            sign = 1.0 if k % 2 else -1.0
            cx, cy = 0.7 * self.d + wavelength * age * (1 - 0.35 * math.exp(-2 * age)), -sign * 0.55 * self.d
            core2 = (0.42 * self.d) ** 2 * (1 + 0.5 * age)
            strength = 3.0 * inflow * self.d * math.tanh(3 * age) * sign * math.exp(-0.12 * age)
            dx, dy = self.x - cx, self.y - cy
            r2 = dx**2 + dy**2 + 1e-9
            swirl = strength / (2 * math.pi * r2) * (1 - np.exp(-r2 / core2))
            u, v = u - swirl * dy, v + swirl * dx
        shelter = 1 - 0.8 * np.exp(-((self.y / (0.6 * self.d)) ** 2)) * (self.x > 0) * np.exp(-self.x / (3 * self.d))
        field = np.stack([u * shelter, v])
        field[:, self.solid] = 0.0
        return field.astype(np.float32)


class _Writer:
    """Plays the driver: appends decisions and observables, keeps the phase of the shedding."""

    def __init__(self, folder: Path, gust_step: int | None) -> None:
        self.trace = Recorder(folder / "trace.msgpack")
        self.observables = Recorder(folder / "observables.msgpack")
        self.gust_step, self.step, self.wall, self.decision = gust_step, 0, 1.4, 0
        self.shift: dict[int, float] = {0: 0.0}
        self.origins: dict[int, int] = {0: 0}
        self.makers: dict[int, str] = {0: "direct"}

    def control(self, step: int) -> float:
        return GUST_FACTOR if self.gust_step is not None and step >= self.gust_step else 1.0

    def cycles(self, step: int) -> float:
        after = 0 if self.gust_step is None else max(0, step - self.gust_step)
        return (step - after + GUST_FACTOR * after) / PERIOD

    def advance(self, n: int, action: str, phase: str, **more: Any) -> None:
        version = int(more.get("version", 0))
        stall = 6e-5 * (1 + 0.5 * math.sin(self.step)) if action == "direct" else 0.0011
        self.wall += (n * DIRECT_S if action == "direct" else 0.001 * n) + stall
        self.decision += 1
        self.trace.write(
            Record(
                step=self.step,
                time=self.step * DT,
                dt=DT,
                action=action,
                phase=phase,
                to_step=self.step + n,
                tolerance=TOLERANCE,
                stall_s=stall,
                wall_s=self.wall,
                decision=self.decision,
                controls={"inflow": self.control(self.step)},
                **more,
            )
        )
        for _ in range(n):
            drift = 4e-6 * PERIOD if version else 0.0
            self.shift[self.step + 1] = self.shift[self.step] + drift
            self.step += 1
            self.origins[self.step], self.makers[self.step] = version, phase
            stale = version and self.gust_step is not None and self.step > self.gust_step and version < 5
            inflow = 1.0 if stale else self.control(self.step - 1)
            lift, drag = series(self.cycles(self.step) + self.shift[self.step] / PERIOD, inflow, self.step)
            self.observables.write(
                Observed(step=self.step, time=self.step * DT, origin=version, values={"lift": lift, "drag": drag})
            )

    def rewind(self, to: int, error: float) -> None:
        self.wall += 0.004
        self.trace.write(
            Record(
                step=self.step,
                time=self.step * DT,
                dt=DT,
                action="rewind",
                to_step=to,
                tolerance=TOLERANCE,
                step_error=error,
                reason=f"audit found a step error of {error:.3g}",
                wall_s=self.wall,
                controls={"inflow": self.control(self.step)},
            )
        )
        self.step = to

    def learned(self, steps: int, version: int, audits: bool = True) -> None:
        """Learned phase with a blended hand-over and audits whose spacing doubles, until `steps` are done."""
        end, spacing, horizon = self.step + steps, 24, 12
        for i in range(3):
            self.advance(1, "learned", "learned", version=version, weight=(i + 1) / 4, bound=0.006, reason="blend")
        since, error = 0, math.nan
        while self.step < end:
            h = min(horizon, end - self.step)
            bound = 0.008 + 0.004 * math.sin(self.step / 70) ** 2
            self.advance(h, "learned", "learned", version=version, bound=bound, residual=0.004, step_error=error)
            error, since = math.nan, since + h
            if audits and since >= spacing and self.step + 2 < end:
                self.advance(1, "direct", "audit", reason="audit due")
                error, since, spacing = 0.0015 + 0.001 * math.sin(self.step) ** 2, 0, min(2 * spacing, 192)

    def close(self) -> None:
        self.trace.close()
        self.observables.close()


def series(cycles: float, inflow: float, step: int) -> tuple[float, float]:
    """Lift (one swing a period, with a harmonic) and drag (two swings a period) with the start-up of the street."""
    grown = 1 / (1 + math.exp(-(step - 90) / 18))
    angle = 2 * math.pi * cycles
    lift = 0.33 * inflow**2 * grown * (math.sin(angle) + 0.05 * math.sin(3 * angle))
    return lift, inflow**2 * (1.33 + 0.012 * grown * math.sin(2 * angle + 0.4) + 0.4 * math.exp(-step / 25))


def make(
    folder: Path,
    *,
    shape: tuple[int, int] = (48, 128),
    gust: bool = True,
    reference: bool = True,
    views_every: int = 48,
    scale: int = 1,
) -> dict[str, Any]:
    """Writes the folder and returns the facts a launcher would hand to `summarise`.

    Args:
        folder: Made when missing.
        shape: Cells (ny, nx).
        gust: Whether the inflow rises, unannounced, and the run rewinds.
        reference: Whether there is an all-direct run to compare with.
        views_every: Coupling steps between views.
        scale: Multiplies the length of the learned phases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    w = _Writer(folder, 260 + 360 * scale + 20 if gust else None)
    for n, phase in ((170, "direct"), (90, "trial")):
        for _ in range(n):
            w.advance(1, "direct", phase, bound=math.inf if phase == "direct" else 0.011, residual=0.05)
    w.learned(360 * scale, 3)
    if gust:
        verified = w.step
        w.learned(45, 3, audits=False)
        w.advance(1, "direct", "audit", reason="audit due")
        w.rewind(verified, 0.31)
        for n, phase in ((200, "direct"), (50, "trial")):
            for _ in range(n):
                w.advance(1, "direct", phase, reason="relearning")
        w.learned(330 * scale, 5)
    w.close()
    street = Street(*shape)
    steps = range(views_every, w.step + 1, views_every)
    _views(folder / "views", street, w, steps, coupled=True)
    (folder / "fields.json").write_text(json.dumps(_fields(shape)))
    (folder / "case.toml").write_text('[case]\nname = "vortex_street" # <resolved>\n\n[simulation]\ndiameter = 7\n')
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "server.log").write_text("server up\npromoted version 3\n")
    (folder / "logs" / "simulation.log").write_text("4 ranks up\nstep 0\nall done\n")
    if reference:
        _reference(folder / "reference", street, w, steps)
    return _facts(w, reference)


def _views(folder: Path, street: Street, w: _Writer, steps: range, coupled: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    half = street.nx // 2
    noise = np.random.default_rng(7)
    for step in steps:
        shift = w.shift[step] / PERIOD if coupled else 0.0
        field = street.velocity(w.cycles(step) + shift, w.control(step - 1))
        origin = w.origins[step] if coupled else 0
        if origin:
            waves = street.x / street.d * noise.uniform(1, 2) + street.y / street.d * noise.uniform(1, 2)
            field += (0.006 * np.sin(waves) * np.exp(-((street.y / street.d / 2) ** 2)) * ~street.solid).astype("<f4")
        for rank, (low, high) in enumerate(((0, half), (half, street.nx))):
            block = {"velocity": field[:, :, low:high], "offset.velocity": np.array([0, 0, low]), "origin": origin}
            np.savez(folder / f"{step:08d}.rank{rank}.npz", **block)


def _reference(folder: Path, street: Street, w: _Writer, steps: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    out = Recorder(folder / "observables.msgpack")
    for step in range(1, w.step + 1):
        lift, drag = series(w.cycles(step), w.control(step - 1), step)
        out.write(Observed(step=step, time=step * DT, origin=0, values={"lift": lift, "drag": drag}))
    out.close()
    _views(folder / "views", street, w, steps, coupled=False)
    with (folder / "errors.msgpack").open("wb") as file:
        for step in range(4, w.step + 1, 4):
            shift = w.shift[step]
            aligned = 0.0004 + (0.003 if shift else 0.0) * (1 + 0.3 * math.sin(step / 9))
            error = math.hypot(aligned, 2 * math.pi * shift / PERIOD) if shift else 1e-7
            row = {"step": step, "time": step * DT, "origin": w.origins[step], "error": error}
            file.write(msgpack.packb(row | {"shift": shift, "aligned": aligned if shift else 1e-7}))


def _fields(shape: tuple[int, int]) -> dict[str, Any]:
    def spec(name: str, dtype: str, size: list[int], unit: str, kind: str, role: str) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": size, "unit": unit, "kind": kind, "role": role}

    return {
        "fields": [
            spec("populations", "<f8", [9, *shape], "1", "cell", "state"),
            spec("inflow", "<f8", [], "m/s", "scalar", "control"),
            spec("lift", "<f8", [], "1", "scalar", "observable"),
            spec("drag", "<f8", [], "1", "scalar", "observable"),
        ],
        "view": [spec("velocity", "<f4", [2, *shape], "m/s", "cell", "state")],
    }


def _facts(w: _Writer, reference: bool) -> dict[str, Any]:
    return {
        "status": "finished",
        "case": "vortex_gust",
        "seed": 7,
        "mode": "act",
        "rung": "local",
        "ranks": 2,
        "tolerance": TOLERANCE,
        "time": {"wall_s": w.wall + 0.3, "reference_wall_s": w.step * DIRECT_S if reference else None, "train_s": 9.5},
        "samples": {
            "produced": 900,
            "admitted": 860,
            "dropped": 36,
            "in_flight": 3,
            "retained": 1,
            "superseded": 46,
        },
        "models": [
            {"version": 1, "kind": "affine", "trained_on": 60, "promoted_at_step": 96},
            {"version": 3, "kind": "affine", "trained_on": 150, "promoted_at_step": 190},
            {"version": 5, "kind": "network", "trained_on": 170, "promoted_at_step": 810},
        ],
        "horizon_error": {"bound": 0.012, "measured": 0.0097, "coverage": 0.914, "n": 186},
        "changes": [] if w.gust_step is None else [{"step": w.gust_step, "announced": False}],
        "ledger": {"integrating": 17.4, "waiting for advice": 0.4, "packing and sending": 0.1, "adopting": 0.2},
    }
