"""The Coupling against servers that are late, wrong, silent or hostile: the host always gets an Advice to follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from scripted import (
    DT,
    FIELDS,
    SETTINGS,
    SWITCH,
    N,
    ScriptedLink,
    ScriptedTask,
    Spinner,
    backtests,
    frames_of,
    make_core,
    turned,
)

from coupler.contracts import Advice
from coupler.coupling import Coupling
from coupler.errors import SchemaMismatch, SimulationFailed
from coupler.guard import Guard
from coupler.links.memory import MemoryHub
from coupler.recording import RunRecorder
from coupler.terms import Terms
from coupler.testing.flaky import FlakyLink
from ml_servers.core import Send, ServerCore
from schemas import messages, wire
from schemas.fields import Block, Snapshot
from schemas.messages import Ack, Action, Ask, Bye, Hello, Message, Push, Refusal, Welcome

Reply = tuple[Message, Mapping[str, Block]]
TERMS = Terms(run="r", last_step=1000, deadline_s=2.0)


def learned(ask: Ask, decision: int, horizon: int = 5, **changes: Any) -> Reply:
    """The exact state `horizon` steps after a Spinner that was never disturbed."""
    step = ask.stamp.step + horizon
    sim = Spinner()
    x, v = turned(sim.x, sim.v, step)
    told: dict[str, Any] = {
        "answers": ask.stamp.step,
        "step": step,
        "time": step * DT,
        "horizon": horizon,
        "version": 3,
    }
    advice = messages.Advice(
        action=Action.LEARNED, decision=decision, ack=Ack(1, ask.stamp.seq, 0, 8), **(told | changes)
    )
    return advice, {"x": Block(x, (0,)), "v": Block(v, (0,))}


def direct(ask: Ask, decision: int, **changes: Any) -> Reply:
    told: dict[str, Any] = {"action": Action.DIRECT, "answers": ask.stamp.step, "reason": "told so"} | changes
    return messages.Advice(decision=decision, ack=Ack(1, ask.stamp.seq, 0, 8), **told), {}


class Server:
    """Welcomes, then lets `plan[n]` answer the n-th Ask, and `otherwise` all others."""

    def __init__(self, *plan: Callable[[Ask, int], Reply] | None, credit: int = 8) -> None:
        self.plan, self.credit = plan, credit
        self.otherwise: Callable[[Ask, int], Reply] | None = direct
        self.asks: list[Ask] = []
        self.link = ScriptedLink(self)

    def __call__(self, message: Message, blocks: Mapping[str, Block]) -> list[Reply]:
        if isinstance(message, Hello):
            return [(Welcome(1, self.credit, ()), {})]
        if not isinstance(message, Ask):
            return []
        self.asks.append(message)
        n = len(self.asks)
        answer = self.plan[n - 1] if n <= len(self.plan) else self.otherwise
        return [answer(message, n)] if answer else []


def coupled(server: Server, sim: Spinner | None = None, **settings: Any) -> tuple[Coupling, Spinner]:
    sim = sim or Spinner()
    terms = settings.pop("terms", TERMS)
    return Coupling(server.link, FIELDS, terms, clock=server.link.clock, **settings), sim


def go(coupling: Coupling, sim: Spinner, steps: int) -> list[Advice]:
    seen = []
    for _ in range(steps):
        advice = coupling.exchange(sim.snapshot(), None, sim.invariants())
        coupling.apply(sim, advice)
        seen.append(advice)
    return seen


def is_exact(sim: Spinner) -> bool:
    fresh = Spinner()
    x, v = turned(fresh.x, fresh.v, sim.step)
    return bool(np.allclose(sim.x, x, atol=1e-9) and np.allclose(sim.v, v, atol=1e-9) and sim.time == sim.step * DT)


def test_without_a_link_every_step_is_direct() -> None:
    sim = Spinner()
    with Coupling(None, FIELDS, TERMS) as coupling:
        assert {a.action for a in go(coupling, sim, 3)} == {Action.DIRECT} and sim.step == 3 and is_exact(sim)


def test_a_silent_server_costs_no_wait() -> None:
    server = Server()
    server.link.answer = lambda _message, _blocks: []
    coupling, sim = coupled(server)
    advices = go(coupling, sim, 5)
    assert {a.reason for a in advices} == {"no server yet"} and server.link.now == 0.0
    assert coupling.books == {
        "produced": 5,
        "admitted": 0,
        "in_flight": 0,
        "retained": 0,
        "dropped": {"no server yet": 5},
    }


def test_a_solver_whose_steps_take_longer_than_any_silence_is_answered_all_the_same() -> None:
    server = Server()
    server.link.at_once = False  # the answer comes while the solver works
    coupling, sim = coupled(server)
    advices = []
    for _ in range(10):
        advices += go(coupling, sim, 1)
        server.link.now += 30.0
    assert [type(message) for message in server.link.sent].count(Hello) == 1
    assert {a.reason for a in advices[2:]} == {"told so"} and not coupling.books["dropped"].get("lost with the server")


def test_a_refusal_is_the_reason_ever_after() -> None:
    server = Server()
    server.link.answer = lambda _message, _blocks: [(Refusal("wrong run"), {})]
    coupling, sim = coupled(server)
    advices = go(coupling, sim, 5)
    assert "refused by the server: wrong run" in advices[-1].reason and len(server.link.sent) == 1
    coupling.close()
    assert isinstance(server.link.sent[-1], Bye) and server.link.closed  # the server need not wait for it


def test_who_was_not_answered_yet_says_goodbye_too() -> None:
    server = Server()
    server.link.answer = lambda _message, _blocks: []
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    coupling.close()
    assert [type(message) for message in server.link.sent] == [Hello, Bye] and server.link.now == 0.0


def test_a_learned_state_is_adopted_with_step_and_time_and_named_in_the_next_ask() -> None:
    server = Server(learned)
    coupling, sim = coupled(server)
    first, second = go(coupling, sim, 2)
    assert (first.action, first.horizon, second.action) == (Action.LEARNED, 5, Action.DIRECT)
    assert sim.step == 6 and is_exact(sim)
    known = server.asks[1]
    assert (known.known, known.adopted, known.executed, known.saved) == (1, 1, 1, (0,))
    assert [entry.field for entry in known.stamp.blocks] == ["force"]
    assert coupling.books["produced"] == coupling.books["admitted"] == 1  # the learned state is no sample


def test_only_a_learned_state_is_waited_for_and_only_to_the_deadline() -> None:
    server = Server(learned, None)
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    assert server.link.now == 0.0
    [advice] = go(coupling, sim, 1)
    assert advice.action is Action.DIRECT and advice.reason == "no answer within the deadline"
    assert server.link.now == pytest.approx(TERMS.deadline_s)
    go(coupling, sim, 1)
    assert server.asks[2].refused == "no answer within the deadline" and server.link.now == pytest.approx(2.0)


def test_a_late_learned_state_still_ahead_is_adopted_and_one_behind_is_refused() -> None:
    held: list[Reply] = []

    def late(ask: Ask, decision: int) -> Reply:
        held.append(learned(ask, decision))
        return messages.Ack(1, ask.stamp.seq, 0, 8), {}

    server = Server(late)
    coupling, sim = coupled(server)
    server.otherwise = None
    go(coupling, sim, 4)  # asked at step 0; the answer leads to step 5
    server.link.say(*held[0])
    [advice] = go(coupling, sim, 1)
    assert advice.action is Action.LEARNED and sim.step == 5 and is_exact(sim) and list(coupling.saved) == [4]

    server = Server(late)
    coupling, sim = coupled(server)
    server.otherwise = None
    go(coupling, sim, 5)
    server.link.say(*held[1])
    [advice] = go(coupling, sim, 1)
    assert advice.action is Action.DIRECT and "too late" in advice.reason and sim.step == 6 and is_exact(sim)
    assert "too late" in server.asks[-1].refused


def test_answers_to_steps_before_a_learned_state_are_void() -> None:
    stale: list[Reply] = []

    def waits(ask: Ask, decision: int) -> Reply:
        stale.append(direct(ask, decision, reason="stale"))
        return messages.Ack(1, ask.stamp.seq, 0, 8), {}

    server = Server(None, waits)
    coupling, sim = coupled(server)
    go(coupling, sim, 2)
    server.link.say(*learned(server.asks[0], 1, horizon=6))
    go(coupling, sim, 1)
    server.link.say(*stale[0])  # the answer about step 1 comes while the host stands at step 6
    server.otherwise = lambda ask, n: direct(ask, n, reason="about the learned state")
    [advice] = go(coupling, sim, 1)
    assert advice.reason == "about the learned state"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a, b: (a, {"x": b["x"]}), "lacks field 'v'"),
        (lambda a, b: (a, b | {"x": Block(b["x"].array * math.nan, (0,))}), "not finite"),
        (lambda a, b: (a, b | {"x": Block(b["x"].array[:-1], (0,))}), "not the part"),
        (lambda a, b: (a, b | {"x": Block(b["x"].array[:-1], (1,))}), "not the part"),
        (lambda a, b: (a, b | {"x": Block(b["x"].array.astype(np.float32), (0,))}), "declared as <f8"),
        (lambda a, b: (a, b | {"y": Block(np.zeros(1), (0,))}), "undeclared field 'y'"),
        (lambda a, b: (a, b | {"x": Block(b["x"].array + 9.0, (0,))}), "leaves its bounds"),
        (lambda a, b: (msgspec.structs.replace(a, time=math.nan), b), "time nan"),
        (lambda a, b: (msgspec.structs.replace(a, weight=0.0), b), "weight 0.0"),
        (lambda a, b: (msgspec.structs.replace(a, weight=math.nan), b), "weight nan"),
        (lambda a, b: (msgspec.structs.replace(a, step=-7), b), "too late"),
    ],
)
def test_a_learned_state_that_cannot_be_used_becomes_a_reason(spoil: Callable[..., Reply], says: str) -> None:
    server = Server(lambda ask, n: spoil(*learned(ask, n)))
    coupling, sim = coupled(server, guard=Guard(bounds={"x": (-5.0, 5.0)}))
    [advice, *_] = go(coupling, sim, 2)
    assert advice.action is Action.DIRECT and says in advice.reason and is_exact(sim)
    assert says in server.asks[1].refused and server.asks[1].adopted == 0


def test_damaged_bytes_are_counted_and_change_nothing() -> None:
    server = Server()
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    frames = frames_of(*learned(server.asks[0], 9))
    for cut in (0, 1, 2):
        damaged = [bytearray(frame) for frame in frames]
        damaged[cut][len(damaged[cut]) // 2] ^= 4
        server.link.inbox.append([memoryview(bytes(frame)) for frame in damaged])
    server.link.inbox.append([memoryview(b"")])
    server.link.inbox.append([])
    go(coupling, sim, 1)
    assert coupling._channel is not None and coupling._channel.garbled == 5 and sim.step == 2


def test_a_rewind_restores_bitwise() -> None:
    server = Server(learned, direct, lambda ask, n: direct(ask, n, action=Action.REWIND, rewind_to=0))
    coupling, sim = coupled(server)
    before = (sim.x.tobytes(), sim.v.tobytes(), sim.time)
    advices = go(coupling, sim, 3)
    assert [a.action for a in advices] == [Action.LEARNED, Action.DIRECT, Action.REWIND]
    assert (sim.x.tobytes(), sim.v.tobytes(), sim.time) == before and sim.step == 0
    assert go(coupling, sim, 1)[0].action is Action.DIRECT
    assert server.asks[3].executed == 3 and server.asks[3].adopted == 0 and server.asks[3].stamp.step == 0


def test_a_rewind_past_a_saved_state_drops_it() -> None:
    server = Server(learned, direct, learned, direct, lambda ask, n: direct(ask, n, action=Action.REWIND, rewind_to=0))
    coupling, sim = coupled(server)
    go(coupling, sim, 4)
    assert list(coupling.saved) == [0, 6]
    go(coupling, sim, 1)
    assert list(coupling.saved) == [0] and sim.step == 0


def test_a_rewind_to_a_state_that_is_not_saved_is_refused() -> None:
    server = Server(lambda ask, n: direct(ask, n, action=Action.REWIND, rewind_to=7))
    coupling, sim = coupled(server)
    go(coupling, sim, 2)
    assert sim.step == 2 and "no state is saved for step 7" in server.asks[1].refused


def test_only_verified_states_are_kept() -> None:
    """learned, no answer, direct, learned again from there: the second start is not verified and not kept."""
    server = Server(learned, None, lambda ask, n: learned(ask, n, answers=5))
    coupling, sim = coupled(server)
    go(coupling, sim, 3)
    assert list(coupling.saved) == [0]


def test_at_most_two_saved_states_the_newest() -> None:
    server = Server(*[learned, direct] * 4)
    coupling, sim = coupled(server)
    go(coupling, sim, 7)
    assert list(coupling.saved) == [12, 18] and coupling.saved[18] is not None


def test_blended_hand_over() -> None:
    server = Server(lambda ask, n: learned(ask, n, horizon=2, weight=0.25))
    coupling, sim = coupled(server)
    sim.x = sim.x + 1.0  # so that the two parts of the mix differ
    x, v = turned(sim.x, sim.v, 2)
    go(coupling, sim, 1)
    exact = Spinner()
    lx, lv = turned(exact.x, exact.v, 2)
    assert sim.step == 2 and np.allclose(sim.x, 0.25 * lx + 0.75 * x) and np.allclose(sim.v, 0.25 * lv + 0.75 * v)
    assert list(coupling.saved) == [0]  # the start of the hand-over can be rewound to
    go(coupling, sim, 2)
    assert [a.direct for a in server.asks] == [True, False, True]  # blended, then directly integrated again
    assert [a.refused for a in server.asks] == [""] * 3


def test_an_invariant_that_a_learned_state_breaks_is_restored_and_told(tmp_path: Path) -> None:
    def heavy(ask: Ask, n: int) -> Reply:
        advice, blocks = learned(ask, n)
        return advice, blocks | {"x": Block(blocks["x"].array * 1.2, (0,))}

    server = Server(direct, heavy)
    coupling, sim = coupled(server, guard=Guard(drift={"energy": 0.1}), recorder=RunRecorder(tmp_path))

    go(coupling, sim, 2)
    assert sim.step == 1 and is_exact(sim)
    go(coupling, sim, 1)
    assert "energy" in server.asks[2].refused and server.asks[2].known == server.asks[2].adopted == 0
    coupling.close()
    with (tmp_path / "trace.msgpack").open("rb") as file:
        actions = [(r["action"], r["to_step"]) for r in msgpack.Unpacker(file)]
    assert actions == [("direct", 1), ("learned", 6), ("rewind", 1), ("direct", 2)]


def test_a_lease_means_no_message() -> None:
    server = Server(lambda ask, n: direct(ask, n, lease=10))
    coupling, sim = coupled(server)
    go(coupling, sim, 10)
    assert len(server.asks) == 1 and coupling.books["produced"] == 1
    go(coupling, sim, 1)
    assert server.asks[1].stamp.step == 10


def test_in_a_lease_nothing_is_received_or_voted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda ask, n: direct(ask, n, lease=10))
    coupling, sim = coupled(server)
    go(coupling, sim, 2)

    def never(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(coupling._channel, "drain", never)
        patched.setattr("coupler.coupling.agree", never)
        go(coupling, sim, 8)
    go(coupling, sim, 1)
    assert [ask.stamp.step for ask in server.asks] == [0, 10]


def test_a_lease_is_not_cut_short_by_an_answer_that_was_under_way() -> None:
    server = Server(None, None)
    coupling, sim = coupled(server)
    go(coupling, sim, 2)
    server.link.say(*direct(server.asks[0], 1, lease=50))
    go(coupling, sim, 1)
    server.link.say(*direct(server.asks[1], 2, lease=1))
    go(coupling, sim, 20)
    assert len(server.asks) == 2


def test_out_of_credit_drops_counts_and_says_so() -> None:
    server = Server(credit=3)
    server.otherwise = None
    coupling, sim = coupled(server)
    advices = go(coupling, sim, 5)
    assert len(server.asks) == 3 and advices[-1].reason == "no credit"
    assert coupling.books["dropped"] == {"no credit": 2} and coupling.books["in_flight"] == 3


def test_out_of_credit_at_a_learned_state_integrates() -> None:
    server = Server(None, None, credit=2)
    coupling, sim = coupled(server)
    go(coupling, sim, 2)
    advice, blocks = learned(server.asks[0], 1, horizon=4)
    server.link.say(msgspec.structs.replace(advice, ack=Ack(1, 0, 0, 2)), blocks)
    go(coupling, sim, 1)
    assert sim.step == 4
    [told] = go(coupling, sim, 1)
    assert (told.action, told.reason) == (Action.DIRECT, "no credit") and server.link.now == 0.0 and sim.step == 5


def test_a_full_link_gives_the_number_back() -> None:
    server = Server()
    coupling, sim = coupled(server)
    go(coupling, sim, 2)
    server.link.full = True
    [advice] = go(coupling, sim, 1)
    assert advice.action is Action.DIRECT and advice.reason == "link full"
    server.link.full = False
    go(coupling, sim, 1)
    assert [a.stamp.seq for a in server.asks] == [1, 2, 3]


def test_a_refusal_that_could_not_be_sent_is_sent_later() -> None:
    server = Server(lambda ask, n: direct(ask, n, action=Action.REWIND, rewind_to=7))
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    server.link.full = True
    go(coupling, sim, 1)
    server.link.full = False
    go(coupling, sim, 1)
    assert "no state is saved" in server.asks[1].refused


def test_a_message_that_the_link_can_never_take_is_a_reason() -> None:
    hub = MemoryHub(capacity_bytes=420)  # the HELLO fits, a state does not
    listener = hub.listen()
    link = hub.connect(b"rank-0")
    with Coupling(link, FIELDS, TERMS) as coupling:
        sim = Spinner()
        go(coupling, sim, 1)
        assert listener.receive(0.0) is not None
        listener.send(list(wire.encode(Welcome(1, 8, ()))), b"rank-0")
        [advice] = go(coupling, sim, 1)
        assert advice.action is Action.DIRECT and "capacity_bytes" in advice.reason
    listener.close()


@pytest.mark.parametrize("at", [0, 3])
def test_a_state_that_is_not_finite_raises_on_its_step(at: int) -> None:
    server = Server()
    coupling, sim = coupled(server)
    go(coupling, sim, at)
    sim.v[2] = math.nan
    with pytest.raises(SimulationFailed, match=f"At step {at} .*'v'"):
        coupling.exchange(sim.snapshot())
    assert len(server.asks) == at  # it was not shown to anyone


@pytest.mark.parametrize(("key", "value"), [("dt", -0.1), ("dt", math.nan), ("dt", math.inf), ("time", math.nan)])
def test_a_time_that_is_none_raises(key: str, value: float) -> None:
    coupling, sim = coupled(Server())
    go(coupling, sim, 2)
    setattr(sim, key, value)
    with pytest.raises(SimulationFailed, match=r"At step 2 the simulation shows time .* and dt"):
        coupling.exchange(sim.snapshot())


def test_a_field_that_changes_its_shape_raises() -> None:
    coupling, sim = coupled(Server())
    go(coupling, sim, 2)
    sim.x = sim.x.astype(np.float32)
    with pytest.raises(SchemaMismatch, match=r"At step 2.*'x'.*<f8"):
        coupling.exchange(sim.snapshot())


def test_push_sends_direct_states_only() -> None:
    server = Server(learned)
    coupling, sim = coupled(server)
    coupling.exchange(sim.snapshot())
    coupling.push(sim.snapshot())
    assert not any(isinstance(m, Push) for m in server.link.sent)  # the host is about to adopt a learned state
    coupling, sim = coupled(server := Server())
    go(coupling, sim, 1)
    coupling.push(sim.snapshot(), sim.invariants())
    assert isinstance(server.link.sent[-1], Push)


def test_a_push_reads_its_acknowledgements_once_half_of_the_window_is_used() -> None:
    server = Server(credit=8)

    def acknowledge(message: Message, blocks: Mapping[str, Block]) -> list[Reply]:
        return [(Ack(1, message.stamp.seq, 0, 8), {})] if isinstance(message, Push) else server(message, blocks)

    server.link.answer = acknowledge
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    unread = []
    for _ in range(9):
        coupling.push(sim.snapshot())
        unread.append(len(server.link.inbox))
        sim.integrate(DT, 1)
    assert unread == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    coupling.exchange(sim.snapshot())
    assert not coupling.books["dropped"] and coupling.books["admitted"] == coupling.books["produced"] == 11


def test_pushes_without_credit_are_dropped_and_counted_until_there_is_some() -> None:
    server = Server(credit=8)
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    for _ in range(12):
        coupling.push(sim.snapshot())
        sim.integrate(DT, 1)
    assert coupling.books["dropped"] == {"no credit": 4} and coupling.books["in_flight"] == 8
    server.link.say(Ack(1, 9, 0, 8), {})
    coupling.push(sim.snapshot())
    assert coupling.books["dropped"] == {"no credit": 4} and coupling.books["admitted"] == 9


def test_a_host_that_does_not_take_a_learned_state_is_believed() -> None:
    server = Server(learned)
    coupling, sim = coupled(server)
    coupling.exchange(sim.snapshot())
    sim.integrate(DT, 1)  # instead of adopting
    coupling.exchange(sim.snapshot())
    assert server.asks[1].known == 0 and "did not take" in server.asks[1].refused and server.asks[1].adopted == 0


def test_dt_is_clamped_and_kept() -> None:
    server = Server(lambda ask, n: direct(ask, n, dt=99.0), lambda ask, n: direct(ask, n, dt=math.nan))
    coupling, sim = coupled(server, guard=Guard(dt_min=0.1, dt_max=2.0))
    assert [a.dt for a in go(coupling, sim, 3)] == [2.0, DT, DT]
    coupling, sim = coupled(Server(), terms=msgspec.structs.replace(TERMS, dt=0.25))
    assert go(coupling, sim, 1)[0].dt == 0.25


def test_the_farewell_is_the_last_word() -> None:
    server = Server()
    server.otherwise = None
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    server.link.now += 10.0  # long silent: a HELLO would be due
    coupling.close("finished")
    coupling.close()
    assert isinstance(server.link.sent[-1], Bye) and server.link.closed
    assert sum(isinstance(m, Bye) for m in server.link.sent) == 1


def test_a_block_that_fails_says_why_it_ended() -> None:
    server = Server()
    coupling, sim = coupled(server)
    go(coupling, sim, 1)
    with pytest.raises(ZeroDivisionError), coupling:
        raise ZeroDivisionError("by zero")
    assert isinstance(server.link.sent[-1], Bye) and server.link.sent[-1].status == "ZeroDivisionError: by zero"


def test_observables_of_covered_steps_have_times_and_origins(tmp_path: Path) -> None:
    series = {"lift": [10.0, 11.0, 12.0, 13.0, 14.0]}
    server = Server(None, lambda ask, n: learned(ask, n, observables=series, dt=9.9))
    coupling, sim = coupled(server, recorder=RunRecorder(tmp_path))
    go(coupling, sim, 3)
    coupling.close()
    with (tmp_path / "observables.msgpack").open("rb") as file:
        seen = [(r["step"], r["time"], r["origin"], r["values"]["lift"]) for r in msgpack.Unpacker(file)]
    covered = [(s, pytest.approx(s * DT), 3, 8.0 + s) for s in range(2, 7)]
    assert seen == [(0, 0.0, 0, 0.0), (1, DT, 0, 1.0), *covered]


# ------------------------------------------------------------------------------------- with a real core behind a hub


class Behind:
    """A ServerCore behind a MemoryHub, pumped by hand."""

    def __init__(self, task: ScriptedTask) -> None:
        self.core: ServerCore = make_core(task, msgspec.structs.replace(SETTINGS, switch=SWITCH))
        self.hub = MemoryHub(capacity_bytes=1 << 20)
        self.listener = self.hub.listen()
        self.garbled = 0

    def pump(self, most: int = 1 << 30) -> None:
        while most and (received := self.listener.receive(0.0)) is not None:
            most -= 1
            try:
                message, blocks = wire.decode(received[1], 1 << 20)
            except wire.WireError:
                self.garbled += 1
                continue
            for instruction in self.core.handle(received[0], message, blocks):
                if isinstance(instruction, Send):
                    frames = frames_of(instruction.message, instruction.blocks)
                    self.listener.send(list(frames), instruction.peer)
            if isinstance(message, Hello) and self.core.arbiter and not self.core.models:
                self.core.trained("task", 1, "scripted", 10, backtests())


class Pumped:
    """A Link whose server works when it is waited for, or when a message is due."""

    at_once = True

    def __init__(self, behind: Behind, link: Any, every: int = 1) -> None:
        self.behind, self.link, self.every, self.calls, self.now = behind, link, every, 0, 0.0

    def send(self, frames: Any, peer: bytes = b"") -> bool:
        return bool(self.link.send(frames, peer))

    def receive(self, timeout_s: float) -> Any:
        self.calls += 1
        if timeout_s or self.calls % self.every == 0:
            self.behind.pump()
        if (message := self.link.receive(0.0)) is None:
            self.now += timeout_s
        return message

    def close(self, linger_s: float = 0.0) -> None:
        self.link.close()


def drive(sim: Spinner, coupling: Coupling, last: int, most: int = 3000) -> list[Advice]:
    seen: list[Advice] = []
    while (snapshot := sim.snapshot()).step < last and len(seen) < most:
        advice = coupling.exchange(snapshot, last, sim.invariants())
        coupling.apply(sim, advice)
        seen.append(advice)
    return seen


@pytest.mark.parametrize("every", [1, 3, 7])
def test_slow_answers_do_not_keep_a_good_model_out(every: int) -> None:
    behind = Behind(ScriptedTask(version=1))
    link = Pumped(behind, behind.hub.connect(b"rank-0"), every)
    sim = Spinner()
    coupling = Coupling(link, FIELDS, msgspec.structs.replace(TERMS, last_step=400), clock=lambda: link.now)
    seen = drive(sim, coupling, 400)
    assert sim.step == 400 and is_exact(sim)
    assert sum(a.action is Action.LEARNED for a in seen) >= 8 and not any(a.action is Action.REWIND for a in seen)
    coupling.close()
    behind.pump()
    assert behind.core.all_finished


@pytest.mark.parametrize("every", [1, 3, 7])
def test_no_step_of_a_model_that_went_wrong_stays_in_the_trajectory(every: int) -> None:
    task = ScriptedTask(version=1)
    behind = Behind(task)
    link = Pumped(behind, behind.hub.connect(b"rank-0"), every)
    sim = Spinner()
    coupling = Coupling(link, FIELDS, msgspec.structs.replace(TERMS, last_step=400), clock=lambda: link.now)
    drive(sim, coupling, 150)
    task.mood = "off"
    seen = drive(sim, coupling, 400)
    assert any(a.action is Action.REWIND for a in seen)
    assert sim.step == 400 and is_exact(sim)
    coupling.close()


@pytest.mark.parametrize("goes_wrong", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2, 25, 37, 341])  # the last three have found mistakes
def test_over_a_link_that_loses_doubles_and_damages_the_run_ends_and_is_right(seed: int, goes_wrong: bool) -> None:
    task = ScriptedTask(version=1)
    behind = Behind(task)
    switch = msgspec.structs.replace(SWITCH, blend_steps=2 * (seed % 2), audit_steps=1 + (seed % 5 == 0))
    behind.core.settings = msgspec.structs.replace(SETTINGS, switch=switch)
    link = Pumped(behind, behind.hub.connect(b"rank-0"), 1 + seed % 3)
    flaky = FlakyLink(link, seed, clock=lambda: link.now)
    sim = Spinner()
    coupling = Coupling(flaky, FIELDS, msgspec.structs.replace(TERMS, last_step=500), clock=lambda: link.now)
    seen: list[Advice] = []
    while sim.step < 500 and len(seen) < 3000:
        link.now += 0.1
        if goes_wrong and sim.step > 200:
            task.mood = "off"
        advice = coupling.exchange(sim.snapshot(), 500, sim.invariants())
        coupling.apply(sim, advice)
        seen.append(advice)
        books: Any = coupling.books
        assert books["produced"] == books["admitted"] + books["in_flight"] + sum(books["dropped"].values())
    coupling.close()
    assert sim.step == 500 and is_exact(sim) and not behind.core.failures
    assert sum(flaky.counts.values()) > flaky.counts["none"] > 0
    assert any(a.action is Action.LEARNED for a in seen)


def test_a_server_that_comes_back_is_used_again() -> None:
    behind = Behind(ScriptedTask(version=1))
    link = Pumped(behind, behind.hub.connect(b"rank-0"))
    sim = Spinner()
    coupling = Coupling(link, FIELDS, msgspec.structs.replace(TERMS, last_step=1000), clock=lambda: link.now)
    while not any(a.action is Action.LEARNED for a in go(coupling, sim, 1)):
        pass
    behind.core = make_core(ScriptedTask(version=1), msgspec.structs.replace(SETTINGS, first_epoch=5))
    learned_again = False
    for _ in range(200):
        link.now += 0.1
        [advice] = go(coupling, sim, 1)
        learned_again |= advice.action is Action.LEARNED
    assert learned_again and is_exact(sim)
    coupling.close()


def test_the_same_bytes_arrive_as_left() -> None:
    """What the server reads is what the host had when it asked, though the host went on at once."""
    server = Server()
    coupling, sim = coupled(server)
    seen: list[Mapping[str, Block]] = []
    server.link.answer = lambda message, blocks: (seen.append(blocks), server(message, blocks))[1]
    x = sim.x.copy()
    go(coupling, sim, 2)
    assert np.array_equal(seen[1]["x"].array, x) and seen[1]["x"].array.shape == (N,)
    assert isinstance(sim.snapshot(), Snapshot)


# ------------------------------------------------------------------------------------------------ the end of a run


def at_the_end(*answers: Callable[[Ask, int], Reply] | None) -> tuple[Server, Coupling, Spinner]:
    """A host that took a state at step 6 and has made the audit's direct step, the last of the run."""

    def standing(ask: Ask, n: int) -> Reply:
        return direct(ask, n, phase="audit", reason="audit: due")

    server = Server(None, learned, standing, *answers)
    coupling, sim = coupled(server, terms=msgspec.structs.replace(TERMS, last_step=7))
    go(coupling, sim, 3)
    assert sim.step == 7 and coupling.advice.phase == "audit"
    return server, coupling, sim


