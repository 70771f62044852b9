"""States that cannot be assembled: one named drop on both sides, an answer to who asked, and the run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from scripted import DT, FIELDS, SETTINGS, Host, N, ScriptedTask, Spinner, backtests, make_core

from coupler.protocol.client import ClientProtocol
from ml_servers.core import Sampled, Send
from ml_servers.facts import summary
from ml_servers.joining import MOST_KINDS, Reasons
from schemas.fields import Block
from schemas.messages import VERSION, Ack, Action, Advice, Ask, Hello, Push, Refusal

Change = Mapping[str, Block | None]
HALF = N // 2
OVERLAP = {"x": Block(np.zeros(HALF), (HALF - 1,))}
SHORT = {"x": Block(np.zeros(HALF - 1), (HALF,))}
SAYS = {"OVERLAP": "ranks 0 and 1 both hold cell (5,) of field 'x'", "SHORT": "'x' hold 11 values together"}


class Pair:
    """Two ranks with the client's protocol, and a core. Each sends its half of the state, changed as told."""

    def __init__(self) -> None:
        self.core = make_core(ScriptedTask())
        self.sim = Spinner()
        self.clients = [ClientProtocol(Hello(VERSION, "r", r, 2, FIELDS, {}, 0, 1000, True)) for r in (0, 1)]
        self.advices: list[list[Advice]] = [[], []]
        self.sampled: list[int] = []
        for rank, client in enumerate(self.clients):
            self.say(rank, client.due_hello(0.0), {})

    def say(self, rank: int, message: Any, blocks: Mapping[str, Block]) -> None:
        for instruction in self.core.handle(b"%d" % rank, message, blocks):
            if isinstance(instruction, Sampled):
                self.sampled.append(instruction.snapshot.step)
                continue
            assert isinstance(instruction, Send) and not isinstance(instruction.message, Refusal)
            to = int(instruction.peer)
            self.clients[to].receive(instruction.message, instruction.blocks)
            if isinstance(instruction.message, Advice):
                self.advices[to].append(instruction.message)

    def step(self, make: Callable[..., Ask | Push], change: Change, who: int = 1, first: int = 0) -> None:
        for rank in (first, 1 - first):
            now = self.sim.snapshot()
            part = slice(HALF * rank, HALF * (rank + 1))
            blocks = {name: Block(now[name][part], (HALF * rank,)) for name in ("x", "v")}
            blocks |= {name: now.blocks[name] for name in ("force", "lift")}
            changed = {n: b for n, b in (blocks | (change if rank == who else {})).items() if b is not None}
            assert self.clients[rank].may_send
            self.say(rank, make(self.clients[rank].stamp(now, (), 0.0, sample=True)), changed)
        self.sim.integrate(DT, 1)


def ask(stamp: Any) -> Ask:
    return Ask(stamp, 1000)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("make", [ask, Push])
