"""The comparison with peers: rows, answers, what is skipped and why. Nothing is judged by its speed here."""

from contextlib import closing

import numpy as np
import pytest

from benchmarks.peers import files, zeromq
from benchmarks.peers.compare import Plan, compared, skipped_once
from benchmarks.peers.exchange import Peer, Place
from benchmarks.peers.pair import Pair, trips
from benchmarks.table import BenchmarkFailed, row


def never(place):
    raise AssertionError("a peer that is missing was started")


def test_the_cheapest_peers_have_rows_against_bare_pyzmq():
    made = compared([zeromq.BASELINE, files.PEERS[0]], 64, Plan(2, 2))
    assert [r["case"] for r in made] == [
        "put, pyzmq tcp",
        "put, files, npy",
        "round trip, pyzmq tcp",
        "round trip, files, npy",
    ]
    assert [r["ratio"] for r in made][::2] == [1.0, 1.0]
    assert all(r["n"] == 4 and r["bytes"] == 64 and 0 < r["p50_us"] <= r["p99_us"] for r in made)
    assert all(put["p50_us"] < trip["p50_us"] for put, trip in zip(made[:2], made[2:], strict=True))


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason():
    absent = Peer("absent", never, never, lambda: "install it: pip install 'coupler[bench]'")
    made = compared([absent], 64, Plan(1, 1))
    assert [(r["case"], r["against"], r["p50_us"]) for r in made] == [
        ("absent: skipped", "install it: pip install 'coupler[bench]'", None)
    ]
    assert skipped_once([*made, *made, row("put", p50_us=1.0)]) == [*made, row("put", p50_us=1.0)]


def test_a_peer_that_fails_says_its_last_words_and_leaves_nothing(tmp_path):
    with (
        closing(Pair(Peer("nobody", never, never), Place(tmp_path, 8))) as pair,
        pytest.raises(BenchmarkFailed, match=r"nobody: KeyError: 'nobody'"),
    ):
        pair.turn(1)


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_a_wrong_answer_is_found(tmp_path, wrong):
    class Stale:
        def put(self, array):
            self.answer = array + 1.0

        def get(self):
            self.answer[3] = wrong
            return self.answer

        def close(self):
            pass

    with pytest.raises(RuntimeError, match="not what was sent"):
        trips(Stale(), Place(tmp_path, 8), 1)
