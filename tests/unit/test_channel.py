"""When a stream is given up: after many losses in a row that last, and not while its reader may be opening it."""

from __future__ import annotations

from coupler.bulks.node_stream import SLOTS
from coupler.channel import LOST_IN_A_ROW, LOST_S, StreamedSeqs
from schemas.messages import Ack


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
