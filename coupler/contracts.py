"""The sockets that plug-ins fill: Simulation, Task, Link, and the values they exchange with the coupler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array, FieldSpec, Snapshot
from schemas.messages import Action, Phase

Reduction = Literal["sum", "max"]
Frames = list[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Invariant:
    """One rank's contribution to a conserved quantity, and how contributions combine to the global value."""

    value: float
    reduction: Reduction = "sum"


@runtime_checkable
class Simulation(Protocol):
    """What makes states. Constructed as `Thing(*, ranks=..., seed=..., **settings)`; see `coupler.registry`.

    `step` everywhere is the coupling step; how many solver steps it holds is the simulation's own setting. All ranks
    call every method at the same step and in the same order, so methods may use MPI collectives.
    """

    def fields(self) -> Sequence[FieldSpec]:
        """The declared fields; constant for the life of the simulation."""
        ...

    def snapshot(self) -> Snapshot:
        """This rank's part of the present instant. Arrays may be views, valid until the next integrate or adopt."""
        ...

    def integrate(self, dt: float, n: int) -> None:
        """Advances n coupling steps of dt (simulated time each) by direct integration.

        Raises:
            StepFailed: The step cannot be made with this dt, on all ranks alike; saved states can still be restored.
            SimulationFailed: It cannot go on at all.
        """
        ...

    def adopt(self, snapshot: Snapshot) -> None:
        """Takes over step, time, dt and this rank's Blocks of the state fields. Other Blocks are ignored."""
        ...

    def save(self) -> object:
        """A token from which `restore` gives the present state back bitwise, hidden parts (RNG) included."""
        ...

    def restore(self, token: object) -> None:
        """Returns to a saved state, bitwise. The token stays valid."""
        ...

    def invariants(self) -> Mapping[str, Invariant]:
        """This rank's contributions to conserved quantities; may be empty."""
        ...


