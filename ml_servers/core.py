"""ServerCore: messages in, instructions out. No socket, clock, thread or file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from coupler.assembly import ArraySource, Assembly
from coupler.calibration import Calibration
from coupler.contracts import Backtest, Task
from coupler.protocol.server import ServerProtocol
from coupler.switch import Switch
from ml_servers.arbiter import Arbiter, Surroundings, Verdict
from ml_servers.budget import Budget
from schemas.fields import Block, FieldSpec, Snapshot
from schemas.messages import Action, Advice, Ask, Bye, Hello, Message, Push, Refusal, Stamp, Welcome

MakeTask = Callable[[str, tuple[FieldSpec, ...]], Task]


class CoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the core is told by the run file.

    Attributes:
        run: Name of the run.
        tasks: Names of the tasks, in order.
        switch: Settings of the Switch.
        act: Whether learned states may be adopted (mode `act`).
        advise: Whether a dt may be advised (modes `advise` and `act`).
        coverage: Target coverage of the calibrated bound.
        max_horizon: Longest horizon, steps.
        credit: Messages that a rank may have in flight.
        overhead: See `ml_servers.budget`.
    """

    run: str
    tasks: tuple[str, ...]
    switch: Switch
    act: bool = True
    advise: bool = True
    coverage: float = 0.9
    max_horizon: int = 100
    credit: int = 8
    overhead: float = 0.03


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


@dataclass(slots=True)
class _Round:
    """Asks of the ranks for one step, until all are in."""

    asks: dict[int, Ask] = field(default_factory=dict)


