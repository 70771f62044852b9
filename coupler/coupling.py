"""Coupling: the one object a simulation holds. Shell around protocol, link, ranks, guard, ledger and recorders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from coupler import applying, soundness
from coupler.agreement import Vote, agree, agree_advice, agree_decision
from coupler.alone import Alone
from coupler.asking import Asking
from coupler.bulks.bulk import Bulk, frames_only
from coupler.channel import Channel
from coupler.chosen_dt import ChosenDt
from coupler.contracts import Advice, Invariant, Link, Simulation
from coupler.decisions import as_advice, as_rewind, objection_to
from coupler.guard import Guard
from coupler.ledger import Ledger
from coupler.protocol.client import ClientProtocol
from coupler.ranks import Ranks
from coupler.recording import RunRecorder
from coupler.saved import SavedStates
from coupler.terms import Terms
from schemas import messages
from schemas.fields import Array, FieldSpec, Snapshot
from schemas.messages import Action, Phase

OVER = "the run is over"
UNANSWERED = "the run is over; its last audit was not answered"


class Coupling:
    """A rank's connection to the ML server. Collective: every rank calls every method at the same step.

    With `link=None` (mode `off`) every exchange returns DIRECT at once.
    """

    def __init__(
        self,
        link: Link | None,
        fields: Sequence[FieldSpec],
        terms: Terms,
        *,
        ranks: Ranks | None = None,
        guard: Guard | None = None,
        recorder: RunRecorder | None = None,
        bulk: Bulk | None = None,
        invariants: Mapping[str, Invariant] | None = None,
        can_rewind: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Opens the coupling; does not wait for the server. Raises SchemaMismatch for fields that cannot be declared.

        Args:
            link: Connected Link of this rank, or None.
            fields: The simulation's declared fields.
            terms: Terms of the run.
            ranks: Ranks of the simulation; serial when None.
            guard: Limits; none but finiteness when None.
            recorder: Where rank 0 records the run; nowhere when None.
            bulk: How Blocks travel; in frames when None.
            invariants: First contributions, for their names and reductions.
            can_rewind: Whether the host saves states (`apply` does).
            clock: Monotonic seconds.
        """
        self.fields = soundness.declared(fields)
        self._controls = [spec.name for spec in fields if spec.role == "control"]
        self.ranks = ranks or Ranks()
        self.terms = terms
        self.guard = guard or Guard()
        self.ledger = Ledger(clock)
        self.saved = SavedStates()
        self.advice = self._newest = Advice.direct("not asked yet", terms.dt)
        self._clock = clock
        self._record = recorder or RunRecorder(None)
        self._alone = Alone(self.ledger, self._record, self.fields, terms)
        reductions: dict[str, str] = {name: item.reduction for name, item in (invariants or {}).items()}
        bulk = bulk or frames_only(terms.digest)
        who = (messages.VERSION, terms.run, self.ranks.rank, self.ranks.size, tuple(fields), reductions)
        until = (terms.first_step, terms.last_step, can_rewind, terms.end_time)
        self._protocol = ClientProtocol(messages.Hello(*who, *until, bulk.token))
        # Alone, an answer that is here already needs no vote; elsewhere none can be here so soon, and looking costs.
        self._at_once = self.ranks.size == 1 and getattr(link, "at_once", False)
        self._channel = None if link is None else Channel(link, self._protocol, clock, terms.max_message_bytes, bulk)
        self._executed = 0  # highest decision carried out or refused
        self._standing = 0  # decision whose learned state the host stands at, 0 after a direct step
        self._mixed = 0  # model version mixed into the present state by blending, 0 when it is not mixed
        self._adopted = 0  # decision of the last learned state taken and not undone
        self.chosen_dt = ChosenDt(terms, self.guard)
        self._state_is_direct = True
        self._jumped_to = -1  # step of the last state that was adopted or blended
        self._refused, self._stall_s = "", 0.0  # both since the last Ask
        self._step, self._asking = terms.first_step, Asking(terms.first_step)
        self._closed = False

    def __enter__(self) -> Coupling:
        """Opens a block at whose end the coupling closes."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Closes; the server learns how the run ended."""
        self.close("finished" if error is None else f"{kind.__name__ if kind else ''}: {error}")

    @property
    def books(self) -> dict[str, Any]:
        """What became of the samples of this rank's stream."""
        return self._protocol.books.summary()

    def exchange(
        self, snapshot: Snapshot, until: int | None = None, invariants: Mapping[str, Invariant] | None = None
    ) -> Advice:
        """Shows the present state and says what to do for the next step. Once a coupling step, on every rank.

        In direct phases it sends what is due and returns at once; only after a learned step does it wait, to its
        deadline. It never raises because of the server: a failure of that side is an Advice to integrate directly. At
        the last step of the run it is `finish`.

        Args:
            snapshot: This rank's part of the state. The arrays may change as soon as the call returns.
            until: Next step that no learned phase may pass (output, forcing, end); the run's last step when None.
            invariants: This rank's contributions to the conserved quantities.

        Returns:
            The Advice, the same action on every rank.

        Raises:
            SchemaMismatch: A field changed its shape or dtype.
            SimulationFailed: The state is not finite.
        """
        snapshot = self.chosen_dt.meant(snapshot)
        if self.terms.over(snapshot):
            return self.finish(snapshot, invariants)
        if self._channel is None:
            self._step, self.advice = snapshot.step, self._alone.exchange(snapshot)
            return self.advice
        self.ledger.enter()
        self._arrive(snapshot)
        last = self.terms.room(snapshot, self.terms.last_step if until is None else until)
        self.advice = self._ask(self._channel, snapshot, last, invariants or {})
        learned, now = self.advice.snapshot, self._clock()
        self._record.decided(snapshot, self.fields, self.advice, self.ledger.inside(now), now)
        self._stall_s += self.ledger.leave(learned.step - snapshot.step if learned and self.advice.weight >= 1.0 else 0)
        return self.advice

    def allocate(self, field: str, shape: Sequence[int] | None = None) -> Array:
        """An array to compute the next values of a field in, which `exchange` and `push` then need not copy.

        It lies in a slot, of shared memory or for frames, when one is free, else in ordinary memory (always so before
        the first state was sent). Ask for a new one for each state, and leave its values alone once they were shown.

        Args:
            field: Name of the field.
            shape: Shape of this rank's Block; that of the whole field when None.

        Returns:
            An array of the field's dtype in C order with arbitrary values.
        """
        spec = self.fields[field]
        wanted = spec.shape if shape is None else tuple(shape)
        return self._channel.outbox.lend(field, wanted, spec.dtype) if self._channel else np.empty(wanted, spec.dtype)

    def push(self, snapshot: Snapshot, invariants: Mapping[str, Invariant] | None = None) -> None:
        """Streams a directly integrated state without asking; dropped and counted when the window is full.

        A learned or blended state is not sent: only directly integrated ones train.
        """
        if self._channel is None or self._standing or self._mixed:
            return
        self._channel.make_room()
        vote = self._agreed(0, soundness.fault(self.fields, snapshot), snapshot)
        if vote.may_send:
            values = {name: item.value for name, item in (invariants or {}).items()}
            self._channel.post(snapshot, snapshot.blocks, lambda stamp: messages.Push(stamp, values), sample=True)
        else:
            self._protocol.dropped(self._channel.why_closed())

    def apply(self, simulation: Simulation, advice: Advice) -> Advice:
        """Carries an Advice out on a Simulation: integrate, adopt (saving first), blend or restore.

        Args:
            simulation: The simulation whose snapshot was exchanged.
            advice: What `exchange` returned.

        Returns:
            What was done: the Advice, or a REWIND to a saved state where it could not be carried out.

        Raises:
            SimulationFailed: A direct step failed, also with a smaller dt where dt is chosen.
        """
        return applying.apply(self, simulation, advice)

    def finish(self, snapshot: Snapshot, invariants: Mapping[str, Invariant] | None = None) -> Advice:
        """Notes the last state of a run; called by a host that ends before the last step. Collective.

        An audit that reaches to the end is closed first: its answer is waited for, to the deadline.

        Args:
            snapshot: This rank's part of the state.
            invariants: This rank's contributions to the conserved quantities.

        Returns:
            STOP: the run is over. Or REWIND, to be carried out: the audit failed, and the run goes on from there.

        Raises:
            SchemaMismatch: A field changed its shape or dtype.
            SimulationFailed: The state is not finite: a run whose end is not must not pass for finished.
        """
        self._alone.settle()
        self.ledger.enter()
        vote = self._agreed(0, soundness.fault(self.fields, snapshot), snapshot)
        self._arrive(snapshot)
        if self._channel is not None and self._newest.phase == "audit":
            advice = self._close_audit(self._channel, snapshot, invariants or {}, vote.may_send)
            now = self._clock()
            self._record.decided(snapshot, self.fields, advice, self.ledger.inside(now), now)
            self.ledger.leave(0)
            return advice
        return Advice(Action.STOP, OVER, snapshot.dt)

    def keep(self, step: int, token: object) -> None:
        """Keeps what a host saved at a step for a rewind, unless the state is no verified one."""
        self.saved.keep(step, token)

    def try_again(self, step: int, dt: float) -> bool:
        """A step of dt failed. Whether there is a saved state to go back to, and a smaller dt to try."""
        smaller = self.chosen_dt.failed(step, dt)
        return bool(self.saved) and 0.0 < smaller >= self.guard.dt_min

    def not_mixed(self, reason: str) -> None:
        """The learned state of a hand-over could not be mixed in: the state is a direct one."""
        self._refused, self._mixed, self._adopted = reason, 0, 0

    def undone(self, left: Snapshot, advice: Advice, reason: str) -> Advice:
        """An Advice that led to `left` could not be kept; the REWIND to the newest saved state in its place."""
        back = max(self.saved)
        self._refused, self._standing = reason, 0
        self._jump(back - 1, back)
        self.saved.verified, self._adopted = True, 0
        self.record(left, rewind := as_rewind(advice, reason, back))
        return rewind

    def record(self, snapshot: Snapshot, advice: Advice) -> None:
        """Records what was done at a state in place of the Advice that `exchange` gave there."""
        self._record.decided(snapshot, self.fields, advice, 0.0, self._clock())

    def close(self, status: str = "finished", wait_s: float = 0.5) -> None:
        """Says goodbye, waits up to `wait_s` for the last acknowledgement, and frees the link. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._channel is not None:
            self._channel.close(self._step, status, wait_s)
        self._alone.settle()
        self._record.close(self.ledger, self.books, self._channel.outbox.ways if self._channel else {})

    def _arrive(self, snapshot: Snapshot) -> None:
        """The host stands at a state: how did it get there?"""
        self._step = snapshot.step
        if (self._standing or self._mixed) and snapshot.step != self._jumped_to:
            self._standing = self._mixed = self._adopted = 0
            self._refused = "the host did not take the learned state"
            self._jump(snapshot.step - 1, snapshot.step)
        self._state_is_direct = self._standing == 0 and self._mixed == 0
        if self._standing == 0:
            self._record.observed(snapshot, self.fields, self._mixed)
        self._mixed = 0

    def _ask(self, channel: Channel, snapshot: Snapshot, until: int, invariants: Mapping[str, Invariant]) -> Advice:
        if self._asking.is_quiet():
            return self._direct(self._newest.reason, snapshot, self._newest.phase)
        channel.drain(0.0)
        due = self._asking.is_due(snapshot.step)
        fault = soundness.fault(self.fields, snapshot) if due and not self._standing else soundness.SOUND
        vote = self._agreed(self._protocol.newest, fault, snapshot)
        if self._standing:
            return self._ask_and_wait(channel, snapshot, until, invariants, vote.may_send)
        if vote.decision > self._executed:
            advice = self._carry_out(vote.decision, snapshot)
            if advice.action is not Action.DIRECT:
                return advice
            due = self._asking.is_due(snapshot.step)
        sent = due and vote.may_send and self._send_ask(channel, snapshot, until, invariants, known=0)
        if due and vote.may_send:
            self._asking.asked(snapshot.step)
        elif due:
            self._protocol.dropped(channel.why_closed())
        if sent and self._at_once:
            channel.drain(0.0)
            if self._protocol.newest > self._executed:
                return self._carry_out(self._protocol.newest, snapshot)
        reason = self._newest.reason if sent or not due else channel.why_closed()
        return self._direct(reason, snapshot, self._newest.phase)

    def _agreed(self, decision: int, fault: int, snapshot: Snapshot) -> Vote:
        """What all ranks act on; raises where the state of one of them cannot be used."""
        vote = Vote(decision, self._protocol.may_send, fault, snapshot.step)
        if self.ranks.size > 1:
            began = self._clock()
            vote = agree(self.ranks, vote)
            self.ledger.waited(self._clock() - began)
        soundness.require(vote.fault, self.fields, snapshot)
        return vote

    def _ask_and_wait(
        self, channel: Channel, snapshot: Snapshot, until: int, invariants: Mapping[str, Invariant], may_send: bool
    ) -> Advice:
        """The host stands at a learned state: its name is sent, and the answer is waited for to the deadline."""
        known, self._standing = self._standing, 0
        sent = may_send and self._send_ask(channel, snapshot, until, invariants, known)
        end = self._clock() + self.terms.deadline_s
        while sent and self._protocol.newest <= self._executed and (left := end - self._clock()) > 0.0:
            channel.drain(left)
        decision = agree_decision(self.ranks, self._protocol.newest)
        self._asking.goes_on_at(snapshot.step + 1)
        if decision <= self._executed:
            self._refused = "no answer within the deadline" if sent else channel.why_closed()
            self.saved.verified = False
            self._newest = self._direct(self._refused, snapshot)
            return self._newest
        return self._carry_out(decision, snapshot)

    def _close_audit(
        self, channel: Channel, snapshot: Snapshot, invariants: Mapping[str, Invariant], may_send: bool
    ) -> Advice:
        """Shows the last state of an audit and waits for what comes of it: REWIND, or STOP."""
        if may_send:
            self._send_ask(channel, snapshot, snapshot.step, invariants, known=0)
        end = self._clock() + self.terms.deadline_s
        while self._newest.phase == "audit":
            while self._protocol.newest <= self._executed and (left := end - self._clock()) > 0.0:
                channel.drain(left)
            decision = agree_decision(self.ranks, self._protocol.newest)
            if decision <= self._executed:
                return Advice(Action.STOP, UNANSWERED, snapshot.dt)
            advice = self._carry_out(decision, snapshot)
            if advice.action is Action.REWIND:
                return advice
        return Advice(Action.STOP, OVER, snapshot.dt)

    def _carry_out(self, decision: int, snapshot: Snapshot) -> Advice:
        """Turns an agreed decision into the host's Advice, guarded and voted on by all ranks."""
        self._executed = decision
        found = self._protocol.take(decision)
        if found is not None:  # also of a decision that is refused: it may close an audit
            self._record.told(found[0])
        quiet = self._asking.offered(snapshot.step, found[0].answers, found[0].lease) if found else 0
        objection = objection_to(found, snapshot, self.guard, self.fields, self.saved)
        reason, quiet = agree_advice(self.ranks, objection, quiet)
        if reason or found is None:
            self._refused = reason
            self._newest = self._direct(reason, snapshot)
            return self._newest
        told, blocks = found
        self.chosen_dt.told(told.dt, told.answers, goes_on=told.phase not in ("direct", "trial"))  # an audit goes on
        advice = as_advice(told, blocks, snapshot, self.chosen_dt.next(snapshot))
        if told.action is Action.LEARNED:
            self._standing = decision if told.weight >= 1.0 else 0
            self._mixed = 0 if told.weight >= 1.0 else told.version
            # An answer about a direct state says that the way to here was direct and verified.
            self.saved.verified = self._state_is_direct and told.answers > self._jumped_to
            self._jump(told.step, told.step)
            self._adopted, self.saved.all_direct = decision, False
        elif told.action is Action.REWIND:
            self.saved.back_to(told.rewind_to)
            self._jump(told.rewind_to - 1, told.rewind_to)
            self._adopted = 0
        else:
            self._asking.told(told.answers, told.lease, quiet)
        self._newest = advice
        return advice

    def _jump(self, step: int, next_ask: int) -> None:
        """The host leaves its trajectory; answers about states before `step` are void."""
        self._jumped_to = step
        self._asking.goes_on_at(next_ask)
        self._protocol.forget(step)

    def _direct(self, reason: str, snapshot: Snapshot, phase: Phase = "direct") -> Advice:
        return Advice(Action.DIRECT, reason, self.chosen_dt.next(snapshot), phase=phase)

    def _send_ask(
        self, channel: Channel, snapshot: Snapshot, until: int, invariants: Mapping[str, Invariant], known: int
    ) -> bool:
        values = {name: item.value for name, item in invariants.items()}
        saved = tuple(sorted(self.saved))
        figures = (self.ledger.direct_step(), self._stall_s, self._executed, self._adopted)
        direct, refused = self._state_is_direct, self._refused

        def make(stamp: messages.Stamp) -> messages.Ask:
            return messages.Ask(stamp, until, known, direct, saved, values, refused, *figures)

        blocks = {name: snapshot.blocks[name] for name in self._controls} if known else snapshot.blocks
        sent = channel.post(snapshot, blocks, make, sample=not known)
        if sent:
            self._stall_s, self._refused = 0.0, ""
        return sent
