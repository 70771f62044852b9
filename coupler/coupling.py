"""Coupling: the one object a simulation holds. Shell around protocol, link, ranks, guard, ledger and recorders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from coupler.agreement import Vote, agree, agree_decision, agree_objection
from coupler.assembly import blend
from coupler.contracts import Advice, Invariant, Link, Simulation
from coupler.errors import SchemaMismatch, SimulationFailed
from coupler.guard import Guard, all_finite
from coupler.ledger import Ledger
from coupler.protocol.client import ClientProtocol
from coupler.ranks import Ranks
from coupler.recording import RunRecorder
from schemas import messages, wire
from schemas.fields import Block, FieldSpec, Snapshot, misfit
from schemas.messages import Action

LINGER_S = 0.2
"""Time that the farewell gets to leave."""
SAVED_STATES = 2
"""Saved states kept for a rewind."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told at its start and keeps to.

    Attributes:
        run: Name of the run.
        last_step: Step at which the run ends.
        dt: dt of direct steps until an Advice says otherwise; 0 leaves it to the simulation's own Snapshot.dt.
        deadline_s: Longest wait for the answer to a LEARNED Ask, seconds.
        max_message_bytes: Largest message accepted.
        digest: Whether arrays carry a digest.
    """

    run: str
    last_step: int
    dt: float = 0.0
    deadline_s: float = 2.0
    max_message_bytes: int = 1 << 30
    digest: bool = True


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
        invariants: Mapping[str, Invariant] | None = None,
        can_rewind: bool = True,
        start_step: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Opens the coupling; does not wait for the server.

        Args:
            link: Connected Link of this rank, or None.
            fields: The simulation's declared fields.
            terms: Terms of the run.
            ranks: Ranks of the simulation; serial when None.
            guard: Limits; none but finiteness when None.
            recorder: Where rank 0 records the run; nowhere when None.
            invariants: First contributions, for their names and reductions.
            can_rewind: Whether the host saves states (`apply` does).
            start_step: Step that this incarnation continues from.
            clock: Monotonic seconds.
        """
        self.fields = {spec.name: spec for spec in fields}
        self._controls = [spec.name for spec in fields if spec.role == "control"]
        self.ranks = ranks or Ranks()
        self.terms = terms
        self.guard = guard or Guard()
        self.ledger = Ledger(clock)
        self.saved: dict[int, object] = {}
        self.advice = Advice.direct("not asked yet", terms.dt)
        self._link = link
        self._clock = clock
        self._record = recorder or RunRecorder(None)
        self._reductions = {name: item.reduction for name, item in (invariants or {}).items()}
        hello = messages.Hello(
            messages.VERSION,
            terms.run,
            self.ranks.rank,
            self.ranks.size,
            tuple(fields),
            dict(self._reductions),
            start_step,
            terms.last_step,
            can_rewind,
        )
        self._protocol = ClientProtocol(hello)
        self._executed = 0  # highest decision carried out or refused
        self._standing = 0  # decision whose learned state the host stands at, 0 after a direct step
        self._mixed = 0  # model version mixed into the present state by blending, 0 when it is not mixed
        self._state_is_direct = True
        self._refused = ""
        self._next_ask = start_step
        self._stall_s = 0.0
        self._dt_now = 0.0  # dt last advised, 0 for none
        self.garbled = 0  # messages that could not be read, and why the last one could not
        self.last_garbled = ""
        self._step = start_step
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
        deadline. It never raises because of the server: a failure of that side is an Advice to integrate directly.

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
        self.ledger.enter()
        self._step = snapshot.step
        self._state_is_direct = self._standing == 0 and self._mixed == 0
        if self._standing == 0:
            self._record.observed(snapshot, self.fields, self._mixed)
        if self._link is None:
            self.advice = self._direct("coupling is off", snapshot)
        else:
            last = self.terms.last_step if until is None else until
            self.advice = self._ask(snapshot, last, invariants or {})
        learned = self.advice.snapshot
        stall = self.ledger.leave(learned.step - snapshot.step if learned and self.advice.weight >= 1.0 else 0)
        self._stall_s += stall
        self._record.decided(snapshot, self.fields, self.advice, stall, self._clock())
        return self.advice

    def push(self, snapshot: Snapshot, invariants: Mapping[str, Invariant] | None = None) -> None:
        """Streams a directly integrated state without asking; dropped and counted when the window is full."""
        if self._link is None:
            return
        self._drain(0.0)
        vote = agree(self.ranks, Vote(0, self._protocol.may_send, self._fault(snapshot)))
        self._raise(vote.fault, snapshot)
        if vote.may_send:
            values = {name: item.value for name, item in (invariants or {}).items()}
            self._post(snapshot, snapshot.blocks, lambda stamp: messages.Push(stamp, values))
        else:
            self._protocol.dropped(self._why_closed())

    def apply(self, simulation: Simulation, advice: Advice) -> None:
        """Carries an Advice out on a Simulation: integrate, adopt (saving first), blend or restore.

        Args:
            simulation: The simulation whose snapshot was exchanged.
            advice: What `exchange` returned.
        """
        if advice.action is Action.REWIND:
            simulation.restore(self.saved[advice.rewind_to])
        elif advice.action is Action.DIRECT:
            simulation.integrate(advice.dt, 1)
        elif advice.action is Action.LEARNED and advice.snapshot is not None:
            self._adopt(simulation, advice, advice.snapshot)

    def finish(self, snapshot: Snapshot) -> None:
        """Notes the last state of the run, which is not asked about."""
        self.ledger.enter()
        self._step = snapshot.step
        if self._standing == 0:
            self._record.observed(snapshot, self.fields, self._mixed)

    def keep(self, step: int, token: object) -> None:
        """Keeps a saved state for a rewind; the oldest beyond `SAVED_STATES` goes."""
        self.saved[step] = token
        while len(self.saved) > SAVED_STATES:
            del self.saved[min(self.saved)]

    def close(self, status: str = "finished", wait_s: float = 0.5) -> None:
        """Says goodbye, waits up to `wait_s` for the last acknowledgement, and frees the link. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._link is not None:
            if self._protocol.state == "open":
                self._link.send(wire.encode(self._protocol.bye(self._step, status)))
                end = self._clock() + wait_s
                while self._protocol.books.in_flight and self._clock() < end:
                    self._drain(0.02)
            self._link.close(LINGER_S)
        self._record.close(self.ledger, self.books)

    # ------------------------------------------------------------------------------------------------ one exchange

    def _ask(self, snapshot: Snapshot, until: int, invariants: Mapping[str, Invariant]) -> Advice:
        self._drain(0.0)
        due = snapshot.step >= self._next_ask
        fault = self._fault(snapshot) if due and not self._standing else 0
        vote = agree(self.ranks, Vote(self._protocol.newest, self._protocol.may_send, fault))
        self._raise(vote.fault, snapshot)
        if self._standing:
            return self._ask_and_wait(snapshot, until, invariants, vote.may_send)
        if vote.decision > self._executed:
            advice = self._carry_out(vote.decision, snapshot)
            if advice.action is not Action.DIRECT:
                return advice
            due = snapshot.step >= self._next_ask
        if due and vote.may_send:
            self._send_ask(snapshot, until, invariants, known=0)
            if self.ranks.size == 1:  # alone, an answer that is already here needs no vote
                self._drain(0.0)
                if self._protocol.newest > self._executed:
                    return self._carry_out(self._protocol.newest, snapshot)
        elif due:
            self._protocol.dropped(self._why_closed())
        self._mixed = 0
        return replace(self._direct(self.advice.reason, snapshot), phase=self.advice.phase)

    def _ask_and_wait(
        self, snapshot: Snapshot, until: int, invariants: Mapping[str, Invariant], may_send: bool
    ) -> Advice:
        """The host stands at a learned state: its name is sent, and the answer is waited for to the deadline."""
        known, self._standing = self._standing, 0
        if may_send:
            self._send_ask(snapshot, until, invariants, known)
        end = self._clock() + self.terms.deadline_s
        while may_send and self._protocol.newest <= self._executed and (left := end - self._clock()) > 0.0:
            self._drain(left)
        decision = agree_decision(self.ranks, self._protocol.newest)
        self._next_ask = snapshot.step + 1
        if decision <= self._executed:
            self._refused = "no answer within the deadline" if may_send else self._why_closed()
            return self._direct(self._refused, snapshot)
        return self._carry_out(decision, snapshot)

    def _carry_out(self, decision: int, snapshot: Snapshot) -> Advice:
        """Turns an agreed decision into the host's Advice, guarded and voted on by all ranks."""
        self._executed = decision
        found = self._protocol.take(decision)
        objection = "its message was lost" if found is None else self._objection(*found, snapshot)
        reason = agree_objection(self.ranks, objection)
        if reason or found is None:
            self._refused = reason
            self.advice = self._direct(reason, snapshot)
            return self.advice
        told, blocks = found
        self._record.told(told)
        self._next_ask = told.answers + told.lease
        advice = Advice(
            action=told.action,
            reason=told.reason,
            dt=self._dt(told.dt, snapshot),
            horizon=told.horizon,
            weight=told.weight,
            bound=told.bound,
            version=told.version,
            decision=decision,
            phase=told.phase,
            rewind_to=told.rewind_to,
        )
        if told.action is Action.LEARNED:
            self._standing = decision if told.weight >= 1.0 else 0
            self._mixed = 0 if told.weight >= 1.0 else told.version
            self._next_ask = told.step
            advice = replace(advice, snapshot=Snapshot(told.step, told.time, snapshot.dt, blocks))
        elif told.action is Action.REWIND:
            self.saved = {step: token for step, token in self.saved.items() if step <= told.rewind_to}
            self._next_ask = told.rewind_to
        self._dt_now = told.dt
        self.advice = advice
        return advice

    def _objection(self, told: messages.Advice, blocks: Mapping[str, Block], snapshot: Snapshot) -> str:
        if told.action is Action.REWIND and told.rewind_to not in self.saved:
            return f"no state is saved for step {told.rewind_to}; there are {sorted(self.saved)}"
        if told.action is not Action.LEARNED:
            return ""
        if told.step <= snapshot.step:
            return "the learned state came too late"
        return self.guard.objection(self.fields, blocks)

    def _direct(self, reason: str, snapshot: Snapshot) -> Advice:
        return Advice.direct(reason, self._dt(self._dt_now, snapshot))

    def _dt(self, suggested: float, snapshot: Snapshot) -> float:
        return self.guard.dt(suggested, self.terms.dt or snapshot.dt)

    # ------------------------------------------------------------------------------------------------- the link

    def _send_ask(self, snapshot: Snapshot, until: int, invariants: Mapping[str, Invariant], known: int) -> None:
        direct_step_s, stall_s, refused = self.ledger.direct_step(), self._stall_s, self._refused
        saved = tuple(sorted(self.saved))
        values = {name: item.value for name, item in invariants.items()}
        direct = self._state_is_direct
        self._post(
            snapshot,
            {name: snapshot.blocks[name] for name in self._controls} if known else snapshot.blocks,
            lambda stamp: messages.Ask(stamp, until, known, direct, saved, values, refused, direct_step_s, stall_s),
            sample=not known,
        )
        self._stall_s, self._refused = 0.0, ""

    def _post(
        self,
        snapshot: Snapshot,
        blocks: Mapping[str, Block],
        make: Callable[[messages.Stamp], messages.Message],
        sample: bool = True,
    ) -> None:
        assert self._link is not None
        table, frames = wire.block_table(blocks, self.terms.digest)
        stamp = self._protocol.stamp(snapshot, table, self._clock(), sample=sample)
        if not self._link.send(wire.encode(make(stamp), frames)):
            self._protocol.unsent(stamp)

    def _drain(self, timeout_s: float) -> None:
        """Takes everything that has come, waiting up to timeout_s for the first message, and greets if that is due."""
        assert self._link is not None
        hello = self._protocol.due_hello(self._clock())
        if hello is not None and not self._link.send(wire.encode(hello)):
            self._protocol.hello_unsent()
        while (received := self._link.receive(timeout_s)) is not None:
            timeout_s = 0.0
            try:
                message, blocks = wire.decode(received[1], self.terms.max_message_bytes)
            except wire.WireError as error:
                self.garbled += 1
                self.last_garbled = str(error)
                continue
            self._protocol.receive(message, blocks)

    def _why_closed(self) -> str:
        state = self._protocol.state
        if state == "refused":
            return f"refused by the server: {self._protocol.refusal}"
        return "no credit" if state == "open" else "no server yet"

    # -------------------------------------------------------------------------------------------- the host's state

    def _fault(self, snapshot: Snapshot) -> int:
        for name, spec in self.fields.items():
            block = snapshot.blocks.get(name)
            if block is None or misfit(spec, block):
                return 1
            if not all_finite(block.array):
                return 2
        return 0

    def _raise(self, fault: int, snapshot: Snapshot) -> None:
        if fault == 0:
            return
        for name, spec in self.fields.items():
            block = snapshot.blocks.get(name)
            if fault == 1 and (block is None or misfit(spec, block)):
                sentence = f"field {name!r} is missing" if block is None else misfit(spec, block)
                raise SchemaMismatch(f"At step {snapshot.step}, {sentence}. Fields are declared once and stay so.")
            if fault == 2 and block is not None and not all_finite(block.array):
                raise SimulationFailed(
                    f"At step {snapshot.step} (time {snapshot.time:g}) field {name!r} of the simulation is not finite: "
                    "reduce dt or check the set-up."
                )
        raise SimulationFailed(f"At step {snapshot.step} another rank found its state unusable; its log says why.")

    def _adopt(self, simulation: Simulation, advice: Advice, learned: Snapshot) -> None:
        before = simulation.snapshot().step
        if advice.weight < 1.0:
            simulation.integrate(advice.dt, learned.step - before)
            mixed = blend(tuple(self.fields.values()), simulation.snapshot(), learned.blocks, advice.weight)
            simulation.adopt(Snapshot(learned.step, learned.time, learned.dt, mixed))
            return
        if self._state_is_direct:
            self.keep(before, simulation.save())
        totals = self._totals(simulation)
        simulation.adopt(learned)
        if reason := self.guard.broken(totals, self._totals(simulation)):
            simulation.restore(self.saved[max(self.saved)])
            self._refused, self._standing = reason, 0
            self._next_ask = max(self.saved)

    def _totals(self, simulation: Simulation) -> dict[str, float]:
        """Global values of the guarded invariants."""
        if not self.guard.drift:
            return {}
        items = simulation.invariants()
        totals: dict[str, float] = {}
        for reduction in ("sum", "max"):
            names = [n for n in sorted(self.guard.drift) if n in items and items[n].reduction == reduction]
            values = self.ranks.allreduce(np.array([items[n].value for n in names], dtype=np.float64), reduction)
            totals |= dict(zip(names, map(float, values), strict=True))
        return totals
