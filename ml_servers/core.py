"""ServerCore: messages in, instructions out. No socket, clock, thread or file."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from coupler.assembly import ArraySource, Assembly
from coupler.calibration import Calibration
from coupler.contracts import Backtest
from coupler.protocol.server import ServerProtocol
from ml_servers import answers
from ml_servers.answers import surroundings, unusable
from ml_servers.arbiter import Arbiter, Verdict
from ml_servers.budget import BURST, Budget
from ml_servers.joining import Reasons, Round, Rounds, with_invariants
from ml_servers.serving import MakeTask, ServingTask
from ml_servers.settings import CoreSettings
from schemas.fields import Block, FieldSpec, Snapshot, with_role
from schemas.messages import Action, Advice, Ask, Bye, Hello, Message, Push, Stamp, Welcome

log = logging.getLogger("ml_servers")


@dataclass(frozen=True, slots=True)
class Send:
    """Instruction: send a message with Blocks to a peer."""

    peer: bytes
    message: Message
    blocks: Mapping[str, Block] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Instruction: a state is complete and was answered; give it to the trainers, or (a blended one) only free it."""

    snapshot: Snapshot
    trains: bool


Instruction = Send | Sampled


class ServerCore:
    """Everything the server decides. One run, any number of ranks, one or more tasks.

    Attributes:
        protocol: Streams and books of the ranks.
        tasks: Serving tasks by name; empty until the first HELLO.
        finished: Status by rank of those that said goodbye.
        failures: Why a task's plug-in is out of use, by task name.
        unusable: Why states could not be assembled although every rank's part came.
    """

    def __init__(
        self,
        settings: CoreSettings,
        make_task: MakeTask,
        make_arrays: Callable[[Sequence[FieldSpec]], ArraySource],
    ) -> None:
        """Makes the core.

        Args:
            settings: See `CoreSettings`.
            make_task: Constructs what answers for a task.
            make_arrays: Gives, for those fields, the source of the arrays that states are assembled in.
        """
        self.settings = settings
        announced = (settings.tasks, settings.credit, settings.first_epoch, settings.token)
        self.protocol = ServerProtocol(settings.run, *announced)
        self.tasks: dict[str, ServingTask] = {}
        self.fields: tuple[FieldSpec, ...] = ()
        self.arbiter: Arbiter | None = None
        self.finished: dict[int, str] = {}
        self.failures: dict[str, str] = {}
        self.unusable = Reasons()
        self.models: list[dict[str, Any]] = []
        self.admitted = 0
        self.refused: list[str] = []
        self._given_up = 0  # states whose parts came, but make none
        self.budget = Budget(overhead=settings.overhead, steps=1)
        self._make_task, self._make_arrays = make_task, make_arrays
        self._assembly: Assembly | None = None
        self._depth = max(settings.credit, 4)  # steps that ranks may be apart
        self._rounds = Rounds(self._depth)
        self._rewound: Advice | None = None  # the last REWIND
        self._controls: tuple[FieldSpec, ...] = ()
        self._invariants: dict[str, str] = {}
        self._decision = 0
        self._executed = 0  # decision that the host carried out last
        self._outstanding = -1  # step of a learned state that was sent and not heard of yet
        self._step, self._cpu_s = 0, 0.0  # of the newest Ask; not charged yet
        self._dt_task = ""

    # --------------------------------------------------------------------------------------------------- messages

    def handle(
        self, peer: bytes, message: Message, blocks: Mapping[str, Block], cpu_s: float = 0.0
    ) -> list[Instruction]:
        """Takes one message of a client.

        Args:
            peer: Who sent it.
            message: The message; kinds that clients do not send are ignored.
            blocks: Its Blocks.
            cpu_s: CPU time of the server side since the last call, seconds.

        Returns:
            What to do now, in order.
        """
        self._cpu_s += cpu_s
        if isinstance(message, Hello):
            return self._hello(peer, message)
        if isinstance(message, Ask):
            return self._ask(peer, message, blocks)
        if isinstance(message, Push):
            return self._push(peer, message, blocks)
        if isinstance(message, Bye) and self.protocol.farewell(peer, message):
            self.finished[message.rank] = message.status
            return [Send(peer, self.protocol.ack(message.rank))]
        return []

    def lost(self, peer: bytes, message: Message) -> list[Instruction]:
        """A message came whole, but its Blocks cannot be had: its sender learns that they are lost."""
        if isinstance(message, Ask | Push) and self.protocol.lose(peer, message.stamp):
            return [Send(peer, self.protocol.ack(message.stamp.rank))]
        return []

    @property
    def all_finished(self) -> bool:
        """Whether every rank that came has said goodbye; those that were refused count while there are no others."""
        return len(self.finished) == len(self.protocol.streams) if self.protocol.streams else self.protocol.deserted

    def trained(self, task: str, version: int, kind: str, trained_on: int, backtests: Sequence[Backtest]) -> None:
        """A new model of a task serves from now on (its `restore` was done by the caller)."""
        promoted = {"task": task, "version": version, "kind": kind, "trained_on": trained_on}
        self.models.append({**promoted, "promoted_at_step": self._step})
        if self.arbiter is not None and self.tasks.get(task) is self.arbiter.task:
            self.arbiter.trained(version, backtests)

    def calibrated(self, task: str, backtests: Sequence[Backtest]) -> None:
        """New back-tests of the model that serves; none when what it was tested on is no longer true."""
        if self.arbiter is not None and self.tasks.get(task) is self.arbiter.task:
            self.arbiter.calibrated(backtests)

    def charge(self, cpu_s: float) -> None:
        """A trainer used CPU time; while ranks wait for learned states it costs them nothing."""
        if not self._learning_is_free:
            self.budget = self.budget.trained(cpu_s)

    @property
    def trainer_share(self) -> float:
        """Share of a core that each trainer may use now."""
        return 1.0 if self._learning_is_free else self.budget.share(self._step)

    @property
    def _learning_is_free(self) -> bool:
        return self.arbiter is not None and self.settings.act and self.arbiter.state.phase == "learned"

    def failed(self, task: str, reason: str) -> None:
        """A task's plug-in raised or broke its contract: it is not asked any more."""
        self.failures.setdefault(task, reason)

    @property
    def incomplete(self) -> int:
        """States given up because a part never came, or because the parts make none."""
        return self._given_up + (self._assembly.dropped if self._assembly else 0)

    def _hello(self, peer: bytes, hello: Hello) -> list[Instruction]:
        known = self.protocol.knows(peer, hello)
        answer = self.protocol.hello(peer, hello)
        if known and isinstance(answer, Welcome):  # it had heard nothing for a while: nothing else has changed
            return [Send(peer, answer), Send(peer, self.protocol.ack(hello.rank))]
        if isinstance(answer, Welcome):
            self.finished.pop(hello.rank, None)
            self._rounds.clear()
            self._outstanding = -1
            if self._assembly is None:
                self._start(hello)
            else:
                self._assembly.clear()
        else:
            self.refused.append(answer.reason)
        return [Send(peer, answer)]

    def _start(self, hello: Hello) -> None:
        self._invariants = hello.invariants
        extra = (FieldSpec(f"invariant.{n}", "<f8", (), "1", "scalar", "observable") for n in hello.invariants)
        self.fields = (*hello.fields, *extra)
        for name in self.settings.tasks:
            try:
                self.tasks[name] = self._make_task(name, self.fields)
            except Exception as error:  # a plug-in may raise anything; the run goes on without it and says so
                self.failed(name, f"{type(error).__name__}: {error}")
        self._controls = with_role(hello.fields, "control")
        self._assembly = Assembly(hello.fields, hello.ranks, self._make_arrays(self.fields), self._depth)
        for name, task in self.tasks.items():
            if "arrays" in task.owns:
                self.arbiter = Arbiter(
                    task=task,
                    fields=hello.fields,
                    switch=self.settings.switch,
                    max_horizon=self.settings.max_horizon,
                    act=self.settings.act,
                    calibration=Calibration(coverage=self.settings.coverage),
                    limits=self.settings.invariants,
                )
            if "dt" in task.owns:
                self._dt_task = name

    def _push(self, peer: bytes, push: Push, blocks: Mapping[str, Block]) -> list[Instruction]:
        rank, step = push.stamp.rank, push.stamp.step
        if self._assembly is None or not self.protocol.admit(peer, push.stamp):
            return []
        round_, snapshot, fault = self._join(push, blocks)
        self._step = max(self._step, step)
        if snapshot is None:
            return self._acks(round_.parts if fault else [rank])
        self._rounds.close(step)
        return [*self._acks([rank]), Sampled(self._whole(snapshot, round_.parts), True)]

    def _ask(self, peer: bytes, ask: Ask, blocks: Mapping[str, Block]) -> list[Instruction]:
        if self._assembly is None or not self.protocol.admit(peer, ask.stamp):
            return []
        step, rank = ask.stamp.step, ask.stamp.rank
        if self._rewound is not None and ask.executed < self._rewound.decision:
            # Sent on the branch that is being left. It is told again: the first message may have been lost.
            return [Send(peer, msgspec.structs.replace(self._rewound, ack=self.protocol.ack(rank)))]
        self._step = step
        self._decision = max(self._decision, ask.executed)  # a server that came back counts on
        round_, snapshot, fault = self._join(ask, blocks)
        asks = round_.asks(self._ranks())
        if asks is None:
            return self._acks(round_.parts) if fault else []
        self._rounds.close(step)
        return self._complete(asks, snapshot, round_.blocks, fault)

    def _join(self, message: Ask | Push, blocks: Mapping[str, Block]) -> tuple[Round, Snapshot | None, str]:
        """Takes one rank's part: the Round of its step, the state once it is whole, or why all parts make none."""
        round_, stamp, snapshot = self._rounds.take(message, blocks), message.stamp, None
        try:
            snapshot = self._add(stamp, blocks, known=isinstance(message, Ask) and message.known != 0)
        except ValueError as error:  # the next state may be right again: the stream goes on
            round_.faults[stamp.rank] = str(error)
            self.protocol.spoil(stamp)
        if fault := round_.fault(self._ranks()):
            self._give_up(round_, stamp.step, fault)
        return round_, snapshot, fault

    def _give_up(self, round_: Round, step: int, fault: str) -> None:
        """For every rank, its part of a state that cannot be assembled is as good as lost."""
        assert self._assembly is not None  # parts have come
        self._rounds.close(step)
        self._assembly.give_up(step)
        for part in round_.parts.values():
            self.protocol.spoil(part.stamp)
        self._given_up += not any(isinstance(part, Ask) and part.known for part in round_.parts.values())
        if self.unusable.note(fault):
            log.warning("The state of step %d could not be assembled and was dropped: %s.", step, fault)

    def _complete(
        self, asks: Mapping[int, Ask], snapshot: Snapshot | None, controls: Mapping[str, Block], fault: str
    ) -> list[Instruction]:
        """Every rank has asked about a step; `snapshot` is its state, None when the host named a learned one.

        With a fault there is no state to decide about; they are answered all the same, for one may wait.
        """
        ask, cpu_s, self._cpu_s = asks[0], self._cpu_s, 0.0
        if ask.executed < self._executed and self.arbiter is not None:  # a new process, which knows no decision
            self.arbiter.restarted()
        self._executed = ask.executed
        agreed = self.protocol.agreed
        assert agreed is not None  # they have said HELLO
        around = surroundings(asks, agreed.last_step, agreed.end_time)
        if snapshot is None and not fault:
            if any(a.known != ask.known or not a.known for a in asks.values()):
                return []
            self._outstanding = -1
            verdict = self._verdict(lambda a: a.standing(ask.known, controls, around))
            return self._answer(asks, verdict, 0.0, unverified=True)
        stall_s = max(a.stall_s for a in asks.values())
        planned = answers.planned_steps(ask, agreed)
        hopeful = self.settings.act and self.arbiter is not None and self.arbiter.promising
        self.budget = self.budget.asked(ask.direct_step_s, stall_s, cpu_s, planned, promising=hopeful)
        state = None if snapshot is None else self._whole(snapshot, asks)
        if self._is_outstanding(ask.stamp.step, asks):
            return [*self._acks(asks), *([] if state is None else [Sampled(state, ask.direct)])]
        unverified = not ask.direct or (self.arbiter is not None and self.arbiter.unverified(ask.adopted))
        if state is None:
            return self._answer(asks, None, 0.0, unverified, fault)
        verdict = self._verdict(lambda a: a.direct(state, around, ask.direct))
        return [*self._answer(asks, verdict, self._dt(state), unverified), Sampled(state, ask.direct)]

    def _add(self, stamp: Stamp, blocks: Mapping[str, Block], known: bool = False) -> Snapshot | None:
        """Takes one rank's part of a state. ValueError when it cannot be used."""
        assert self._assembly is not None  # both callers have looked
        if sentence := unusable(stamp, blocks, self._controls if known else ()):
            raise ValueError(sentence)
        part = Snapshot(stamp.step, stamp.time, stamp.dt, blocks, stamp.controls_until)
        return None if known else self._assembly.add(stamp.rank, part)

    def _is_outstanding(self, step: int, asks: Mapping[int, Ask]) -> bool:
        """Whether a learned state is on its way that the host can still adopt: a newer decision would void it."""
        if step >= self._outstanding or any(ask.refused for ask in asks.values()):
            self._outstanding = -1
        return self._outstanding >= 0

    def _whole(self, snapshot: Snapshot, parts: Mapping[int, Ask | Push]) -> Snapshot:
        self.admitted += 1
        return with_invariants(snapshot, parts, self._invariants)

    def _acks(self, ranks: Iterable[int]) -> list[Instruction]:
        return [Send(self.protocol.streams[rank].peer, self.protocol.ack(rank)) for rank in sorted(ranks)]

    def _ranks(self) -> int:
        return self.protocol.agreed.ranks if self.protocol.agreed else 0

    # --------------------------------------------------------------------------------------------------- decisions

    def _verdict(self, decide: Callable[[Arbiter], Verdict | None]) -> Verdict | None:
        arbiter = self.arbiter
        if arbiter is None:
            return None
        name = next(n for n, task in self.tasks.items() if task is arbiter.task)
        if name in self.failures:
            return None
        try:
            return decide(arbiter)
        except Exception as error:  # a plug-in may raise anything; the run goes on without it and says so
            self.failed(name, f"{type(error).__name__}: {error}")
            return None

    def _dt(self, snapshot: Snapshot) -> float:
        task = self.tasks.get(self._dt_task)
        if task is None or not self.settings.advise or self._dt_task in self.failures:
            return 0.0
        try:
            forecast = task.forecast(snapshot, 1)
            return float(forecast.dt) if forecast.version and forecast.dt else 0.0
        except Exception as error:  # as in _verdict
            self.failed(self._dt_task, f"{type(error).__name__}: {error}")
            return 0.0

    def _answer(
        self, asks: Mapping[int, Ask], verdict: Verdict | None, dt: float, unverified: bool, fault: str = ""
    ) -> list[Instruction]:
        self._decision += 1
        advice = self._advice(asks[0], verdict, dt, unverified, fault)
        parts: dict[int, Mapping[str, Block]] = {}
        if advice.action is Action.LEARNED and verdict is not None and verdict.forecast and self.arbiter:
            assert self._assembly is not None and verdict.forecast.arrays is not None
            self.budget = self.budget.learned(advice.horizon)
            self._outstanding = advice.step
            blocks = {n: Block(a, (0,) * a.ndim) for n, a in verdict.forecast.arrays.items()}
            stamp = asks[0].stamp
            learned = Snapshot(advice.step, advice.time, stamp.dt, blocks, stamp.controls_until)
            self.arbiter.adopted(self._decision, learned, advice.weight)
            parts = {rank: self._assembly.part(rank, verdict.forecast.arrays) for rank in asks}
        if advice.action is Action.REWIND and self.arbiter and self._assembly:
            self.arbiter.restarted()
            self._rewound = advice
            self._rounds.clear()
            self._assembly.clear()
        acked = {rank: msgspec.structs.replace(advice, ack=self.protocol.ack(rank)) for rank in sorted(asks)}
        return [Send(self.protocol.streams[rank].peer, told, parts.get(rank, {})) for rank, told in acked.items()]

    def _advice(self, ask: Ask, verdict: Verdict | None, dt: float, unverified: bool, fault: str) -> Advice:
        tolerance = self.settings.switch.tolerance if self.arbiter else math.nan
        step, agreed = ask.stamp.step, self.protocol.agreed
        can_rewind = agreed is not None and agreed.can_rewind
        base = Advice(action=Action.DIRECT, decision=self._decision, answers=step, dt=dt, tolerance=tolerance)
        if fault:  # what is unverified stays so, until a state that can be used closes its audit
            why = f"the state could not be assembled: {fault}"
            advice = msgspec.structs.replace(base, reason=why, phase="audit" if unverified else "direct")
        elif verdict is not None:
            advice = answers.advice(base, ask, verdict, can_rewind)
        elif unverified and self.arbiter is not None:
            why = next(iter(self.failures.values()), "the learned state that the host stands at is not known any more")
            advice = answers.rewind(msgspec.structs.replace(base, reason=why), ask, can_rewind)
        else:
            why = next(iter(self.failures.values()), "no task advances the state")
            advice = msgspec.structs.replace(base, reason=why)
        lease = 1
        dt_is_wanted = self._dt_task != "" and self.settings.advise  # in mode `shadow` nobody follows it
        if advice.action is Action.DIRECT and advice.phase == "direct" and not dt_is_wanted:
            lease, self.budget = self.budget.lease(step - (agreed.step if agreed else 0))
            if lease >= BURST:
                advice = msgspec.structs.replace(advice, reason=f"the budget is spent; {advice.reason}")
        return msgspec.structs.replace(advice, lease=lease)
