"""When a stream is given up: after many losses in a row that last, and not while its reader may be opening it."""

from __future__ import annotations

from coupler.channel import LOST_IN_A_ROW, LOST_S, StreamedSeqs
from schemas.messages import Ack


def test_a_stream_is_given_up_after_losses_that_last() -> None:
    seqs = StreamedSeqs()
    for seq in range(1, 3 * LOST_IN_A_ROW):
        seqs.sent(seq)
        assert not seqs.acknowledged(Ack(1, seq, 0, 8, (seq,)), now=seq * 0.01)  # many, but within a second
    assert seqs.acknowledged(Ack(1, 3 * LOST_IN_A_ROW, 0, 8), now=LOST_S + 1.0)


def test_a_state_that_arrives_begins_the_count_anew() -> None:
    seqs = StreamedSeqs()
    for seq in range(1, 10 * LOST_IN_A_ROW):
        seqs.sent(seq)
        lost = () if seq % LOST_IN_A_ROW == 0 else (seq,)
        assert not seqs.acknowledged(Ack(1, seq, 0, 8, lost), now=float(seq))
