"""Changes of the controls: the stretches between them, and how the run answered each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coupler.trace import Record
from launch.report.history import read_history

MAX_REGIMES = 8
"""A control that changes more often than this is a signal, not a few regimes."""


def control_changes(records: Sequence[Record]) -> list[tuple[int, dict[str, float]]]:
    """Steps at which a control took another value, with the new values; starts with the first step seen.

    Args:
        records: Trace in the order written. Of branches that were undone the change is seen once.
    """
    by_step: dict[int, dict[str, float]] = {}
    for record in records:
        if record.controls:
            by_step[record.step] = record.controls
    changes: list[tuple[int, dict[str, float]]] = []
    for step in sorted(by_step):
        if not changes or by_step[step] != changes[-1][1]:
            changes.append((step, by_step[step]))
    return changes


def regimes(
    records: Sequence[Record], first_step: int, last_step: int, known: Sequence[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Stretches of constant controls after `first_step`, as maps of from_step, to_step and controls.

    Empty when the controls never change in that range, or change all the time. `known` as in `answers`: the steps of
    the changes as the case has them, where the trace sees a change only at the next decision.
    """
    changes = [c for c in control_changes(records) if c[0] < last_step]
    if known is not None:
        changes = changes[:1] + [(int(c["step"]), _controls_at(records, int(c["step"]))) for c in known]
    within = [c for c in changes if c[0] > first_step]
    if not within or len(within) >= MAX_REGIMES:
        return []
    before = [c for c in changes if c[0] <= first_step]
    starts = [(first_step, before[-1][1] if before else {}), *within]
    ends = [*(step for step, _ in within), last_step]
    return [
        {"from_step": start, "to_step": end, "controls": controls}
        for (start, controls), end in zip(starts, ends, strict=True)
    ]


def _controls_at(records: Sequence[Record], step: int) -> dict[str, float]:
    return next((dict(r.controls) for r in records if r.step >= step and r.controls), {})


def answers(records: Sequence[Record], known: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """How the run answered each change of the controls.

    Args:
        records: Trace in the order written.
        known: Changes as the launcher knows them from the case, maps with at least `step`; None takes them from the
            controls in the trace, where a change that nobody announced may be seen late or not at all.

    Returns:
        For each change the given keys and: `found_at_step` (step of the first decision after it to integrate directly,
        or to rewind; an audit counts where the change was announced and no learned state follows it), `delay_steps`,
        `rewound_to` (None when no rewind was needed), `learned_steps_kept` (learned steps between change and discovery
        that stayed in the trajectory) and `relearned_at_step`.
    """
    if known is None:
        seen = control_changes(records)[1:]
        known = [{"step": step, "controls": controls} for step, controls in seen[:MAX_REGIMES]]
    return [
        dict(change) | _answer(records, int(change["step"]), bool(change.get("announced", True))) for change in known
    ]


def _answer(records: Sequence[Record], step: int, announced: bool) -> dict[str, Any]:
    candidates = (i for i, record in enumerate(records) if record.step >= step)
    found = next((i for i in candidates if _stopped_trusting(records, i, announced)), None)
    if found is None:
        return dict.fromkeys(("found_at_step", "delay_steps", "rewound_to", "learned_steps_kept", "relearned_at_step"))
    at = records[found].step
    rewound = records[found].to_step if records[found].action == "rewind" else None
    until_then = read_history(records[: found + 1]).kept
    kept = sum(max(0, s.last - max(s.first, step)) for s in until_then if s.maker in ("learned", "hand-over"))
    later = records[found + 1 :]
    return {
        "found_at_step": at,
        "delay_steps": at - step,
        "rewound_to": rewound,
        "learned_steps_kept": kept,
        "relearned_at_step": next((r.step for r in later if r.action == "learned"), None),
    }


def _stopped_trusting(records: Sequence[Record], i: int, announced: bool) -> bool:
    """Whether record i is a rewind, or a direct step that is no audit.

    An audit that goes on over an announced change was begun because of it: the host integrates, and has not heard yet
    what comes of the audit.
    """
    record = records[i]
    if record.action == "direct" and record.phase == "audit" and announced:
        record = next((later for later in records[i:] if later.phase != "audit"), record)
    return record.action == "rewind" or (record.action == "direct" and record.phase != "audit")
