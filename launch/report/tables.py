"""Tables of the report page as rows of text: errors, observables, books, models, time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launch.report.words import UNKNOWN, number, percent, pick, seconds

FLOWS = ("admitted", "dropped", "in_flight", "retained")


class Table(NamedTuple):
    """A table of text, the first column of each row its heading; the last one is running text where `wordy`."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wordy: bool = False


def compared(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The runs that a simulation compared with its own, side by side."""
    head = tuple(rows[0])
    cells = tuple(tuple(number(row.get(name)) for name in head) for row in rows)
    return Table("The runs that were compared, at equal simulated time.", head, cells)


def errors(summary: Mapping[str, Any]) -> Table:
    """The three errors side by side, never mixed."""
    bound = summary.get("horizon_error")
    step, error = summary.get("step_error"), summary.get("error")
    coverage = f"{percent(pick(bound, 'coverage'))} of {number(pick(bound, 'n'))} kept the bound"
    return Table(
        "Three errors, all as rms difference over rms fluctuation.",
        ("error", "largest", "mean", "last", "number", "compares"),
        (
            ("step error", percent(pick(step, "max")), percent(pick(step, "mean")), UNKNOWN, number(pick(step, "n")),
             "one forecast interval with direct integration, at an audit"),
            ("horizon error, bound", percent(pick(bound, "bound")), UNKNOWN, UNKNOWN, number(pick(bound, "n")),
             f"a free-running forecast with direct data; {coverage}"),
            ("horizon error, measured", percent(pick(bound, "measured")), UNKNOWN, UNKNOWN, number(pick(bound, "n")),
             "the same forecasts, errors found"),
            ("trajectory error", percent(pick(error, "max")), percent(pick(error, "mean")),
             percent(pick(error, "final")), number(pick(error, "n")), "the coupled run with the all-direct run"),
        ),
        wordy=True,
    )  # fmt: skip


def observables(summary: Mapping[str, Any]) -> list[Table]:
    """Statistics of each observable after the first hand-over, one table for each regime of the controls."""
    parts = summary.get("regimes") or []
    first = summary.get("first_handover_step")
    if not parts:
        after = f"after step {number(first)}, the first hand-over" if first is not None else "over the whole run"
        return _statistics(summary.get("observables"), f"Statistics {after}.")
    tables = []
    for part in parts:
        controls = ", ".join(f"{k} = {number(v)}" for k, v in (part.get("controls") or {}).items())
        span = f"Steps {number(part.get('from_step'))} to {number(part.get('to_step'))}"
        tables += _statistics(part.get("observables"), f"{span}{f', {controls}' if controls else ''}.")
    return tables


def _statistics(values: Any, caption: str) -> list[Table]:
    rows = []
    for name, row in (values or {}).items():
        for kind in ("mean", "amplitude", "frequency"):
            rows.append(
                (
                    f"{name}, {kind}",
                    number(pick(row, "reference", kind)),
                    number(pick(row, "coupled", kind)),
                    percent(pick(row, "difference", kind)),
                    number(pick(row, "coupled_learned_only", kind)),
                    percent(pick(row, "difference_learned_only", kind)),
                )
            )
    head = ("", "all-direct", "coupled", "difference", "learned steps only", "difference")
    return [Table(caption, head, tuple(rows))] if rows else []


def samples(summary: Mapping[str, Any]) -> Table:
    """The books of the samples, and whether they balance."""
    books = summary.get("samples") or {}
    counts = {name: _count(books.get(name)) for name in ("produced", *FLOWS, "superseded")}
    rows = [(name.replace("_", " "), number(count)) for name, count in counts.items()]
    if isinstance(books.get("dropped"), Mapping):
        rows += [(f"dropped: {reason}", number(count)) for reason, count in books["dropped"].items()]
    known = [count for name, count in counts.items() if name != "superseded" and count is not None]
    total = sum(known[1:])
    if len(known) <= len(FLOWS):
        verdict = "Some counts are missing, so the books cannot be checked."
    elif known[0] == total:
        verdict = "The books balance: produced is the sum of the next four."
    else:
        verdict = f"The books do NOT balance: produced is {number(known[0])}, the next four sum to {number(total)}."
    return Table(f"Samples. {verdict}", ("state", "samples"), tuple(rows))


def _count(value: Any) -> int | None:
    """A count, or the sum of counts by reason."""
    if isinstance(value, Mapping):
        return sum(int(n) for n in value.values())
    return value if isinstance(value, int) else None


def models(summary: Mapping[str, Any]) -> Table | None:
    """Promoted models."""
    rows = [
        (
            f"version {number(model.get('version'))}",
            str(model.get("kind") or UNKNOWN),
            number(model.get("trained_on")),
            number(model.get("promoted_at_step")),
        )
        for model in summary.get("models") or []
        if isinstance(model, Mapping)
    ]
    head = ("model", "kind", "trained on, samples", "promoted at step")
    return Table("Models that served.", head, tuple(rows)) if rows else None


def time(summary: Mapping[str, Any]) -> Table:
    """Times and what they earned."""
    names = {
        "wall_s": "wall time, coupled",
        "reference_wall_s": "wall time, all-direct",
        "train_s": "training, beside the solver",
        "direct_step_s": "a direct step",
        "learned_step_s": "a learned step",
        "stall_p50_s": "stall of an exchange, median",
        "stall_p99_s": "stall of an exchange, 99 %",
    }
    rows = [(text, seconds(pick(summary, "time", key))) for key, text in names.items()]
    rows += [
        (f"ledger: {part.removesuffix('_s').replace('_', ' ')}", seconds(value)) for part, value in _ledger(summary)
    ]
    earned = summary.get("effective_speedup")
    looked = f"at {number(pick(earned, 'n_lookup'))} learned and {number(pick(earned, 'n_train'))} direct steps"
    rows += [
        ("net speedup", number(summary.get("net_speedup"), 3)),
        (f"effective speedup {looked}", number(pick(earned, "S"), 3)),
        ("its break-even, learned steps", number(pick(earned, "break_even"), 3)),
    ]
    return Table("Time.", ("", ""), tuple(rows))


def _ledger(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    parts = summary.get("ledger") or {}
    return [(str(k), float(v)) for k, v in parts.items() if isinstance(v, (int, float))]