@pytest.mark.parametrize(("change", "at"), [("OVERLAP", 4), ("SHORT", 4), ("SHORT", 9)])
def test_one_state_is_dropped_by_name_and_the_next_goes_on(
    make: Callable[..., Ask | Push], change: str, at: int, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair()
    for step in range(10):
        pair.step(make, globals()[change] if step == at else {}, first=first)
    assert pair.sampled == [step for step in range(10) if step != at]
    books = summary(pair.core)["samples"]
    [(sentence, count)] = books["unusable"].items()
    assert SAYS[change] in sentence and count == 1
    assert (books["admitted"], books["incomplete"], books["lost"]) == (9, 1, 0)
    for client in pair.clients:  # the same on every rank, whose message was at fault or not
        told = client.books.summary()
        assert (told["produced"], told["admitted"], told["in_flight"]) == (10, 9, 0)
        assert told["dropped"] == {"could not be assembled": 1}
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert sentence in record.getMessage() and f"step {at} " in record.getMessage()
    if make is ask:
        for advices in pair.advices:
            assert [advice.answers for advice in advices] == list(range(10))
            assert sentence in advices[at].reason and advices[at].action is Action.DIRECT
            assert [advice.decision for advice in advices] == list(range(1, 11))


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": None}, "field 'x' is missing"),
        ({"v": Block(np.zeros(HALF, np.float32), (0,))}, "'v' was declared as <f8 but came as <f4"),
        ({"x": Block(np.zeros(HALF), (-1,))}, "does not fit"),
        ({"w": Block(np.zeros(1), (0,))}, "field 'w' was not declared"),
    ],
)
def test_a_part_that_does_not_fit_costs_its_step_and_names_its_rank(change: Change, says: str, who: int) -> None:
    pair = Pair()
    for step in range(6):
        pair.step(ask, change if step % 3 == 1 else {}, who)
    assert pair.sampled == [0, 2, 3, 5]
    [(sentence, count)] = pair.core.unusable.counts.items()
    assert sentence.startswith(f"rank {who}: ") and says in sentence and count == 2
    assert pair.core.incomplete == 2 and pair.core._assembly is not None and not pair.core._assembly._open
    for client in pair.clients:
        assert client.books.admitted == 4 and client.books.dropped == {"could not be assembled": 2}
    assert [len(advices) for advices in pair.advices] == [6, 6]


@pytest.mark.parametrize(("who", "whole"), [(0, [0, 2, 3, 5]), (1, [0, 1, 2, 3, 4, 5])])
def test_what_every_rank_holds_the_same_is_missed_in_the_part_of_rank_0_alone(who: int, whole: list[int]) -> None:
    pair = Pair()
    for step in range(6):
        pair.step(ask, {"force": None} if step % 3 == 1 else {}, who)
    assert pair.sampled == whole
    sentences = [] if who else ["rank 0: field 'force' is missing"]
    assert list(pair.core.unusable.counts) == sentences


def test_a_part_that_its_rank_takes_back_spoils_nothing() -> None:
    host = Host(make_core(ScriptedTask()), 2)
    whole = host.blocks
    host.blocks = lambda rank: whole(rank) | {"x": Block(np.zeros(3), (N - 1,))}  # type: ignore[method-assign]
    assert host.ask(0) == []
    host.blocks = whole  # type: ignore[method-assign]
    assert host.ask(0) == []
    answers = host.ask(1)
    assert isinstance(answers[-1], Sampled) and not host.core.unusable.counts and host.core.incomplete == 0


def test_a_part_whose_others_never_come_is_told_to_its_sender() -> None:
    host = Host(make_core(ScriptedTask()), 2)
    host.blocks = lambda rank: {}  # type: ignore[method-assign]
    [send] = host.push(0)
    assert isinstance(send, Send) and isinstance(send.message, Ack) and send.message.lost == (-1,)
    assert host.core.incomplete == 0  # that is counted when the step is given up


def test_a_lone_rank_goes_on_too() -> None:
    host = Host(make_core(ScriptedTask()))
    whole = host.blocks
    host.blocks = lambda rank: whole(rank) | {"x": Block(np.zeros(N - 1), (0,))}  # type: ignore[method-assign]
    [send] = host.ask()
    assert isinstance(send, Send) and isinstance(send.message, Advice) and send.message.action is Action.DIRECT
    assert send.message.reason.startswith("the state could not be assembled: the blocks of field 'x' hold 11 values")
    host.blocks = whole  # type: ignore[method-assign]
    assert isinstance(host.ask()[-1], Sampled)


@pytest.mark.parametrize("end_time", [math.inf, 50.0])
@pytest.mark.parametrize(
    ("key", "value"), [("time", math.nan), ("time", -math.inf), ("dt", math.nan), ("dt", math.inf)]
)
def test_a_time_that_is_none_costs_one_state(key: str, value: float, end_time: float) -> None:
    host = Host(make_core(ScriptedTask()))
    greeting = msgspec.structs.replace(host.greeting(0), end_time=end_time)
    host.core = make_core(ScriptedTask())
    host.core.handle(b"rank-0", greeting, {})
    before = getattr(host.sim, key)
    setattr(host.sim, key, value)
    advice = host.exchange()
    assert advice is not None and advice.action is Action.DIRECT and "came with time" in advice.reason
    setattr(host.sim, key, before)
    host.follow(advice)
    assert isinstance(host.ask()[-1], Sampled) and host.core.incomplete == 1


