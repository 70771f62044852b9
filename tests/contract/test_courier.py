"""A rank's way into a stream through its courier: what arrives, and what happens when the courier dies or stops."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coupler.bulks import node_stream
from coupler.bulks.adios_engine import available
from coupler.bulks.node_stream import SLOTS, SUFFIX, Crowded, NodeStream
from coupler.errors import LinkError
from schemas.fields import Block

sys.path.insert(0, str(Path(__file__).parent))
from adios_peer import FIELDS, PATIENCE_S, Peer, blocks, fetch, opened, part, pid_of, put, reading, streams, told

pytestmark = pytest.mark.skipif(bool(available()), reason=available() or "-")


def killed(stream: NodeStream) -> None:
    os.kill(pid_of(stream), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(stream), os.WEXITED | os.WNOWAIT)


def refusal(stream: NodeStream, error: type[LinkError]) -> str:
    """Gives states until one is refused with this error; what it says."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            stream.put(0, 0.0, blocks(0))
        except LinkError as refused:
            if type(refused) is error:
                return str(refused)
        time.sleep(0.005)
    raise AssertionError("it takes everything")


def test_ranks_of_a_node_share_a_stream_and_a_step(tmp_path: Path) -> None:
    with streams(tmp_path, 3) as ranks:
        assert len({stream.name for stream in ranks}) == 1
        assert [stream.process is not None for stream in ranks] == [True, False, False]
        with reading(tmp_path, ranks[0].name) as reader:
            steps = []
            for step in range(1, 9):
                places = [put(stream, step, part(rank, step)) for rank, stream in enumerate(ranks)]
                for rank in (2, 0, 1):  # in whatever order their messages come
                    assert fetch(reader, places[rank]) == told(part(rank, step)), (rank, step)
                steps.append(reader.do("steps"))
            assert steps[-1] <= 10  # joined: twice one late rank is more than enough
            lonely = put(ranks[1], 9, part(1, 9))  # the others are at something else
            assert fetch(reader, lonely) == told(part(1, 9))
            ranks[2].close()
            last = [put(stream, 10, part(rank, 10)) for rank, stream in enumerate(ranks[:2])]
            assert [fetch(reader, place) for place in last] == [told(part(rank, 10)) for rank in (0, 1)]


def test_no_state_is_given_to_a_courier_without_a_stream(tmp_path: Path) -> None:
    stream = NodeStream(tmp_path, FIELDS, {}, tmp_path, "rank-0")
    with pytest.raises(Crowded, match="no stream yet"):
        stream.put(0, 0.0, blocks(0))
    opened(stream)
    assert stream.put(0, 0.0, blocks(0)).generation == 0
    stream.close()


def test_the_first_states_wait_for_a_reader_that_opens_the_stream(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream]:
        places = [stream.put(step, 0.0, blocks(step)) for step in range(1, 9)]  # more than the reserve
        with reading(tmp_path, stream.name) as reader:
            assert [fetch(reader, place)["x"] for place in places] == [told(blocks(step))["x"] for step in range(1, 9)]


def test_a_state_stays_for_a_reader_that_comes_late(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream]:
        place = stream.put(1, 0.0, blocks(1))
        time.sleep(1.5)  # a step without anything in it every 20 ms would have taken its place
        with reading(tmp_path, stream.name) as reader:
            assert fetch(reader, place) == told(blocks(1))


def test_a_state_after_a_long_step_arrives(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream], reading(tmp_path, stream.name) as reader:
        for step in range(1, 4):
            assert fetch(reader, put(stream, step, blocks(step))) == told(blocks(step))
            time.sleep(1.2)  # the courier may not fill the reader's queue meanwhile


