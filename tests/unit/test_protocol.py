"""Both halves of the protocol over a channel that loses, doubles and reorders: the books balance at every moment."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coupler.protocol.client import KEPT_ADMITTED, ClientProtocol
from coupler.protocol.server import ServerProtocol
from schemas.fields import FieldSpec, Snapshot
from schemas.messages import LOST_TOLD, VERSION, Ack, Action, Advice, Bye, Hello, Refusal, Stamp, Welcome

HELLO = Hello(VERSION, "r", 0, 1, (FieldSpec("u", "<f8", (3,), "1"),), {}, 0, 100, True)
CREDIT = 3
SILENCE_S = 2.0


def snapshot(step: int = 0) -> Snapshot:
    return Snapshot(step, 0.0, 1.0)


class ProtocolPair(RuleBasedStateMachine):
    """A rank and its server; `up` and `down` are what is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientProtocol(HELLO, SILENCE_S)
        self.server = ServerProtocol("r", (), CREDIT)
        self.up: list[tuple[Any, int]] = []  # message, number of the sample in it (0: none)
        self.down: list[Any] = []
        self.now = 0.0
        self.sample = 0
        self.highest_epoch = self.last_epoch = 0
        self.admitted: list[int] = []
        self.decision = 0

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(taken=st.booleans())
    def greet(self, taken: bool) -> None:
        if (hello := self.client.due_hello(self.now)) is not None:
            if taken:
                self.up.append((hello, 0))
            else:
                self.client.hello_unsent()

    @precondition(lambda self: self.client.may_send)
    @rule(sample=st.booleans(), taken=st.sampled_from([True, True, True, False]))
    def send(self, sample: bool, taken: bool) -> None:
        stamp = self.client.stamp(snapshot(), (), self.now, sample=sample)
        if not taken:
            self.client.unsent(stamp)
            return
        self.sample += sample
        self.up.append((stamp, self.sample if sample else 0))

    @precondition(lambda self: not self.client.may_send)
    @rule()
    def cannot_send(self) -> None:
        self.client.dropped("no credit")

    @precondition(lambda self: self.up)
    @rule(which=st.integers(0, 9), fate=st.sampled_from(["arrives", "arrives", "arrives", "lost", "twice"]))
    def upward(self, which: int, fate: str) -> None:
        message, number = self.up[which % len(self.up)]
        if fate != "twice":
            del self.up[which % len(self.up)]
        if fate == "lost":
            return
        if isinstance(message, Hello):
            known = self.server.knows(b"rank-0", message)
            answer = self.server.hello(b"rank-0", message)
            assert isinstance(answer, Welcome)
            assert answer.epoch == message.epoch if known else answer.epoch > self.highest_epoch
            self.highest_epoch = max(self.highest_epoch, answer.epoch)
            self.down += [answer, self.server.ack(0)]
            return
        stream = self.server.streams.get(0)
        if self.server.admit(b"rank-0", message):
            assert stream is not None and message.epoch == stream.epoch  # fenced otherwise
            if number:
                self.admitted.append(number)
            self.decision += 1
            self.down.append(Advice(action=Action.DIRECT, decision=self.decision, ack=self.server.ack(0), answers=0))
        elif stream is not None:
            self.down.append(self.server.ack(0))

    @precondition(lambda self: self.admitted and 0 in self.server.streams)
    @rule(behind=st.integers(0, 3))
    def make_no_state(self, behind: int) -> None:
        stream = self.server.streams[0]
        self.server.spoil(stamp(max(stream.received - behind, 1), epoch=stream.epoch))
        self.down.append(self.server.ack(0))

    @precondition(lambda self: self.down)
    @rule(which=st.integers(0, 9), fate=st.sampled_from(["arrives", "arrives", "arrives", "lost", "twice"]))
    def downward(self, which: int, fate: str) -> None:
        message = self.down[which % len(self.down)]
        if fate != "twice":
            del self.down[which % len(self.down)]
        if fate != "lost":
            self.client.receive(message, {})

    @rule()
    def take(self) -> None:
        newest = self.client.newest
        assert (self.client.take(newest) is not None) == (newest > 0) and self.client.newest == 0

    @rule()
    def server_comes_back(self) -> None:
        self.server = ServerProtocol("r", (), CREDIT, first_epoch=self.highest_epoch + 1)

    @invariant()
    def books_balance(self) -> None:
        books: Any = self.client.books.summary()
        parts = books["retained"] + books["in_flight"] + books["admitted"] + sum(books["dropped"].values())
        assert books["produced"] == parts and books["admitted"] >= 0

    @invariant()
    def credit_bounds_what_is_in_flight(self) -> None:
        assert self.client.books.in_flight <= CREDIT
        assert self.client._seq - self.client._received <= CREDIT

    @invariant()
    def no_sample_is_admitted_twice(self) -> None:
        assert len(self.admitted) == len(set(self.admitted))

    @invariant()
    def epochs_rise_and_decisions_are_bounded(self) -> None:
        assert self.last_epoch <= self.client.epoch <= self.highest_epoch
        self.last_epoch = self.client.epoch
        assert len(self.client._decisions) <= 4

    def teardown(self) -> None:
        """Whatever happened: once messages pass, the stream is open and has room again."""
        for _ in range(6):
            self.now += 3.0
            self.greet(taken=True)
            while self.up:
                self.upward(0, "arrives")
            while self.down:
                self.downward(0, "arrives")
        assert self.client.state == "open" and self.client.may_send and self.client.books.in_flight == 0
        self.books_balance()


