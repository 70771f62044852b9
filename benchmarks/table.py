"""Rows of figures: made, judged against their target, printed as tables, merged into `bench.json`."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = dict[str, Any]
Rows = list[Row]

COLUMNS = ("case", "bytes", "p50_us", "p99_us", "ratio", "against")
"""What every row has; null where it does not apply."""
EXTRA = ("median", "low", "high", "unit", "mlups", "target", "met")
"""Columns that are printed for the tables that have them."""


class BenchmarkFailed(Exception):
    """A figure could not be measured; the text says why."""


def row(case: str, *, against: str = "", **known: Any) -> Row:
    """A row with every column, those not given as None, and further keys as they are."""
    return dict.fromkeys(COLUMNS) | {"case": case, "against": against} | known


def timing(case: str, size: int, seconds: Sequence[float], against: Sequence[float] = (), name: str = "") -> Row:
    """A row of times of one call.

    Args:
        case: What was timed.
        size: Bytes of its message or state.
        seconds: Time of each call.
        against: Times of what it is compared with, taken in turn with it; the ratio is that of the medians.
        name: What that is.
    """
    p50, p99 = (1e6 * float(np.percentile(seconds, p)) for p in (50, 99))
    ratio = float(np.median(seconds) / np.median(against)) if len(against) else None
    return row(case, bytes=size, p50_us=p50, p99_us=p99, ratio=ratio, against=name, n=len(seconds))


def spread(case: str, values: Mapping[int, float | None], *, unit: str, against: str = "") -> Row:
    """A row of one figure over seeds: median, lowest, highest, and each value. A missing value leaves them None."""
    known = [v for v in values.values() if v is not None]
    whole = bool(known) and len(known) == len(values)
    return row(
        case,
        against=against,
        ratio=float(np.median(known)) if whole and unit == "times" else None,
        unit=unit,
        seeds=list(values),
        values=list(values.values()),
        median=float(np.median(known)) if whole else None,
        low=min(known) if whole else None,
        high=max(known) if whole else None,
    )


def judged(made: Row, key: str, *, at_most: float | None = None, at_least: float | None = None) -> Row:
    """The row with its target and whether it is met.

    Args:
        made: The row.
        key: Its column that is judged.
        at_most: Largest value that meets the target; infinity when any value does, so that there must be one.
        at_least: Smallest value that does. Give one of the two.
    """
    limit, sign = (at_most, "<=") if at_least is None else (at_least, ">=")
    if limit is None:
        raise ValueError("a target needs at_most or at_least")
    value = made[key]
    met = value is not None and (value <= limit if sign == "<=" else value >= limit)
    return made | {"target": f"{sign} {limit:g}" if math.isfinite(limit) else "happens", "met": bool(met)}


def show(name: str, rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Prints a group of rows; columns that all its rows lack are left out."""
    rows = list(rows)
    columns = [c for c in (*COLUMNS, *EXTRA) if any(r.get(c) not in (None, "") for r in rows)]
    table = Table(title=f"{name} ({machine()})", title_justify="left")
    for column in columns:
        text = column in ("case", "against", "unit", "target", "met")
        table.add_column(column.replace("_us", " us"), justify="left" if text else "right", no_wrap=not text)
    for r in rows:
        table.add_row(*(_cell(r.get(column)) for column in columns))
    console.print(table)


def merge(path: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Puts a group's rows into a file in place of its earlier ones; all other rows stay. Returns the whole content.

    Raises:
        BenchmarkFailed: The file holds something else.
    """
    try:
        old = json.loads(path.read_text("utf-8")) if path.exists() else []
    except ValueError as problem:
        raise BenchmarkFailed(f"{path} is not JSON ({problem}); remove it or name another --out") from problem
    if not isinstance(old, list) or not all(isinstance(r, dict) for r in old):
        raise BenchmarkFailed(f"{path} holds no list of rows; remove it or name another --out")
    marked = [{"group": name, **dict.fromkeys(COLUMNS), **r, "machine": machine()} for r in rows]
    content = [r for r in old if r.get("group") != name] + marked
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return content


def machine() -> str:
    """Cores and processor: no figure means anything without them."""
    names = [line.partition(":")[2] for line in _cpuinfo() if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0].strip() if names else platform.machine()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "[red]no[/]"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return escape(str(value))
