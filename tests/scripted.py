"""Material that many tests share: a tiny exact simulation, a task that behaves as told, and both ends of a coupling."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from coupler.contracts import Backtest, Forecast, Invariant, Report
from coupler.ranks import Ranks
from coupler.switch import Switch
from ml_servers.core import Sampled, Send, ServerCore
from ml_servers.settings import CoreSettings
from schemas import wire
from schemas.fields import Array, Block, FieldSpec, Snapshot
from schemas.messages import VERSION, Action, Advice, Ask, Hello, Message, Push, Refusal, Stamp

N = 12
ANGLE = 0.3
DT = 0.5
FIELDS = (
    FieldSpec("x", "<f8", (N,), "m", blend="linear"),
    FieldSpec("v", "<f8", (N,), "m/s", blend="linear"),
    FieldSpec("force", "<f8", (), "N", kind="scalar", role="control"),
    FieldSpec("lift", "<f8", (), "1", kind="scalar", role="observable"),
)


def turned(x: Array, v: Array, steps: int) -> tuple[Array, Array]:
    """The exact dynamics: every oscillator turns by ANGLE a step."""
    c, s = math.cos(steps * ANGLE), math.sin(steps * ANGLE)
    return c * x + s * v, c * v - s * x


class Spinner:
    """A Simulation of N oscillators, split into slabs over ranks."""

    def __init__(self, ranks: Ranks | None = None, force: float = 1.0, controls_until: float = math.inf) -> None:
        ranks = ranks or Ranks()
        self.own = np.array_split(np.arange(N), ranks.size)[ranks.rank]
        phase = np.linspace(0.0, 3.0, N)[self.own]
        self.x, self.v = np.cos(phase), np.sin(phase)
        self.step, self.time, self.dt = 0, 0.0, DT
        self.force, self.controls_until = force, controls_until
        self.noise = 0.0  # added to x by every direct step
        self.adopted: list[int] = []

    def fields(self) -> Sequence[FieldSpec]:
        return FIELDS

    def snapshot(self) -> Snapshot:
        offset = (int(self.own[0]),)
        blocks = {
            "x": Block(self.x, offset),
            "v": Block(self.v, offset),
            "force": Block(np.array(self.force)),
            "lift": Block(np.array(float(self.step))),
        }
        return Snapshot(self.step, self.time, self.dt, blocks, self.controls_until)

    def integrate(self, dt: float, n: int) -> None:
        for _ in range(n):
            self.x, self.v = turned(self.x, self.v, 1)
            self.x = self.x + self.noise
            self.step, self.time = self.step + 1, self.time + dt

    def adopt(self, snapshot: Snapshot) -> None:
        self.x, self.v = snapshot["x"].copy(), snapshot["v"].copy()
        self.step, self.time = snapshot.step, snapshot.time
        self.adopted.append(snapshot.step)

    def save(self) -> object:
        return (self.step, self.time, self.x.copy(), self.v.copy())

    def restore(self, token: object) -> None:
        self.step, self.time, x, v = token  # type: ignore[misc]
        self.x, self.v = x.copy(), v.copy()

    def invariants(self) -> Mapping[str, Invariant]:
        return {"energy": Invariant(float(self.x @ self.x + self.v @ self.v))}


@dataclass
class ScriptedTask:
    """A Task whose forecasts are as `mood` says: perfect, off, nan, shapeless, raises, silent or short."""

    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})
    mood: str = "perfect"
    version: int = 0
    error: float = 0.001
    offset: float = 0.5
    in_range: Callable[[float], bool] = lambda force: force < 2.0
    asked: list[tuple[int, int]] = field(default_factory=list)

    def observe(self, snapshot: Snapshot) -> None: ...

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        self.asked.append((snapshot.step, horizon))
        if self.mood == "raises":
            raise RuntimeError("the plug-in is broken")
        if not self.version or self.mood == "silent":
            return Forecast(horizon, math.inf, self.version)
        x, v = turned(snapshot["x"], snapshot["v"], horizon)
        if self.mood == "off":
            x = x + self.offset
        elif self.mood == "nan":
            x = x * math.nan
        elif self.mood == "shapeless":
            x = x[1:]
        return Forecast(
            horizon - (self.mood == "short"),
            self.error,
            self.version,
            arrays={"x": x, "v": v},
            observables={"lift": snapshot.step + 1.0 + np.arange(horizon)},
            in_range=self.in_range(float(snapshot["force"])),
            scales={"x": 1.0, "v": 1.0},
        )

    def learn(self, steps: int) -> Report:
        return Report()

    def state(self) -> dict[str, Array]:
        return {"version": np.array(self.version)}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.version = int(state["version"])


def backtests(longest: int = 40, ratio: float = 1.0, count: int = 20) -> list[Backtest]:
    """Back-tests that make horizons up to `longest` good for a task with error 0.001 and any tolerance above that."""
    horizons = [h for h in (1, 2, 5, 10, 20, 40, 80) if h <= longest]
    return [Backtest(h, 0.001, 0.001 * ratio) for h in horizons for _ in range(count)]


SWITCH = Switch(tolerance=0.05, confirm=2, min_horizon=2, first_spacing=5, cooldown=4)
SETTINGS = CoreSettings(run="r", tasks=("task",), switch=SWITCH, overhead=1e9)


class MemoryArrays:
    """Counts what an Assembly takes and gives back."""

    def __init__(self, fields: Sequence[FieldSpec]) -> None:
        self.fields, self.out = fields, 0

    def acquire(self) -> Mapping[str, Array]:
        self.out += 1
        return {spec.name: np.full(spec.shape, 7, dtype=spec.dtype) for spec in self.fields}

    def discard(self, arrays: Mapping[str, Array]) -> None:
        self.out -= 1


def make_core(task: ScriptedTask, settings: CoreSettings = SETTINGS) -> ServerCore:
    return ServerCore(settings, lambda _name, _fields: task, MemoryArrays)


class Host:
    """Ranks of a Spinner that speak to a ServerCore directly, message by message, and do as they are told."""

    def __init__(
        self,
        core: ServerCore,
        ranks: int = 1,
        last_step: int = 1000,
        can_rewind: bool = True,
        cpu_s: float = 0.0,
    ) -> None:
        self.core, self.size, self.last_step, self.can_rewind = core, ranks, last_step, can_rewind
        self.sim = Spinner()
        self.epoch, self.seq = [0] * ranks, [0] * ranks
        self.saved: dict[int, object] = {}
        self.standing = self.executed = self.adopted = 0
        self.cpu_s = cpu_s  # of the server, for each message
        self.direct = True
        self.story: list[str] = []
        self.samples: list[tuple[int, bool]] = []
        for rank in range(ranks):
            self.hello(rank)

    def hello(self, rank: int, step: int = 0) -> Message:
        [send] = self.core.handle(b"rank-%d" % rank, self.greeting(rank, step), {}, self.cpu_s)
        assert isinstance(send, Send)
        self.epoch[rank], self.seq[rank] = getattr(send.message, "epoch", 0), 0
        return send.message

    def greeting(self, rank: int, step: int = 0) -> Hello:
        who = (VERSION, "r", rank, self.size, FIELDS, {"energy": "sum"})
        return Hello(*who, step, self.last_step, self.can_rewind)

    def blocks(self, rank: int) -> dict[str, Block]:
        part = np.array_split(np.arange(N), self.size)[rank]
        whole, offset = self.sim.snapshot(), (int(part[0]),)
        cells = {name: Block(whole[name][part], offset) for name in ("x", "v")}
        return cells | {name: whole.blocks[name] for name in ("force", "lift")}

    def ask(self, rank: int = 0, until: int | None = None, refused: str = "", **changes: object) -> list[object]:
        """One rank's Ask about the present state; what the core says."""
        sim = self.sim
        self.seq[rank] += 1
        stamp = Stamp(rank, self.epoch[rank], self.seq[rank], sim.step, sim.time, sim.dt, sim.controls_until, ())
        blocks = self.blocks(rank)
        told: dict[str, object] = {
            "known": self.standing,
            "direct": self.direct,
            "saved": tuple(sorted(self.saved)),
            "invariants": {"energy": sim.invariants()["energy"].value / self.size},
            "refused": refused,
            "direct_step_s": 0.1,
            "executed": self.executed,
            "adopted": self.adopted,
        } | changes
        if told["known"]:
            blocks = {"force": blocks["force"]}
        message = Ask(stamp, self.last_step if until is None else until, **told)  # type: ignore[arg-type]
        return list(self.core.handle(b"rank-%d" % rank, message, blocks, self.cpu_s))

    def push(self, rank: int = 0) -> list[object]:
        self.seq[rank] += 1
        sim = self.sim
        stamp = Stamp(rank, self.epoch[rank], self.seq[rank], sim.step, sim.time, sim.dt, sim.controls_until, ())
        share = {"energy": sim.invariants()["energy"].value / self.size}
        return list(self.core.handle(b"rank-%d" % rank, Push(stamp, share), self.blocks(rank)))

    def exchange(self, order: Sequence[int] | None = None, **changes: object) -> Advice | None:
        """Every rank asks; the Advice of rank 0, with all Blocks joined; None when there was none."""
        instructions: list[object] = []
        for rank in order or range(self.size):
            instructions += self.ask(rank, **changes)  # type: ignore[arg-type]
        self.samples += [(i.snapshot.step, i.trains) for i in instructions if isinstance(i, Sampled)]
        sends = [i for i in instructions if isinstance(i, Send)]
        advices = [(i.message, i.blocks) for i in sends if isinstance(i.message, Advice)]
        assert not any(isinstance(i.message, Refusal) for i in sends)
        if not advices:
            return None
        assert len({a.decision for a, _ in advices}) == 1 and len(advices) == self.size
        self.joined = {name: np.concatenate([blocks[name].array for _, blocks in advices]) for name in advices[0][1]}
        return advices[0][0]

    def follow(self, advice: Advice | None) -> None:
        """Does what the Advice says, as a Coupling would."""
        self.standing, was_direct, self.direct = 0, self.direct and not self.standing, True
        sim = self.sim
        if advice is not None:
            self.executed = advice.decision
        if advice is None or advice.action is Action.DIRECT:
            sim.integrate(DT, 1)
        elif advice.action is Action.REWIND:
            sim.restore(self.saved[advice.rewind_to])
            self.adopted = 0
        elif advice.action is Action.LEARNED:
            if was_direct:
                self.saved[sim.step] = sim.save()
            arrays = self.joined
            if advice.weight < 1.0:
                sim.integrate(DT, advice.step - sim.step)
                now = {"x": sim.x, "v": sim.v}
                arrays = {k: advice.weight * a + (1 - advice.weight) * now[k] for k, a in arrays.items()}
                self.direct = False
            else:
                self.standing = advice.decision
            self.adopted = advice.decision
            sim.adopt(Snapshot.of(advice.step, advice.time, DT, **arrays))

    def run(self, steps: int, **changes: object) -> list[str]:
        """Exchanges and follows so many times; the story as `ACTION phase` words."""
        story = []
        for _ in range(steps):
            at = self.sim.step
            advice = self.exchange(**changes)
            self.follow(advice)
            story.append(word(at, advice))
        self.story += story
        return story