def test_an_audit_that_reaches_to_the_end_is_closed_before_the_run_is_over() -> None:
    server, coupling, sim = at_the_end(lambda ask, n: direct(ask, n, step_error=0.001))
    assert coupling.finish(sim.snapshot(), sim.invariants()).action is Action.STOP
    assert [ask.stamp.step for ask in server.asks] == [0, 1, 6, 7] and server.asks[-1].direct


def test_a_failed_audit_at_the_end_rewinds_the_run(tmp_path: Path) -> None:
    def rewind(ask: Ask, n: int) -> Reply:
        return direct(ask, n, action=Action.REWIND, rewind_to=1, reason="audit found", step_error=0.5)

    _, coupling, sim = at_the_end(rewind)
    advice = coupling.finish(sim.snapshot(), sim.invariants())
    assert (advice.action, advice.rewind_to) == (Action.REWIND, 1)
    coupling.apply(sim, advice)
    assert sim.step == 1 and is_exact(sim)
    go(coupling, sim, 6)
    assert coupling.finish(sim.snapshot()).action is Action.STOP and is_exact(sim)


def test_an_audit_that_nobody_answers_ends_with_the_deadline(tmp_path: Path) -> None:
    server, coupling, sim = at_the_end(None)
    before = server.link.now
    advice = coupling.finish(sim.snapshot())
    assert advice.action is Action.STOP and "not answered" in advice.reason
    assert server.link.now - before == pytest.approx(TERMS.deadline_s)


def test_an_advised_dt_does_not_outlive_its_server() -> None:
    server = Server()
    server.otherwise = lambda ask, n: direct(ask, n, dt=4 * DT)
    coupling, sim = coupled(server)
    assert go(coupling, sim, 3)[-1].dt == 4 * DT
    server.otherwise = None  # it is gone
    assert [a.dt for a in go(coupling, sim, 12)] == [4 * DT] * 8 + [DT] * 4
