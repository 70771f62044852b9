"""Reads a run folder, whole or torn: what is there is read, what is missing or damaged is said."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import msgspec
import numpy as np

from coupler.trace import OBSERVABLES, TRACE, Observed, Record, read, trajectory
from launch.report.history import History, read_history
from schemas.fields import Array

SUMMARY = "summary.json"
CASE = "case.toml"
FIELDS = "fields.json"
ERRORS = "errors.msgpack"
REFERENCE = "reference"
VIEWS = "views"
LOGS = "logs"

T = TypeVar("T")
_NOT_FIELDS = ("origin", "time")
_ABOUT_FIELDS = ("offset.", "ids.")
_VIEW_NAME = re.compile(r"^(\d+)\.rank(\d+)\.npz$")


class TrajectoryError(msgspec.Struct, frozen=True, kw_only=True):
    """Trajectory error at one coupling step: the coupled state against the all-direct one at the same time.

    Attributes:
        step: Coupling step.
        time: Simulated time.
        origin: 0 for a directly integrated state, else the version of the model that made it.
        error: Rms difference over rms fluctuation.
        shift: Phase shift in coupling steps that makes the error smallest, None when not sought.
        aligned: Error after removing that shift.
    """

    step: int
    time: float
    origin: int
    error: float
    shift: float | None = None
    aligned: float | None = None


class Shown(msgspec.Struct, frozen=True):
    """A declared field as `fields.json` describes it; the keys of `schemas.fields.FieldSpec`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str = "1"
    kind: str = "cell"
    role: str = "state"


@dataclass(frozen=True, slots=True)
class View:
    """What a run showed at one step.

    Attributes:
        step: Coupling step.
        origin: 0 direct, else model version.
        arrays: Global array by field name, NaN where a rank's part is missing.
    """

    step: int
    origin: int
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Everything a run folder holds, as far as it can be read.

    Attributes:
        path: The folder.
        summary: `summary.json`, empty when there is none.
        case: Text of the resolved case.
        records: Decisions in the order written.
        history: The same as stretches of steps.
        observed: Observables that stayed in the trajectory.
        superseded: Observables of steps that were undone.
        reference: The same of the all-direct run, None without `--reference`.
        errors: Trajectory errors in order of steps, None without `--reference`.
        declared: Declared fields.
        viewed: Fields of the views.
        views: Files by step.
        reference_views: Files of the all-direct run by step.
        logs: Log files.
        missing: One sentence for each thing missing or damaged.
    """

    path: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    case: str = ""
    records: tuple[Record, ...] = ()
    history: History = field(default_factory=History)
    observed: tuple[dict[str, Any], ...] = ()
    superseded: tuple[dict[str, Any], ...] = ()
    reference: tuple[dict[str, Any], ...] | None = None
    errors: tuple[TrajectoryError, ...] | None = None
    declared: tuple[Shown, ...] = ()
    viewed: tuple[Shown, ...] = ()
    views: Mapping[int, tuple[Path, ...]] = field(default_factory=dict)
    reference_views: Mapping[int, tuple[Path, ...]] = field(default_factory=dict)
    logs: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()

    def view(self, step: int) -> View:
        """The coupled run's view at a step. Raises ValueError when its files cannot be read."""
        return read_view(self.views[step], step, self.viewed)

    def reference_view(self, step: int) -> View:
        """The all-direct run's view at a step. Raises ValueError when its files cannot be read."""
        return read_view(self.reference_views[step], step, self.viewed)


def read_folder(path: Path) -> RunFolder:
    """Reads a run folder. Never raises for what is missing or damaged: `missing` says it."""
    missing: list[str] = []
    summary = _json(path / SUMMARY, missing)
    described = _json(path / FIELDS, missing)
    records = tuple(_structs(path / TRACE, Record, missing))
    history = read_history(records)
    observed = _observed(path / OBSERVABLES, missing)
    kept = trajectory(iter(observed))
    in_trajectory = {record["step"]: record for record in kept}
    compared = (path / REFERENCE).is_dir()
    if history.first_handover is not None and not compared:
        missing.append("There is no all-direct reference to compare with: run with --reference to get one.")
    return RunFolder(
        path=path,
        summary=summary,
        case=_text(path / CASE, missing),
        records=records,
        history=history,
        observed=tuple(kept),
        superseded=tuple(record for record in observed if record != in_trajectory.get(record["step"])),
        reference=tuple(trajectory(iter(_observed(path / REFERENCE / OBSERVABLES, missing)))) if compared else None,
        errors=_errors(path / REFERENCE / ERRORS, missing) if compared else None,
        declared=_fields(described, "fields", missing),
        viewed=_fields(described, "view", missing),
        views=_view_files(path / VIEWS, missing),
        reference_views=_view_files(path / REFERENCE / VIEWS, missing) if compared else {},
        logs=tuple(sorted((path / LOGS).glob("*.log"))),
        missing=tuple(missing),
    )