@runtime_checkable
class Viewable(Protocol):
    """A Simulation that says what a person would look at and judge the error of, such as the velocity."""

    def view(self) -> Snapshot:
        """This rank's part of the fields to show and compare, as float32 cell arrays or particle arrays."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """A Simulation that can tell, for the report only, when its forcing changes; also what it announces to nobody."""

    def changes(self) -> Sequence[tuple[float, bool]]:
        """Simulated time of each change, and whether it is announced through `Snapshot.controls_until`."""
        ...


@runtime_checkable
class Ending(Protocol):
    """A Simulation that may come to an end of its own, before the run does: that of its input, or of a record."""

    def ended(self) -> str:
        """Why no further step can be made, the same on all ranks; empty while one can."""
        ...


@runtime_checkable
class SelfJudged(Protocol):
    """A Simulation with baselines of its own: with an advised dt, steps differ from those of an all-direct run."""

    def judge(self, observed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Figures of merit of a finished run against the baselines, as plain numbers.

        Empty where there is none to compare with: the run is then compared with an all-direct one, as any other.

        Args:
            observed: The run's trajectory of observables, as `coupler.trace.trajectory` gives it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Advice:
    """What the host shall do now: the value of `Coupling.exchange`, already agreed by all ranks and guarded.

    Attributes:
        action: DIRECT: integrate one step with `dt`. LEARNED: adopt `snapshot`. REWIND: restore the state saved at
            step `rewind_to`. STOP: end in good order.
        reason: Why, as a short sentence.
        dt: dt for a direct step.
        horizon: Steps that the learned state lies ahead of the state it was forecast from.
        weight: Below 1 the host integrates to `snapshot.step` and mixes the learned state in with this weight.
        bound: Calibrated bound of the relative error of the learned state.
        version: Version of the model.
        decision: Decision number; 0 when the client decided alone.
        phase: Phase of the switch.
        snapshot: This rank's part of the state to adopt; step and time included.
        rewind_to: Step of the saved state to restore.
    """

    action: Action
    reason: str = ""
    dt: float = 0.0
    horizon: int = 0
    weight: float = 1.0
    bound: float = math.inf
    version: int = 0
    decision: int = 0
    phase: Phase = "direct"
    snapshot: Snapshot | None = None
    rewind_to: int = -1

    @property
    def stop(self) -> bool:
        """Whether the run is over."""
        return self.action is Action.STOP

    @classmethod
    def direct(cls, reason: str, dt: float) -> Advice:
        """The value of every failure: integrate directly, and why."""
        return cls(Action.DIRECT, reason, dt)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a Task says about a step ahead. Parts that a Task does not own stay None.

    Attributes:
        horizon: Steps from the Snapshot asked about to the state forecast.
        error: The model's own estimate of the relative error of that state (rms over rms fluctuation), or for `dt`
            the probability that the dt misses its tolerance.
        version: Model version, 0 when nothing is trained.
        arrays: State fields by name at the end of the horizon, global arrays of the caller's own (never reused).
        dt: Suggested dt for direct steps.
        observables: Per name one value for each of the `horizon` covered steps, shape (horizon,), float64.
        residual: Distance of the Snapshot from what the model was trained on, relative to the rms fluctuation of its
            training data (reconstruction error of the reduced coordinates); 0 when it has no such notion.
        in_range: Whether every control lies in the range seen in training.
        scales: Rms fluctuation of each state field over the training data, the unit of every relative error.
    """

    horizon: int
    error: float
    version: int
    arrays: Mapping[str, Array] | None = None
    dt: float | None = None
    observables: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    residual: float = 0.0
    in_range: bool = True
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backtest:
    """One free-running forecast over stored direct data that was not trained on.

    Attributes:
        horizon: Steps forecast.
        estimated: The model's own error estimate.
        observed: The error found, rms over rms fluctuation.
    """

    horizon: int
    estimated: float
    observed: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a call of `learn` did.

    Attributes:
        version: Version of the serving model after the call; it rises when a candidate was promoted.
        trained_on: Snapshots used, up to and including the watermark `last_step`.
        last_step: Highest coupling step trained on, -1 when none.
        kind: Name of the model that serves, such as "affine" or "network".
        promoted: True when this call changed the serving model.
        backtests: Horizon errors of the serving model on direct data it was not trained on; replaces earlier ones.
        loss: A figure for the log.
        superseded: Snapshots dropped so far because the run rewound past them.
        idle: True when more learning makes no sense before new Snapshots come.
    """

    version: int = 0
    trained_on: int = 0
    last_step: int = -1
    kind: str = "none"
    promoted: bool = False
    backtests: tuple[Backtest, ...] = ()
    loss: float = math.nan
    superseded: int = 0
    idle: bool = False


@runtime_checkable
class Task(Protocol):
    """What learns from states and answers. Constructed as `Thing(*, fields=..., seed=..., **settings)`.

    One instance may serve while another, in the trainer, learns; only `state()` crosses between them. A Task sees
    global Snapshots, or, where several ranks share it by blocks, its region of them and `fields` of that shape. It must
    not change their arrays, or keep them without copying.
    """

    owns: ClassVar[frozenset[str]]
    """Parts of Advice this Task answers: a subset of {"arrays", "dt"}."""

    def observe(self, snapshot: Snapshot) -> None:
        """Takes in one directly integrated Snapshot. Cheap: store, do not train. A step that does not follow the
        last one (a jump, or a return to an earlier step) starts a new trajectory segment; samples of later steps on
        the abandoned branch are dropped.
        """
        ...

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        """What the serving model says about `snapshot.step + horizon`. Version 0 when it cannot say anything."""
        ...

    def learn(self, steps: int) -> Report:
        """Trains for a number of steps (the Task's own unit of bounded work, well under a second each)."""
        ...

    def state(self) -> dict[str, Array]:
        """Everything `forecast` needs, as arrays by name (safetensors-ready: no object dtype)."""
        ...

    def restore(self, state: Mapping[str, Array]) -> None:
        """Takes over a state made by `state()` of the same kind of Task. Atomic: raises ValueError or works."""
        ...


class Link(Protocol):
    """Two-way, message-framed, small messages. Owned by one thread. `coupler.testing.check_link` tests one.

    A link whose other side works in the same thread, so that the answer to a message may be there as soon as it was
    sent, says so by an attribute `at_once = True`. One that need not copy frames has a method `send_in_place`, like
    `send`, for frames that nobody changes before the other side has read them or is gone. A connecting one that knows
    whether the other side is there has a property `connected`, and one `meetings`, how often it came.
    """

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """Sends without waiting. False when the queue is full or the peer is gone: the message was not taken.
        `peer` names the receiver on the listening side and is ignored on the connecting side.
        """
        ...

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """The next message as (peer, frames), or None after timeout_s seconds (0: do not wait)."""
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Frees everything; messages not sent within linger_s seconds are dropped. May be called twice."""
        ...
