"""The findings of a run in words and rounded numbers. Pure text, not yet HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "–"


def pick(values: Any, *keys: str) -> Any:
    """A nested value, None where any level is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits, thousands separated; a dash for None."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return UNKNOWN if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10 ** (digits - 1)):
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}"


def percent(fraction: Any, digits: int = 3) -> str:
    """A fraction in per cent."""
    if fraction is None:
        return UNKNOWN
    return "< 0.001 %" if 0.0 < abs(fraction) < 1e-5 else f"{number(100.0 * fraction, digits)} %"


def seconds(value: Any) -> str:
    """A time in the unit that suits it."""
    if value is None:
        return UNKNOWN
    if value >= 100.0:
        return f"{value:,.0f} s"
    scale, unit = (1.0, "s") if value >= 0.1 else (1e3, "ms") if value >= 1e-4 else (1e6, "µs")
    return f"{value * scale:.3g} {unit}"


def times(count: Any, noun: str, plural: str = "") -> str:
    """A count with its noun; "once" and "twice"."""
    if noun == "time" and count in (1, 2):
        return "once" if count == 1 else "twice"
    return f"{number(count)} {noun if count == 1 else plural or noun + 's'}"


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What the run found, one sentence or two each, in the order of importance."""
    told = (_speed(summary), _learned(summary), _trajectory(summary), _horizon(summary), _audits(summary), _dt(summary))
    limits = [f"{part[0].upper()}{part[1:]}." for part in limits_in_words(summary)]
    return [sentence for sentence in (*told, *limits, *_changes(summary), *_troubles(summary)) if sentence]


def _speed(summary: Mapping[str, Any]) -> str:
    wall, direct = pick(summary, "time", "wall_s"), pick(summary, "time", "reference_wall_s")
    net = summary.get("net_speedup")
    if wall is None:
        return ""
    if direct is None or net is None:
        return f"The coupled run took {seconds(wall)}. No all-direct run was made, so its speedup is not known."
    factor = f"{net:.2f} times as fast" if net >= 1.0 else f"slower by a factor of {1.0 / net:.2f}"
    counted = "training, audits, transfers and start-up counted"
    return f"The coupled run took {seconds(wall)}, the same case all-direct {seconds(direct)}: {factor}, {counted}."


def _learned(summary: Mapping[str, Any]) -> str:
    fraction, switches = summary.get("learned_fraction"), summary.get("switches")
    if not fraction and not switches:
        return "No model took over: every step was integrated directly."
    back = f"and fell back {times(summary.get('fallbacks'), 'time')}" if summary.get("fallbacks") else ""
    moved = f"The run went over to learned dynamics {times(switches, 'time')} {back}".strip()
    return f"Models advanced {percent(fraction)} of the simulated time. {moved}."


def _trajectory(summary: Mapping[str, Any]) -> str:
    error = summary.get("error")
    if not isinstance(error, Mapping) or error.get("max") is None:
        return ""
    if (periods := error.get("periods")) is None:
        return f"Against the all-direct run it was off by at most {percent(error['max'])} of the rms fluctuation."
    span = min(40.0, periods.get("periods_after_handover") or 40.0)
    text = (
        f"Against the all-direct run it was off by at most {percent(periods.get('max_first_40'))} of the rms "
        f"fluctuation over the first {number(span, 2)} periods ({number(periods.get('period_steps'), 3)} steps each) "
        f"after the first hand-over"
    )
    if periods.get("max_aligned_beyond") is None:
        return f"{text}."
    return (
        f"{text}; beyond, by at most {percent(periods['max_aligned_beyond'])} once a phase shift of at most "
        f"{percent(periods.get('max_shift_periods'))} of a period is removed."
    )


def _horizon(summary: Mapping[str, Any]) -> str:
    bound, tolerance = pick(summary, "horizon_error", "bound"), summary.get("tolerance")
    if bound is None or not summary.get("switches"):
        return ""
    place = "within" if tolerance is not None and bound <= tolerance else "against"
    text = f"The calibrated bound of the horizon error was at most {percent(bound)}, {place} a tolerance of "
    text += percent(tolerance)
    coverage, n = pick(summary, "horizon_error", "coverage"), pick(summary, "horizon_error", "n")
    if coverage is None:
        return f"{text}."
    return f"{text}; {percent(coverage)} of {times(n, 'checked forecast')} kept their bound (the target is 90 %)."


def _audits(summary: Mapping[str, Any]) -> str:
    audits, rewinds = summary.get("audits"), summary.get("rewinds")
    if not audits and not rewinds:
        return ""
    worst = pick(summary, "step_error", "max")
    text = f"{times(audits, 'audit')} found step errors of at most {percent(worst)}" if audits else "No audit was made"
    undone = f"{times(rewinds, 'rewind')} undid {times(summary.get('superseded_steps'), 'step')}"
    return f"{text}; {undone}." if rewinds else f"{text}; nothing had to be undone."


def _dt(summary: Mapping[str, Any]) -> str:
    missed, n = pick(summary, "dt_error", "missed"), pick(summary, "dt_error", "n")
    if missed is None:
        return ""
    most = beyond(summary["dt_error"]["max"] / summary["dt_error"]["tolerance"])
    return f"dt was advised: {percent(missed)} of {times(n, 'step')} missed its tolerance, at most {most} times it."


def beyond(ratio: float) -> str:
    """A ratio in three digits; where it is barely above 1, in as many as show that it is."""
    digits = 3
    while float(f"{ratio:.{digits}g}") == 1.0 < ratio and digits < 16:
        digits += 1
    return number(ratio, digits)


def limits_in_words(summary: Mapping[str, Any]) -> list[str]:
    """How each limited error was kept, and how many steps were made again; a part of a sentence each."""
    errors = [error for error in pick(summary, "limits", "errors") or [] if error["n"]]
    if not errors:
        return []
    rejected = pick(summary, "limits", "rejected")
    again = f"{times(rejected, 'step')} {'was' if rejected == 1 else 'were'} made again"
    told, links = [], []
    for error in errors:
        name, missed = f"limits.errors.{error['field']}", round((error["missed"] or 0.0) * error["n"])
        if missed:
            most = beyond(error["max"] / error["tolerance"])
            told.append(f"{times(missed, 'step')} went beyond {name}, at most {most} times it")
            links.append(f"though {again} for it")
        else:
            told.append(f"every step kept {name}")
            links.append(f"for which {again}")
    return [*told, f"{again} for these limits"] if len(told) > 1 else [f"{told[0]}, {links[0]}"]


def _changes(summary: Mapping[str, Any]) -> list[str]:
    told = []
    for change in summary.get("changes") or []:
        known = {True: ", announced,", False: ", unannounced,"}.get(change.get("announced"), "")
        text = f"The change{known} at step {number(change.get('step'))} "
        if change.get("found_at_step") is None:
            told.append(f"{text}was followed by no direct step.")
            continue
        text += f"was met by the solver {times(change['delay_steps'], 'step')} later"
        if change.get("rewound_to") is not None:
            text += f", by a rewind to step {number(change['rewound_to'])}"
        kept = change.get("learned_steps_kept")
        text += f"; {times(kept, 'learned step') if kept else 'no learned step'} in between stayed in the trajectory"
        again = change.get("relearned_at_step")
        told.append(
            f"{text}; {f'a model led again from step {number(again)}' if again is not None else 'no model led again'}."
        )
    rejected = pick(summary, "limits", "rejected")
    if told or (rejected and rejected == summary.get("rewinds")):  # these have a sentence of their own
        return told
    return [
        f"At step {number(r['found_at_step'])} the run went back to step {number(r['to_step'])}: {r['reason']}."
        for r in (summary.get("rewound") or [])[:5]
    ]


def _troubles(summary: Mapping[str, Any]) -> list[str]:
    """Tasks that failed and processes that were lost, as the launcher tells them."""
    failures = summary.get("failures")
    out = (
        [f"Task {name} was out of use: {why}" for name, why in failures.items()]
        if isinstance(failures, Mapping)
        else []
    )
    lost = summary.get("lost")
    return out + [str(line) for line in lost if line] if isinstance(lost, list) else out
