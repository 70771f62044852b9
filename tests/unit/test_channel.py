"""What a rank sends; and when a stream is given up: after many losses that last, not while its reader may open it."""

from __future__ import annotations

import numpy as np
import pytest

from coupler.bulks.bulk import frames_only
from coupler.bulks.node_stream import SLOTS
from coupler.channel import LOST_IN_A_ROW, LOST_S, Channel, StreamedSeqs
from coupler.links.memory import MemoryHub
from coupler.protocol.client import ClientProtocol
from schemas import wire
from schemas.fields import FieldSpec, Snapshot
from schemas.messages import VERSION, Ack, Hello, Push


def lose(seqs: StreamedSeqs, seq: int, now: float) -> int:
    seqs.sent(seq)
    return seqs.acknowledged(Ack(1, seq, 0, 8, (seq,)), now)


def test_a_stream_is_given_up_after_losses_that_last() -> None:
    seqs = StreamedSeqs()
    for seq in range(1, 3 * LOST_IN_A_ROW):
        assert not lose(seqs, seq, now=seq * 0.01)  # many, but within a second
    assert lose(seqs, 3 * LOST_IN_A_ROW, now=LOST_S + 1.0) == 3 * LOST_IN_A_ROW
    assert not seqs.acknowledged(Ack(1, 3 * LOST_IN_A_ROW + 1, 0, 8), now=LOST_S + 2.0)  # it was said


def test_all_that_a_courier_holds_is_enough_for_it() -> None:
    seqs = StreamedSeqs()
    assert [lose(seqs, seq, now=float(seq)) for seq in range(1, SLOTS + 1)].count(0) == SLOTS - 1


def test_a_burst_of_losses_is_not_the_end_however_long_nothing_else_is_sent() -> None:
    seqs = StreamedSeqs()
    for seq in range(1, SLOTS + 1):
        assert not lose(seqs, seq, now=seq * 0.01)
    assert not seqs.acknowledged(Ack(1, 20, 0, 8), now=60.0)  # of states that went in frames
    seqs.sent(21)
    assert not seqs.acknowledged(Ack(1, 21, 0, 8), now=61.0)


def test_a_state_that_arrives_begins_the_count_anew() -> None:
    seqs = StreamedSeqs()
    for seq in range(1, 10 * LOST_IN_A_ROW):
        seqs.sent(seq)
        lost = () if seq % LOST_IN_A_ROW == 0 else (seq,)
        assert not seqs.acknowledged(Ack(1, seq, 0, 8, lost), now=float(seq))


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_sends_for_all_what_every_rank_holds_the_same(rank: int) -> None:
    fields = (
        FieldSpec("u", "<f8", (4,), "m/s"),
        FieldSpec("drag", "<f8", (), "N", role="observable"),
        FieldSpec("inflow", "<f8", (2,), "m/s", kind="scalar", role="control"),
    )
    hub = MemoryHub(capacity_bytes=1 << 16)
    listener = hub.listen()
    protocol = ClientProtocol(Hello(VERSION, "r", rank, 2, fields, {}, 0, 9, False))
    channel = Channel(hub.connect(b"c"), protocol, lambda: 0.0, 1 << 16, frames_only(digest=True))
    state = Snapshot.of(0, 0.0, 0.1, u=np.zeros(4), drag=0.5, inflow=np.ones(2))
    assert channel.post(state, state.blocks, lambda stamp: Push(stamp, {}), sample=True)
    received = listener.receive(0.0)
    assert received is not None
    _, blocks = wire.decode(received[1], 1 << 16)
    assert set(blocks) == ({"u", "drag", "inflow"} if rank == 0 else {"u"})
