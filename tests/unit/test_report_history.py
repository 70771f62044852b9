"""The trace replayed: what stayed, what was undone, who advanced it."""

from __future__ import annotations

import pytest

from coupler.trace import Record
from launch.report.history import read_history
from launch.report.regimes import answers, regimes


def direct(step: int, phase: str = "direct", **more: object) -> Record:
    return Record(step=step, time=step * 0.5, dt=0.5, action="direct", phase=phase, to_step=step + 1, **more)  # type: ignore[arg-type]


def learned(step: int, to: int, **more: object) -> Record:
    base = {"version": 2, **more}
    return Record(step=step, time=step * 0.5, dt=0.5, action="learned", phase="learned", to_step=to, **base)  # type: ignore[arg-type]


def rewind(step: int, to: int, **more: object) -> Record:
    return Record(step=step, time=step * 0.5, dt=0.5, action="rewind", to_step=to, **more)  # type: ignore[arg-type]


def test_a_rewind_takes_later_steps_out_of_the_trajectory() -> None:
    records = [
        direct(0),
        direct(1),
        learned(2, 8),
        direct(8, "audit"),
        rewind(9, 2, step_error=0.4),
        direct(2),
        direct(3),
    ]
    history = read_history(records)
    assert [(s.first, s.last, s.maker) for s in history.kept] == [(n, n + 1, "direct") for n in range(4)]
    assert [(s.first, s.last, s.maker) for s in history.discarded] == [(2, 8, "learned"), (8, 9, "audit")]
    assert history.learned_fraction == 0.0
    assert history.first_handover is None
    assert history.rewinds[0][:2] == (9, 2)
    assert [a.passed for a in history.audits] == [False]


def test_a_rewind_into_a_horizon_keeps_its_first_part() -> None:
    history = read_history([learned(0, 10), rewind(10, 4), direct(4)])
    assert [(s.first, s.last, s.start, s.end) for s in history.kept] == [(0, 4, 0.0, 2.0), (4, 5, 2.0, 2.5)]
    assert [(s.first, s.last) for s in history.discarded] == [(4, 10)]


def test_a_restart_from_an_earlier_step_supersedes_without_a_rewind() -> None:
    history = read_history([direct(0), direct(1), direct(2), direct(1), direct(2)])
    assert [s.first for s in history.kept] == [0, 1, 2]
    assert [s.first for s in history.discarded] == [1, 2]


def test_learned_fraction_counts_simulated_time_and_blended_steps_as_direct() -> None:
    blended = learned(0, 1, weight=0.5)
    slow = Record(step=1, time=0.5, dt=3.0, action="learned", phase="learned", to_step=2, version=1)
    history = read_history([blended, slow, Record(step=2, time=3.5, dt=0.5, action="direct", to_step=3)])
    assert history.learned_fraction == pytest.approx(3.0 / 4.0)
    assert history.first_handover == 0
    assert history.maker_at(1) == "hand-over" and history.maker_at(2) == "learned" and history.maker_at(99) is None


def test_passed_audits_are_no_switches() -> None:
    records = [
        direct(0), learned(1, 5), direct(5, "audit"), learned(6, 9, step_error=0.001), direct(9, "audit"),
        direct(10, step_error=0.002), direct(11, "trial"), learned(12, 14), direct(14),
    ]  # fmt: skip
    history = read_history(records)
    assert history.switches == (1, 12)
    assert history.fallbacks == (10, 14)
    assert [(a.step, a.passed) for a in history.audits] == [(6, True), (10, True)]


def test_an_empty_trace_is_an_empty_history() -> None:
    history = read_history([])
    assert history.last_step == 0 and history.learned_fraction is None


def gust(announced: bool) -> list[Record]:
    """The inflow rises at step 6; announced, the solver takes over there, else the audit at 10 finds it."""
    slow, fast = {"inflow": 1.0}, {"inflow": 1.15}
    if announced:
        return [
            learned(0, 6, controls=slow),
            *(direct(n, controls=fast) for n in (6, 7)),
            learned(8, 12, controls=fast),
        ]
    return [
        learned(0, 4, controls=slow), learned(4, 10, controls=slow), direct(10, "audit", controls=fast),
        rewind(11, 4, controls=fast), *(direct(n, controls=slow if n < 6 else fast) for n in range(4, 8)),
        learned(8, 12, controls=fast),
    ]  # fmt: skip


def test_an_announced_change_is_met_at_once() -> None:
    records = gust(announced=True)
    (answer,) = answers(records)
    assert answer["step"] == answer["found_at_step"] == 6
    assert answer["delay_steps"] == 0 and answer["rewound_to"] is None and answer["relearned_at_step"] == 8


def test_an_unannounced_change_is_found_by_the_audit_and_leaves_no_learned_step() -> None:
    records = gust(announced=False)
    (answer,) = answers(records, [{"step": 6, "announced": False}])
    assert (answer["found_at_step"], answer["delay_steps"], answer["rewound_to"]) == (11, 5, 4)
    assert answer["learned_steps_kept"] == 0 and answer["relearned_at_step"] == 8
    wrong = [*records[:3], direct(11), learned(12, 14)]
    assert answers(wrong, [{"step": 6}])[0]["learned_steps_kept"] == 4


def test_an_audit_over_an_announced_change_is_direct_integration_unless_the_old_model_goes_on() -> None:
    audited = [direct(0), learned(1, 5), direct(5, "audit"), direct(6, "audit"), direct(7, "audit"), direct(8)]
    assert answers(audited, [{"step": 6, "announced": True}])[0]["delay_steps"] == 0
    assert answers(audited, [{"step": 6, "announced": False}])[0]["delay_steps"] == 2
    goes_on = [*audited[:5], learned(8, 10), direct(10)]
    assert answers(goes_on, [{"step": 6, "announced": True}])[0]["delay_steps"] == 4
    assert answers(goes_on, [{"step": 6, "announced": True}])[0]["learned_steps_kept"] == 2


def test_regimes_lie_between_the_changes() -> None:
    records = gust(announced=True)
    assert regimes(records, 0, 12) == [
        {"from_step": 0, "to_step": 6, "controls": {"inflow": 1.0}},
        {"from_step": 6, "to_step": 12, "controls": {"inflow": 1.15}},
    ]
    assert regimes(records, 7, 12) == []
    ramp = [direct(n, controls={"inflow": 1.0 + n}) for n in range(30)]
    assert regimes(ramp, 0, 30) == []