def test_a_reader_behind_a_dropped_step_does_not_wait_for_the_next_state(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream], reading(tmp_path, stream.name) as reader:
        places = [put(stream, step, blocks(1)) for step in range(40)]  # more than the reader's queue takes
        reader.ask(f"fetch {places[-1].generation} 0.2 {places[-1].slot}")
        answer = reader.hear()  # it hung here
        assert isinstance(answer, dict) or answer.startswith("PartDropped")


def test_a_reader_that_comes_later_is_let_in_between_two_states(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream]:
        for step in (1, 2):
            place = put(stream, step, blocks(step))
            with reading(tmp_path, stream.name) as reader:
                assert fetch(reader, place) == told(blocks(step))


def test_blocks_that_grow_arrive_from_a_courier_that_is_late(tmp_path: Path) -> None:
    def state(rows: int, particles: int) -> dict[str, Block]:
        p = Block(np.full((particles, 2), rows, np.float32), (), np.arange(particles))
        return {"x": Block(np.full((rows, 4), 1.0 * rows), (0, 0)), "p": p}

    grown = [state(1, 1), state(3, 1), state(6, 9), state(6, 9)]
    with streams(tmp_path) as [stream], reading(tmp_path, stream.name) as reader:
        os.kill(pid_of(stream), signal.SIGSTOP)  # it maps none of the rings before the last is there
        places = [stream.put(step, 0.0, content) for step, content in enumerate(grown)]
        assert len(list(tmp_path.glob("rank-0-*"))) == 3
        os.kill(pid_of(stream), signal.SIGCONT)
        assert [fetch(reader, place) for place in places] == [told(content) for content in grown]
        stream._look()
        assert len(list(tmp_path.glob("rank-0-*"))) == 1  # the others go when they are read


def test_a_part_that_cannot_be_read_costs_nobody_else_anything(tmp_path: Path, capfd: Any) -> None:
    with streams(tmp_path, 2) as ranks, reading(tmp_path, ranks[0].name) as reader:
        put(ranks[1], 1, part(1, 1))
        for file in tmp_path.glob("rank-1-*"):  # before the courier, which waits for the other, has mapped it
            file.unlink()
        place = put(ranks[0], 1, part(0, 1))
        assert fetch(reader, place) == told(part(0, 1))
    assert "A part of the stream" in capfd.readouterr().err


def test_a_field_that_was_not_declared_costs_only_its_part(tmp_path: Path, capfd: Any) -> None:
    with streams(tmp_path, 2) as ranks, reading(tmp_path, ranks[0].name) as reader:
        rogue = put(ranks[1], 1, {**part(1, 1), "rogue": Block(np.zeros(3), (0,))})
        place = put(ranks[0], 1, part(0, 1))
        assert fetch(reader, place) == told(part(0, 1))
        assert fetch(reader, rogue, 0.2).startswith("PartDropped")
        assert fetch(reader, put(ranks[1], 2, part(1, 2))) == told(part(1, 2))
    [line] = [line for line in capfd.readouterr().err.splitlines() if "A part of the stream" in line]
    assert "'rogue' was not declared" in line


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_dies_or_stops_does_not_hold_the_rank(tmp_path: Path, how: signal.Signals) -> None:
    with streams(tmp_path) as [stream], reading(tmp_path, stream.name) as reader:
        assert isinstance(fetch(reader, put(stream, 0, blocks(0))), dict)
        reader.process.send_signal(how)
        for step in range(1, 60):
            with suppress(Crowded):
                stream.put(step, 0.0, blocks(step))


def test_a_courier_that_is_killed_is_told_and_another_takes_its_place(tmp_path: Path) -> None:
    with streams(tmp_path, 2) as [first, second]:
        first.put(0, 0.0, blocks(0))
        killed(first)
        with pytest.raises(LinkError, match="has ended with code -9"):
            first.put(1, 0.0, blocks(1))
        with pytest.raises(LinkError, match=r"has ended$"):
            second.put(1, 0.0, blocks(1))
        assert list(tmp_path.glob(f"*{SUFFIX}"))
        third = NodeStream(tmp_path, FIELDS, {}, tmp_path, "rank-0")
        assert third.name != first.name and len(list(tmp_path.glob(f"*{SUFFIX}"))) == 1  # the old one is swept
        put(third, 2, blocks(2))
        third.close()