TestProtocolPair = ProtocolPair.TestCase
TestProtocolPair.settings = settings(max_examples=60, stateful_step_count=50)


def opened(credit: int = CREDIT) -> ClientProtocol:
    client = ClientProtocol(HELLO, SILENCE_S)
    assert client.due_hello(0.0) == HELLO
    client.receive(Welcome(1, credit, ()), {})
    return client


def told(decision: int, answers: int, action: Action = Action.DIRECT, epoch: int = 1) -> Advice:
    return Advice(action=action, decision=decision, ack=Ack(epoch, 0, 0, CREDIT), answers=answers)


def test_hello_is_said_again_only_after_silence() -> None:
    client = ClientProtocol(HELLO, SILENCE_S)
    assert client.due_hello(0.0) and client.due_hello(1.9) is None and client.due_hello(2.0) is not None
    client = opened()
    assert client.due_hello(100.0) is None  # nothing was asked: nothing is missing
    client.stamp(snapshot(), (), 100.0, sample=True)
    assert client.due_hello(101.9) is None and client.due_hello(102.1) is not None and client.due_hello(103.0) is None


def test_a_server_that_was_only_slow_is_told_from_one_that_came_back() -> None:
    client, server = ClientProtocol(HELLO, SILENCE_S), ServerProtocol("r", (), CREDIT)
    client.receive(server.hello(b"rank-0", client.due_hello(0.0) or HELLO), {})
    stamps = [client.stamp(snapshot(), (), 0.0, sample=True) for _ in range(3)]
    server.admit(b"rank-0", stamps[0])  # its acknowledgement and the other two are lost on the way
    again = client.due_hello(3.0)
    assert again is not None and (again.epoch, again.seq) == (1, 3)
    client.receive(server.hello(b"rank-0", again), {})
    assert client.epoch == 1 and client.books.in_flight == 3  # the same server: nothing is given up
    client.receive(server.ack(0), {})
    assert client.books.admitted == 1 and client.books.dropped == {"lost on the way": 2} and client.may_send
    assert not server.admit(b"rank-0", stamps[1])  # late: it counts as lost already
    assert server.streams[0].lost == 2
    other = ServerProtocol("r", (), CREDIT)
    answer = other.hello(b"rank-0", again)  # it does not know the client: whatever its own count, the epoch rises
    assert isinstance(answer, Welcome) and answer.epoch == 2
    assert not server.knows(b"another", again)


def test_a_refused_or_closed_client_says_nothing_more() -> None:
    for end in (lambda c: c.receive(Refusal("no"), {}), lambda c: c.bye(5, "finished")):
        client = opened()
        end(client)
        assert not client.may_send and client.due_hello(1e9) is None
        client.receive(Welcome(9, 8, ()), {})
        assert not client.may_send


def test_what_was_in_flight_when_the_server_came_back_is_lost_and_counted() -> None:
    client = opened()
    client.stamp(snapshot(), (), 0.0, sample=True)
    client.receive(told(7, 0), {})
    client.receive(Welcome(2, CREDIT, ()), {})
    assert client.books.dropped == {"lost with the server": 1} and client.newest == 0
    client.receive(told(8, 0, epoch=1), {})
    assert client.newest == 0
    client.receive(told(8, 0, epoch=2), {})
    assert client.newest == 8


def test_decisions_are_taken_in_order_and_old_ones_forgotten() -> None:
    client = opened()
    for decision in (3, 1, 2):
        client.receive(told(decision, 0), {})
    assert client.newest == 3 and client.take(2) is not None and client.take(1) is None
    assert client.newest == 3 and client.take(9) is None and client.newest == 0


def test_after_a_jump_only_what_answers_the_new_state_counts_but_for_rewind_and_stop() -> None:
    client = opened()
    client.receive(told(1, 4), {})
    client.forget(10)
    assert client.newest == 0
    client.receive(told(2, 9), {})
    assert client.newest == 0
    client.receive(told(3, 10), {})
    assert client.newest == 3
    for decision, action in ((4, Action.REWIND), (5, Action.STOP)):
        client.receive(told(decision, 2, action), {})
        client.forget(11)
        assert client.newest == decision