def word(at: int, advice: Advice | None) -> str:
    if advice is None:
        return "nothing"
    if advice.action is Action.LEARNED:
        blended = "" if advice.weight >= 1.0 else f" x{advice.weight:.2g}"
        return f"learned {advice.step - at}{blended}"
    if advice.action is Action.REWIND:
        return f"rewind {advice.rewind_to - at}"
    return str(advice.phase)


class ScriptedLink:
    """A client's Link to a server that is a function: message and Blocks in, messages and Blocks out.

    `answer` may be changed at any time. A `receive` that finds nothing lets the clock pass its time-out.
    """

    at_once = True

    def __init__(self, answer: Callable[[Message, Mapping[str, Block]], Sequence[tuple[Message, Mapping[str, Block]]]]):
        self.answer = answer
        self.sent: list[Message] = []
        self.inbox: deque[list[memoryview]] = deque()
        self.full = False
        self.now = 0.0
        self.closed = False

    def clock(self) -> float:
        return self.now

    def send(self, frames: Sequence[wire.Frame], peer: bytes = b"") -> bool:
        if self.full:
            return False
        message, blocks = wire.decode([bytes(frame) for frame in frames], 1 << 30)
        self.sent.append(message)
        for reply, parts in self.answer(message, blocks):
            self.say(reply, parts)
        return True

    def say(self, message: Message, blocks: Mapping[str, Block] | None = None) -> None:
        self.inbox.append(frames_of(message, blocks or {}))

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        if self.inbox:
            return b"", self.inbox.popleft()
        self.now += timeout_s
        return None

    def close(self, linger_s: float = 0.0) -> None:
        self.closed = True


def frames_of(message: Message, blocks: Mapping[str, Block]) -> list[memoryview]:
    """The frames of a message with Blocks, as a Link would deliver them."""
    import msgspec

    table, frames = wire.block_table(blocks)
    if table and isinstance(message, Advice):
        message = msgspec.structs.replace(message, blocks=table)
    elif table and isinstance(message, Ask | Push):
        stamp = msgspec.structs.replace(message.stamp, blocks=table)
        message = msgspec.structs.replace(message, stamp=stamp)
    return [memoryview(bytes(frame)) for frame in wire.encode(message, frames)]