def read_view(files: tuple[Path, ...], step: int, viewed: tuple[Shown, ...]) -> View:
    """Puts the blocks of all ranks together.

    Args:
        files: One `.npz` a rank; arrays by field name, `offset.<field>` and `ids.<field>` int64, `origin` int.
        step: Their step.
        viewed: Fields of the views, for their global shapes; a field not named here gets the hull of its blocks.

    Raises:
        ValueError: A file is torn, or a block does not fit.
    """
    blocks: dict[str, list[tuple[tuple[int, ...], Array]]] = {}
    particles: dict[str, list[tuple[Array, Array]]] = {}
    origin = 0
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as held:
                origin = int(held["origin"]) if "origin" in held else origin
                for name in (n for n in held.files if n not in _NOT_FIELDS and not n.startswith(_ABOUT_FIELDS)):
                    array = held[name]
                    if f"ids.{name}" in held:
                        particles.setdefault(name, []).append((held[f"ids.{name}"], array))
                        continue
                    offset = held.get(f"offset.{name}", np.zeros(array.ndim, np.int64))
                    blocks.setdefault(name, []).append((tuple(int(o) for o in np.ravel(offset)), array))
        except (OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{file.name} cannot be read: {error}") from error
    shapes = {f.name: f.shape for f in viewed}
    cells = {name: _assembled(name, parts, shapes.get(name)) for name, parts in blocks.items()}
    return View(step, origin, cells | {name: _by_id(parts) for name, parts in particles.items()})


def _by_id(parts: list[tuple[Array, Array]]) -> Array:
    """Particles of all ranks by rising ids, whoever held them."""
    ids, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    by_id: Array = rows[np.argsort(ids, kind="stable")]
    return by_id


def _assembled(name: str, parts: list[tuple[tuple[int, ...], Array]], shape: tuple[int, ...] | None) -> Array:
    if len(parts) == 1 and (shape is None or parts[0][1].shape == shape):
        return parts[0][1]
    hull = tuple(max(o + n for o, n in zip(axis[0], axis[1], strict=True)) for axis in _axes(parts))
    whole = np.full(shape or hull, np.nan)
    for offset, array in parts:
        window = tuple(slice(o, o + n) for o, n in zip(offset, array.shape, strict=True))
        if whole[window].shape != array.shape:
            raise ValueError(f"a block of {name!r}, shape {array.shape} at {offset}, does not fit in {whole.shape}")
        whole[window] = array
    return whole


def _axes(parts: list[tuple[tuple[int, ...], Array]]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for axis in range(parts[0][1].ndim):
        yield tuple(offset[axis] for offset, _ in parts), tuple(array.shape[axis] for _, array in parts)


def _tried(path: Path, missing: list[str], load: Callable[[Path], T], empty: T) -> T:
    if not path.exists():
        missing.append(f"{path.name} is missing{_where(path)}.")
        return empty
    try:
        return load(path)
    except (OSError, ValueError) as error:
        missing.append(f"{path.name}{_where(path)} cannot be read: {error}")
        return empty


def _where(path: Path) -> str:
    return " from the reference" if path.parent.name == REFERENCE else ""


def _text(path: Path, missing: list[str]) -> str:
    return _tried(path, missing, lambda p: p.read_text("utf-8", errors="replace"), "")


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    value: Any = _tried(path, missing, lambda p: json.loads(p.read_text("utf-8")), {})
    if not isinstance(value, dict):
        missing.append(f"{path.name} holds no JSON object.")
        return {}
    return value


def _structs(path: Path, kind: type[T], missing: list[str]) -> list[T]:
    """All records of a stream that have the right form; the rest is counted."""
    found: list[T] = []
    damaged = 0
    if not path.exists():
        missing.append(f"{path.name} is missing{_where(path)}.")
        return found
    try:
        for value in read(path):
            try:
                found.append(msgspec.convert(value, kind))
            except msgspec.ValidationError:
                damaged += 1
    except (OSError, ValueError, msgpack.UnpackException) as error:
        missing.append(
            f"{path.name}{_where(path)} is damaged after {len(found)} records: {error or type(error).__name__}"
        )
    if damaged:
        missing.append(f"{path.name}{_where(path)} holds {damaged} records of another form; they are left out.")
    return found


def _observed(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    return [msgspec.structs.asdict(record) for record in _structs(path, Observed, missing)]


def _errors(path: Path, missing: list[str]) -> tuple[TrajectoryError, ...]:
    errors = sorted(_structs(path, TrajectoryError, missing), key=lambda e: e.step)
    if wrong := sum(not math.isfinite(e.error) for e in errors):
        missing.append(f"{wrong} of {len(errors)} trajectory errors are not finite.")
    return tuple(errors)


def _fields(described: Mapping[str, Any], key: str, missing: list[str]) -> tuple[Shown, ...]:
    try:
        return msgspec.convert(described.get(key, ()), tuple[Shown, ...])
    except msgspec.ValidationError as error:
        missing.append(f"{FIELDS} describes {key!r} in another form: {error}")
        return ()


def _view_files(folder: Path, missing: list[str]) -> dict[int, tuple[Path, ...]]:
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.npz")):
        match = _VIEW_NAME.match(path.name)
        if match and zipfile.is_zipfile(path):
            found.setdefault(int(match[1]), []).append(path)
        elif match:
            missing.append(f"{path.name} is torn; it is left out.")
    ranks = max((len(files) for files in found.values()), default=0)
    if torn := [step for step, files in found.items() if len(files) < ranks]:
        missing.append(f"{len(torn)} views lack the part of a rank, first at step {torn[0]}.")
    return {step: tuple(files) for step, files in sorted(found.items())}