@pytest.mark.parametrize(
    "ack",
    [
        Ack(1, 99, 99, 8),
        Ack(1, -5, 0, 8),
        Ack(7, 1, 0, 8),
        Ack(1, 1, 0, -4),
        Ack(1, 0, 0, 8, (-1, -7, 0)),  # of a message that was not acknowledged
    ],
)
def test_an_impossible_acknowledgement_does_not_unbalance_the_books(ack: Ack) -> None:
    client = opened()
    client.stamp(snapshot(), (), 0.0, sample=True)
    client.receive(ack, {})
    books = client.books
    assert books.produced == 1 == books.admitted + books.in_flight
    assert books.admitted == (ack.epoch == 1 and ack.received >= 1)
    assert client._received <= client._seq


def stamp(seq: int, epoch: int = 1, rank: int = 0) -> Stamp:
    return Stamp(rank, epoch, seq, 0, 0.0, 1.0, math.inf, ())


def test_the_server_admits_once_fences_and_counts_gaps() -> None:
    server = ServerProtocol("r", (), CREDIT)
    assert not server.admit(b"a", stamp(1))  # before any HELLO
    server.hello(b"a", HELLO)
    assert server.complete
    assert [server.admit(b"a", stamp(n)) for n in (1, 1, 4, 2)] == [True, False, True, False]
    assert not server.admit(b"b", stamp(5)) and not server.admit(b"a", stamp(5, epoch=0))
    stream = server.streams[0]
    assert (stream.received, stream.lost, stream.duplicates, stream.fenced) == (4, 2, 2, 2)
    assert server.ack(0) == Ack(1, 4, 0, CREDIT, lost=(2, 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": VERSION + 1}, "version"),
        ({"run": "other"}, "belongs to run 'other'"),
        ({"rank": 1}, "Rank 1 of 1"),
        ({"rank": -1}, "Rank -1"),
        ({"fields": (FieldSpec("u", "<f8", (3,), "1"),) * 2}, "declared twice"),
    ],
)
def test_a_hello_that_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    answer = ServerProtocol("r", (), CREDIT).hello(b"a", msgspec.structs.replace(HELLO, **change))
    assert isinstance(answer, Refusal) and says in answer.reason


@pytest.mark.parametrize(
    "change", [{"ranks": 3}, {"fields": ()}, {"invariants": {"energy": "sum"}}, {"fields": HELLO.fields * 2}]
)
def test_ranks_must_agree(change: dict[str, Any]) -> None:
    server = ServerProtocol("r", (), CREDIT)
    first = msgspec.structs.replace(HELLO, ranks=2)
    assert isinstance(server.hello(b"a", first), Welcome) and not server.complete
    second = msgspec.structs.replace(first, rank=1, **change)
    assert isinstance(server.hello(b"b", second), Refusal)


def test_only_the_holder_of_a_stream_says_goodbye() -> None:
    server = ServerProtocol("r", (), CREDIT)
    server.hello(b"a", HELLO)
    bye = Bye(0, 1, 5, "finished")
    assert server.farewell(b"a", bye) and not server.farewell(b"b", bye)
    assert not server.farewell(b"a", Bye(3, 1, 5, "finished"))


def test_what_the_link_lost_is_not_counted_as_admitted() -> None:
    client, server = opened(credit=8), ServerProtocol("r", (), 8)
    server.hello(b"a", HELLO)
    stamps = [client.stamp(snapshot(), (), 0.0, sample=n != 3) for n in range(1, 6)]
    for sent in (stamps[0], stamps[4]):  # 2, 3 and 4 never come; 3 holds no state
        assert server.admit(b"a", sent)
    client.receive(server.ack(0), {})
    client.receive(server.ack(0), {})
    assert client.books.admitted == 2 and client.books.dropped == {"lost on the way": 2}
    assert client.books.produced == 4 and client.books.in_flight == 0


def test_a_long_gap_names_the_newest_losses_only() -> None:
    server = ServerProtocol("r", (), CREDIT)
    server.hello(b"a", HELLO)
    server.admit(b"a", stamp(10**9))
    told = server.ack(0)
    assert len(told.lost) == LOST_TOLD and told.lost[-1] == 10**9 - 1 and server.streams[0].lost == 10**9 - 1


def test_an_audit_closed_by_an_overtaken_decision_is_not_forgotten() -> None:
    client = opened()
    client.receive(msgspec.structs.replace(told(1, 0), step_error=0.25), {})
    client.receive(told(2, 1), {})
    found = client.take(2)
    assert found is not None and (found[0].decision, found[0].step_error) == (2, 0.25)
    client.receive(told(3, 2), {})
    found = client.take(3)
    assert found is not None and math.isnan(found[0].step_error)


