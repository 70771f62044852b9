"""The trace of a run as a history: which steps stayed in the trajectory, who advanced them, what was undone. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from coupler.trace import Record

Maker = Literal["direct", "trial", "audit", "hand-over", "learned"]
MAKERS: tuple[Maker, ...] = ("direct", "trial", "audit", "hand-over", "learned")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive steps that one decision, or several alike, advanced.

    Attributes:
        first: Step the host stood at before.
        last: Step it stood at after; `last - first` steps were advanced.
        start: Simulated time at `first`.
        end: Simulated time at `last`.
        maker: Who advanced them. `hand-over` is a blend: integrated, then mixed with the learned state.
        version: Model version, 0 for direct steps.
    """

    first: int
    last: int
    start: float
    end: float
    maker: Maker
    version: int = 0

    @property
    def steps(self) -> int:
        """Steps advanced."""
        return self.last - self.first


class Audit(NamedTuple):
    """An audit that was closed: at which step, the step error found, and whether the run went on from there."""

    step: int
    error: float
    passed: bool


class Rewind(NamedTuple):
    """A return from step `found` to the verified step `to`."""

    found: int
    to: int
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """What happened, in steps.

    Attributes:
        kept: Stretches that stayed in the trajectory, one a decision, in order of steps.
        discarded: Stretches that a rewind or a restart superseded.
        audits: Closed audits, those of discarded branches included.
        rewinds: Rewinds in order.
        switches: Steps at which the run went from direct to learned dynamics.
        fallbacks: Steps at which it went back, rewinds included; audits that passed do not count.
        first_handover: First step of the trajectory at which a model took over, None when none did.
        checked: Step of the last audit that passed and was not undone; 0 when there is none.
    """

    kept: tuple[Stretch, ...] = ()
    discarded: tuple[Stretch, ...] = ()
    audits: tuple[Audit, ...] = ()
    rewinds: tuple[Rewind, ...] = ()
    switches: tuple[int, ...] = ()
    fallbacks: tuple[int, ...] = ()
    first_handover: int | None = None
    checked: int = 0

    @property
    def last_step(self) -> int:
        """Step that the trajectory ends at."""
        return self.kept[-1].last if self.kept else 0

    def steps_by(self, maker: Maker) -> int:
        """Steps of the trajectory that one maker advanced."""
        return sum(s.steps for s in self.kept if s.maker == maker)

    @property
    def learned_fraction(self) -> float | None:
        """Simulated time advanced by a model over all simulated time; blended steps count as direct."""
        total = sum(s.end - s.start for s in self.kept)
        learned = sum(s.end - s.start for s in self.kept if s.maker == "learned")
        return learned / total if total > 0 else None

    @property
    def unverified_steps(self) -> int:
        """Learned steps of the trajectory that no audit has covered."""
        return sum(
            s.last - max(s.first, self.checked) for s in self.kept if s.maker == "learned" and s.last > self.checked
        )

    def maker_at(self, step: int) -> Maker | None:
        """Who made the state at this step, None outside the trajectory."""
        return next((s.maker for s in self.kept if s.first < step <= s.last), None)


def maker_of(record: Record) -> Maker:
    """Who advances the steps of a record that is no rewind."""
    if record.action == "learned":
        return "learned" if record.weight >= 1.0 else "hand-over"
    return record.phase if record.phase in ("trial", "audit") else "direct"  # type: ignore[return-value]


def read_history(records: Sequence[Record]) -> History:
    """Replays the decisions: a record that starts before the present end supersedes what lies beyond it.

    Args:
        records: All records of the trace in the order written.
    """
    kept: list[Stretch] = []
    discarded: list[Stretch] = []
    rewinds: list[Rewind] = []
    for record in records:
        if record.action == "rewind":
            rewinds.append(Rewind(record.step, record.to_step, record.reason))
            discarded += _cut(kept, record.to_step)
            continue
        if record.action == "stop":
            continue
        discarded += _cut(kept, record.step)
        last = max(record.to_step, record.step + 1)
        if kept and kept[-1].last == record.step:
            kept[-1] = replace(kept[-1], end=record.time)
        end = record.time + (last - record.step) * record.dt
        kept.append(Stretch(record.step, last, record.time, end, maker_of(record), record.version))
    switches, fallbacks = _turns(records)
    first = next((s.first for s in kept if s.maker in ("learned", "hand-over")), None)
    turns = tuple(switches), tuple(fallbacks)
    return History(tuple(kept), tuple(discarded), _audits(records), tuple(rewinds), *turns, first, _checked(records))


def _cut(kept: list[Stretch], step: int) -> list[Stretch]:
    """Takes everything beyond a step off the end and returns it."""
    gone: list[Stretch] = []
    while kept and kept[-1].last > step:
        stretch = kept.pop()
        if stretch.first < step:
            middle = stretch.start + (stretch.end - stretch.start) * (step - stretch.first) / stretch.steps
            kept.append(replace(stretch, last=step, end=middle))
            stretch = replace(stretch, first=step, start=middle)
        gone.append(stretch)
    return gone[::-1]


def _audits(records: Sequence[Record]) -> tuple[Audit, ...]:
    found = []
    for i, record in enumerate(records):
        if math.isnan(record.step_error):
            continue
        undone = any(r.action == "rewind" for r in records[i : i + 2])
        found.append(Audit(record.step, record.step_error, not undone))
    return tuple(found)


def _checked(records: Iterable[Record]) -> int:
    step = 0
    for record in records:
        if record.action == "rewind":
            step = min(step, record.to_step)
        elif record.step_error <= record.tolerance:
            step = record.step
    return step


def _turns(records: Iterable[Record]) -> tuple[list[int], list[int]]:
    """Steps at which the run went to learned dynamics and back; an audit alone is neither."""
    switches: list[int] = []
    fallbacks: list[int] = []
    learned = False
    for record in records:
        if record.action == "stop" or (record.action == "direct" and record.phase == "audit"):
            continue
        now = record.action == "learned"
        if now != learned:
            (switches if now else fallbacks).append(record.step)
        learned = now
    return switches, fallbacks


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Joins adjoining stretches of the same maker and version, for drawing."""
    out: list[Stretch] = []
    for s in stretches:
        if out and out[-1].last == s.first and (out[-1].maker, out[-1].version) == (s.maker, s.version):
            out[-1] = replace(out[-1], last=s.last, end=s.end)
        else:
            out.append(s)
    return out