class ServerCore:
    """Everything the server decides. One run, any number of ranks, one or more tasks.

    Attributes:
        protocol: Streams and books of the ranks.
        tasks: Serving tasks by name; empty until the first HELLO.
        finished: Status by rank of those that said goodbye.
        failures: Why a task's plug-in is out of use, by task name.
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
            make_task: Constructs a task from its name and the fields (invariants appended as scalar observables).
            make_arrays: Gives, for those fields, the source of the arrays that states are assembled in.
        """
        self.settings = settings
        self.protocol = ServerProtocol(settings.run, settings.tasks, settings.credit)
        self.tasks: dict[str, Task] = {}
        self.fields: tuple[FieldSpec, ...] = ()
        self.arbiter: Arbiter | None = None
        self.finished: dict[int, str] = {}
        self.failures: dict[str, str] = {}
        self.models: list[dict[str, Any]] = []
        self.admitted = 0
        self.refused: list[str] = []
        self.budget = Budget(overhead=settings.overhead, steps=1)
        self._make_task, self._make_arrays = make_task, make_arrays
        self._assembly: Assembly | None = None
        self._rounds: dict[int, _Round] = {}
        self._rewinding: dict[int, int] = {}  # by rank: step that it was told to rewind to and has not reached yet
        self._invariants: dict[str, str] = {}
        self._decision = 0
        self._outstanding = -1  # step of a learned state that was sent and not heard of yet
        self._step = 0
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
        if isinstance(message, Hello):
            return self._hello(peer, message)
        if isinstance(message, Ask):
            return self._ask(peer, message, blocks, cpu_s)
        if isinstance(message, Push):
            return self._push(peer, message, blocks)
        if isinstance(message, Bye) and message.rank in self.protocol.streams:
            self.finished[message.rank] = message.status
            return [Send(peer, self.protocol.ack(message.rank))]
        return []

    @property
    def all_finished(self) -> bool:
        """Whether every rank that came has said goodbye."""
        return bool(self.finished) and len(self.finished) == len(self.protocol.streams)

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
        """A task's plug-in raised: it is not asked any more."""
        self.failures.setdefault(task, reason)

    def summary(self) -> dict[str, Any]:
        """What the server side knows for the run's summary, as plain numbers."""
        books = {
            "admitted": self.admitted,
            "lost": sum(s.lost for s in self.protocol.streams.values()),
            "duplicates": sum(s.duplicates for s in self.protocol.streams.values()),
            "incomplete": self._assembly.dropped if self._assembly else 0,
        }
        facts: dict[str, Any] = {"samples": books, "models": self.models, "failures": self.failures}
        facts["spent_s"], facts["saved_s"] = self.budget.spent_s, self.budget.saved_s
        if self.arbiter is not None:
            state, calibration = self.arbiter.state, self.arbiter.calibration
            facts["switch"] = msgspec.to_builtins(state)
            facts["step_errors"] = self.arbiter.step_errors
            facts["live_errors"] = self.arbiter.live_errors
            horizon = calibration.horizon(self.settings.switch.tolerance, self.settings.max_horizon)
            facts["horizon_error"] = {
                "horizon": horizon,
                "bound": _finite(calibration.bound(horizon, calibration.estimates.get(horizon, math.inf))),
                "measured": calibration.worst if calibration.checked else None,
                "coverage": _finite(calibration.measured),
                "n": calibration.checked,
                "backtests": {str(h): len(r) for h, r in calibration.ratios.items()},
            }
        return facts

    # -------------------------------------------------------------------------------------------------- handshake

    def _hello(self, peer: bytes, hello: Hello) -> list[Instruction]:
        answer = self.protocol.hello(peer, hello)
        if isinstance(answer, Welcome):
            self.finished.pop(hello.rank, None)
            self._rounds.clear()
            self._outstanding = -1
            if self._assembly is None:
                self._start(hello)
            elif self.arbiter is not None:
                self.arbiter.restarted()
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
        self.budget = msgspec.structs.replace(self.budget, steps=max(hello.last_step - hello.step, 1))
        self._assembly = Assembly(hello.fields, hello.ranks, self._make_arrays(self.fields))
        for name, task in self.tasks.items():
            if "arrays" in task.owns:
                self.arbiter = Arbiter(
                    task=task,
                    fields=hello.fields,
                    switch=self.settings.switch,
                    max_horizon=self.settings.max_horizon,
                    act=self.settings.act,
                    calibration=Calibration(coverage=self.settings.coverage),
                )
            if "dt" in task.owns:
                self._dt_task = name

    # ------------------------------------------------------------------------------------------------------ states

    def _push(self, peer: bytes, push: Push, blocks: Mapping[str, Block]) -> list[Instruction]:
        if self._assembly is None or not self.protocol.admit(peer, push.stamp):
            return []
        rank = push.stamp.rank
        try:
            snapshot = self._assembly.add(rank, _part(push.stamp, blocks))
        except ValueError as error:
            return [Send(peer, Refusal(str(error)))]
        self._step = max(self._step, push.stamp.step)
        acks: list[Instruction] = [Send(peer, self.protocol.ack(rank))]
        return acks if snapshot is None else [*acks, Sampled(self._whole(snapshot, {rank: push}), True)]

    def _ask(self, peer: bytes, ask: Ask, blocks: Mapping[str, Block], cpu_s: float) -> list[Instruction]:
        if self._assembly is None or not self.protocol.admit(peer, ask.stamp):
            return []
        step, rank = ask.stamp.step, ask.stamp.rank
        if rank in self._rewinding:
            if step > self._rewinding[rank] and not ask.refused:  # sent on the branch that is being left
                return [Send(peer, self.protocol.ack(rank))]
            del self._rewinding[rank]
        self._step = step
        round_ = self._rounds.setdefault(step, _Round())
        round_.asks[rank] = ask
        snapshot = None
        if not ask.known:
            try:
                snapshot = self._assembly.add(rank, _part(ask.stamp, blocks))
            except ValueError as error:
                return [Send(peer, Refusal(str(error)))]
        if len(round_.asks) < self._ranks():
            return []
        del self._rounds[step]
        for old in [s for s in self._rounds if s < step]:
            del self._rounds[old]
        asks = round_.asks
        cost = max(a.stall_s for a in asks.values())
        if snapshot is not None:
            self.budget = self.budget.asked(ask.direct_step_s, cost, cpu_s)
            state, pure = self._whole(snapshot, asks), asks[0].direct
            if self._is_outstanding(step, asks):
                acks = [Send(self.protocol.streams[r].peer, self.protocol.ack(r)) for r in sorted(asks)]
                return [*acks, Sampled(state, pure)]
            verdict = self._verdict(lambda a: a.direct(state, self._around(asks), pure))
            return [*self._answer(asks, verdict, self._dt(state)), Sampled(state, pure)]
        if any(not a.known for a in asks.values()):
            return []
        self._outstanding = -1
        verdict = self._verdict(lambda a: a.standing(ask.known, blocks, self._around(asks)))
        return self._answer(asks, verdict, 0.0)

    def _is_outstanding(self, step: int, asks: Mapping[int, Ask]) -> bool:
        """Whether a learned state is on its way that the host, one or more steps further, can still adopt.

        A newer decision would only make it forget that one.
        """
        if step >= self._outstanding or any(ask.refused for ask in asks.values()):
            self._outstanding = -1
        return self._outstanding >= 0

    def _whole(self, snapshot: Snapshot, parts: Mapping[int, Ask | Push]) -> Snapshot:
        """An assembled state with its invariants."""
        self.admitted += 1
        extra = {}
        for name, reduction in self._invariants.items():
            values = [part.invariants.get(name, math.nan) for part in parts.values()]
            total = math.fsum(values) if reduction == "sum" else max(values)
            extra[f"invariant.{name}"] = Block(np.array(total), ())
        blocks = {**snapshot.blocks, **extra}
        return Snapshot(snapshot.step, snapshot.time, snapshot.dt, blocks, snapshot.controls_until)

    def _ranks(self) -> int:
        return self.protocol.agreed.ranks if self.protocol.agreed else 0

    # --------------------------------------------------------------------------------------------------- decisions

    def _around(self, asks: Mapping[int, Ask]) -> Surroundings:
        ask, agreed = asks[0], self.protocol.agreed
        assert agreed is not None  # asks are only taken after a HELLO
        stamp = ask.stamp
        leeway = agreed.last_step - stamp.step
        if math.isfinite(stamp.controls_until) and stamp.dt > 0.0:
            # A hair less than a step is rounding: the change then falls on the step's end.
            leeway = min(leeway, math.floor((stamp.controls_until - stamp.time) / stamp.dt + 1e-6))
        return Surroundings(ask.until - stamp.step, leeway, any(a.refused for a in asks.values()))

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
        except Exception as error:  # as in _verdict
            self.failed(self._dt_task, f"{type(error).__name__}: {error}")
            return 0.0
        return forecast.dt if forecast.version and forecast.dt else 0.0

    def _answer(self, asks: Mapping[int, Ask], verdict: Verdict | None, dt: float) -> list[Instruction]:
        self._decision += 1
        stamp = asks[0].stamp
        advice = self._advice(asks[0], verdict, dt)
        parts: dict[int, Mapping[str, Block]] = {}
        if advice.action is Action.LEARNED and verdict is not None and verdict.forecast and self.arbiter:
            assert self._assembly is not None and verdict.forecast.arrays is not None
            self.budget = self.budget.learned(advice.horizon)
            self._outstanding = advice.step
            blocks = {n: Block(a, (0,) * a.ndim) for n, a in verdict.forecast.arrays.items()}
            controls_until = stamp.controls_until
            learned = Snapshot(advice.step, advice.time, stamp.dt, blocks, controls_until)
            if advice.weight >= 1.0:
                self.arbiter.adopted(self._decision, learned)
            parts = {rank: self._assembly.part(rank, verdict.forecast.arrays) for rank in asks}
        if advice.action is Action.REWIND and self.arbiter:
            self.arbiter.restarted()
            self._rewinding = dict.fromkeys(asks, advice.rewind_to)
            self._rounds.clear()
        return [
            Send(
                self.protocol.streams[rank].peer,
                msgspec.structs.replace(advice, ack=self.protocol.ack(rank)),
                parts.get(rank, {}),
            )
            for rank in sorted(asks)
        ]

    def _advice(self, ask: Ask, verdict: Verdict | None, dt: float) -> Advice:
        stamp = ask.stamp
        base = Advice(
            action=Action.DIRECT, decision=self._decision, answers=stamp.step, dt=dt, tolerance=self._tolerance()
        )
        if verdict is None:
            reason = next(iter(self.failures.values()), "no task advances the state")
            lease, self.budget = (1, self.budget) if self._dt_task else self.budget.lease(stamp.step)
            return msgspec.structs.replace(base, reason=reason, lease=lease)
        state = verdict.state
        common = {
            "reason": state.reason,
            "phase": state.phase,
            "bound": verdict.bound,
            "step_error": verdict.step_error,
            "residual": verdict.residual,
        }
        base = msgspec.structs.replace(base, **common)
        if verdict.action is Action.REWIND:
            return self._rewind(base, ask, state.verified)
        if verdict.action is Action.LEARNED and verdict.forecast is not None:
            forecast = verdict.forecast
            return msgspec.structs.replace(
                base,
                action=Action.LEARNED,
                step=stamp.step + forecast.horizon,
                time=stamp.time + forecast.horizon * stamp.dt,
                dt=dt or stamp.dt,
                horizon=forecast.horizon,
                weight=state.weight,
                version=forecast.version,
                observables={name: [float(v) for v in series] for name, series in forecast.observables.items()},
            )
        lease = 1
        if state.phase == "direct" and not self._dt_task:
            lease, self.budget = self.budget.lease(stamp.step)
        return msgspec.structs.replace(base, lease=lease)

    def _rewind(self, base: Advice, ask: Ask, verified: int) -> Advice:
        usable = [step for step in ask.saved if step <= verified] or list(ask.saved)
        if not usable or not self.protocol.agreed or not self.protocol.agreed.can_rewind:
            reason = f"{base.reason}; the host keeps no saved state: steps since {verified} stay unverified"
            return msgspec.structs.replace(base, reason=reason)
        return msgspec.structs.replace(base, action=Action.REWIND, rewind_to=max(usable))

    def _tolerance(self) -> float:
        return self.settings.switch.tolerance if self.arbiter else math.nan


def _part(stamp: Stamp, blocks: Mapping[str, Block]) -> Snapshot:
    return Snapshot(stamp.step, stamp.time, stamp.dt, blocks, stamp.controls_until)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