def test_blocks_that_are_lost_are_told_and_cost_no_credit() -> None:
    server = ServerProtocol("r", ("t",), CREDIT)
    client = ClientProtocol(HELLO)
    assert client.due_hello(0.0) is not None
    welcome = server.hello(b"p", HELLO)
    assert isinstance(welcome, Welcome) and not welcome.near
    client.receive(welcome, {})
    for step in range(100):
        assert client.may_send
        stamp = client.stamp(Snapshot(step, 0.0, 1.0), (), 0.0, sample=True)
        assert server.lose(b"p", stamp) and not server.lose(b"p", stamp)
        client.receive(server.ack(0), {})
    assert client.books.dropped == {"lost on the way": 100} and client.books.admitted == 0


def test_a_message_whose_state_makes_no_sense_is_dropped_under_its_own_name() -> None:
    """Also when it counts as admitted already: the other rank's part came later."""
    client, server = opened(credit=8), ServerProtocol("r", (), 8)
    server.hello(b"a", HELLO)
    stamps = [client.stamp(snapshot(), (), 0.0, sample=n != 4) for n in range(5)]
    for sent in stamps[:3]:
        assert server.admit(b"a", sent)
    client.receive(server.ack(0), {})
    assert client.books.admitted == 3
    assert server.admit(b"a", stamps[3]) and server.admit(b"a", stamps[4])
    for seq in (2, 4, 4, 5):  # told before its first acknowledgement, and twice; 5 holds no state
        server.spoil(stamp(seq))
    server.spoil(stamp(3, epoch=7))
    server.spoil(stamp(3, rank=9))
    assert server.ack(0).lost == (-2, -4, -5) and server.streams[0].lost == 0
    for _ in range(2):
        client.receive(server.ack(0), {})
        assert client.books.admitted == 2 and client.books.dropped == {"could not be assembled": 2}
    client.receive(Ack(1, 5, 0, 8, (-1, -1)), {})
    assert client.books.admitted == 1 and client.books.produced == 4 and client.books.in_flight == 0


def test_what_is_lost_is_not_called_unusable_too() -> None:
    server = ServerProtocol("r", (), CREDIT)
    server.hello(b"a", HELLO)
    server.lose(b"a", stamp(1))
    server.spoil(stamp(1))
    assert server.ack(0).lost == (1,)


def test_admitted_samples_are_remembered_to_a_bound() -> None:
    client, server = opened(credit=8), ServerProtocol("r", (), 8)
    server.hello(b"a", HELLO)
    for _ in range(2 * KEPT_ADMITTED):
        server.admit(b"a", client.stamp(snapshot(), (), 0.0, sample=True))
        client.receive(server.ack(0), {})
    assert len(client._admitted) == KEPT_ADMITTED
    client.receive(Welcome(2, 8, ()), {})
    client.receive(Ack(2, 0, 0, 8, (-2 * KEPT_ADMITTED,)), {})  # that seq was of another epoch
    assert client.books.admitted == 2 * KEPT_ADMITTED


def test_ranks_that_were_refused_and_left_desert_the_server() -> None:
    server = ServerProtocol("r", (), CREDIT)
    assert not server.deserted
    bad = [msgspec.structs.replace(HELLO, rank=rank, ranks=2, fields=HELLO.fields * 2) for rank in (0, 1)]
    stranger = msgspec.structs.replace(HELLO, run="another")
    for peer, hello in ((b"a", bad[0]), (b"b", bad[1]), (b"c", stranger)):
        assert isinstance(server.hello(peer, hello), Refusal)
    for peer, rank, deserted in ((b"c", 0, False), (b"a", 0, False), (b"b", 1, True)):
        assert not server.farewell(peer, Bye(rank, 0, 5, "finished")) and server.deserted == deserted
    assert isinstance(server.hello(b"d", HELLO), Welcome) and not server.deserted


def test_the_farewell_of_a_refused_stranger_is_not_that_of_the_rank_whose_name_it_bears() -> None:
    server = ServerProtocol("r", (), CREDIT)
    server.hello(b"rank-0", HELLO)
    server.hello(b"rank-0", msgspec.structs.replace(HELLO, run="another"))
    assert not server.farewell(b"rank-0", Bye(0, 0, 5, "finished"))
    assert server.farewell(b"rank-0", Bye(0, 1, 5, "finished"))


def test_near_is_who_found_the_same_token() -> None:
    for ours, theirs, near in (("a", "a", True), ("a", "b", False), ("", "", False)):
        welcome = ServerProtocol("r", (), 8, token=ours).hello(b"p", msgspec.structs.replace(HELLO, token=theirs))
        assert isinstance(welcome, Welcome) and welcome.near is near