def taken_over(**host: Any) -> Host:
    """A host that stands at a learned state."""
    found = Host(make_core(ScriptedTask(version=1), SETTINGS), **host)
    found.core.trained("task", 1, "scripted", 10, backtests())
    for _ in range(60):
        if found.run(1)[0].startswith("learned"):
            return found
    raise AssertionError(found.story)


def test_a_host_that_stands_at_a_learned_state_is_not_left_waiting() -> None:
    """Its controls cannot be used: it is told to integrate, and audited from there."""
    host = taken_over()
    whole = host.blocks
    host.blocks = lambda rank: whole(rank) | {"force": Block(np.zeros(3), (0,))}  # type: ignore[method-assign]
    advice = host.exchange()
    assert advice is not None and (advice.action, advice.phase) == (Action.DIRECT, "audit")
    assert "'force'" in advice.reason and host.core.incomplete == 0  # it was no state
    host.blocks = whole  # type: ignore[method-assign]
    host.follow(advice)
    host.sim.x = host.sim.x + 0.3  # the learned state was wrong
    assert host.run(1)[0].startswith("rewind")


def test_the_state_that_closes_an_audit_may_be_the_next() -> None:
    host = taken_over()
    assert host.run(1) == ["audit"]
    whole = host.blocks
    host.blocks = lambda rank: whole(rank) | {"x": Block(np.zeros(3), (0,))}  # type: ignore[method-assign]
    assert host.run(1) == ["audit"]
    host.blocks = whole  # type: ignore[method-assign]
    assert host.run(1)[0].startswith("learned")
    assert host.core.arbiter is not None and len(host.core.arbiter.step_errors) == 1


def test_a_learned_state_that_is_under_way_is_not_voided() -> None:
    host = Host(make_core(ScriptedTask(version=1), SETTINGS))
    host.core.trained("task", 1, "scripted", 10, backtests())
    for _ in range(60):
        advice = host.exchange()
        if advice is not None and advice.action is Action.LEARNED:
            break
        host.follow(advice)
    host.sim.integrate(DT, 1)
    whole = host.blocks
    host.blocks = lambda rank: whole(rank) | {"x": Block(np.zeros(3), (0,))}  # type: ignore[method-assign]
    [send] = host.ask()
    assert isinstance(send, Send) and isinstance(send.message, Ack) and send.message.lost == (-host.seq[0],)


def test_a_simulation_that_never_makes_a_state_keeps_to_the_budget() -> None:
    settings = msgspec.structs.replace(SETTINGS, overhead=0.01)
    host = Host(make_core(ScriptedTask(), settings))
    whole = host.blocks
    host.blocks = lambda rank: whole(rank) | {"x": Block(np.zeros(3), (0,))}  # type: ignore[method-assign]
    leases = []
    for _ in range(60):
        advice = host.exchange(stall_s=1.0)
        assert advice is not None and "could not be assembled" in advice.reason
        leases.append(advice.lease)
        host.follow(advice)
    assert max(leases) > 10 and host.core.incomplete == 60


def test_reasons_are_counted_by_kind_and_bounded() -> None:
    reasons = Reasons()
    assert [reasons.note(f"cell {n} of 'u' came {n} times") for n in range(3)] == [True, False, False]
    assert reasons.counts == {"cell 0 of 'u' came 0 times": 3}
    for letter in range(100):
        reasons.note(f"field {chr(97 + letter % 26) * (letter + 1)} is bad")
    assert len(reasons.counts) == MOST_KINDS + 1 and sum(reasons.counts.values()) == 103
    assert (
        not reasons.note("something else again") and reasons.counts["other reasons"] == 103 - 3 - (MOST_KINDS - 1) + 1
    )