def test_a_courier_that_is_killed_is_told_though_no_slot_is_free(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream]:
        os.kill(pid_of(stream), signal.SIGSTOP)
        for step in range(SLOTS):
            stream.put(step, 0.0, blocks(0))
        killed(stream)
        with pytest.raises(LinkError, match="has ended with code -9"):
            stream.put(SLOTS, 0.0, blocks(0))


def test_a_courier_that_cannot_open_its_stream_says_why_in_one_line(tmp_path: Path, capfd: Any) -> None:
    stream = NodeStream(tmp_path, FIELDS, {"SpeculativePreloadMode": "zz"}, tmp_path, "rank-0")
    why = 'ValueError: Unknown Sst SpeculativePreloadMode parameter "zz"'
    said = refusal(stream, LinkError)
    assert said == f"the courier of {stream.name} has ended: the stream {stream.name} cannot be opened: {why}"
    stream.close()
    assert stream.process is not None and stream.process.returncode == 1
    [line] = [line for line in capfd.readouterr().err.splitlines() if stream.name in line or "Traceback" in line]
    assert line.endswith(f"{why}.")


def test_a_courier_that_stops_is_crowded_at_last(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream]:
        os.kill(pid_of(stream), signal.SIGSTOP)
        numbers = [stream.put(step, 0.0, blocks(0)).generation for step in range(SLOTS)]
        assert numbers == list(range(SLOTS))
        with pytest.raises(Crowded, match="keep up"):
            stream.put(SLOTS, 0.0, blocks(0))


def test_a_courier_that_stops_gets_few_states_and_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_stream, "SILENT_S", 1.0)
    with streams(tmp_path) as [stream]:
        os.kill(pid_of(stream), signal.SIGSTOP)
        stream.put(0, 0.0, blocks(0))
        begin = time.monotonic()
        time.sleep(0.25)  # a slow solver
        with pytest.raises(Crowded):  # the server would wait for it in vain
            stream.put(1, 0.0, blocks(0))
        assert "has done nothing for 1 s" in refusal(stream, LinkError)
        assert time.monotonic() - begin > 0.9 and stream._number == 1


def test_a_courier_that_stops_for_a_second_or_with_the_whole_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streams(tmp_path) as [stream], reading(tmp_path, stream.name) as reader:
        assert isinstance(fetch(reader, put(stream, 1, blocks(1))), dict)
        stream._look()
        os.kill(pid_of(stream), signal.SIGSTOP)
        stream.put(2, 0.0, blocks(2))
        for _ in range(3):
            time.sleep(0.35)
            with suppress(Crowded):
                stream.put(3, 0.0, blocks(3))
        later = time.monotonic() + 3600.0
        with monkeypatch.context() as patched:
            patched.setattr(node_stream.clock, "monotonic", lambda: later)
            with pytest.raises(Crowded):
                stream.put(4, 0.0, blocks(0))
        os.kill(pid_of(stream), signal.SIGCONT)
        stream._looked = time.monotonic()  # it was in the future
        assert fetch(reader, put(stream, 5, blocks(5))) == told(blocks(5))


def test_a_courier_ends_with_the_last_rank_that_was_killed(tmp_path: Path) -> None:
    ranks = [Peer("rank", tmp_path) for _ in range(2)]
    try:
        pids = [rank.hear() for rank in ranks]
        [pid] = [pid for pid in pids if pid]
        handle = os.pidfd_open(pid)
        for rank in ranks:
            rank.process.kill()
        assert select.select([handle], [], [], PATIENCE_S)[0], "the courier stays"
        os.close(handle)
    finally:
        for rank in ranks:
            rank.end()
