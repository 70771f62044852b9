"""SST streams between two processes: what arrives, what is dropped, and what happens when one side dies or stops."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from coupler.bulks import adios_engine as adios
from coupler.bulks.node_stream import SLOTS, SUFFIX, Crowded, NodeStream
from coupler.errors import LinkError
from schemas.messages import Place

sys.path.insert(0, str(Path(__file__).parent))
from adios_peer import FIELDS, blocks, part, told

pytestmark = pytest.mark.skipif(bool(adios.available()), reason=adios.available() or "-")
SCRIPT = Path(__file__).with_name("adios_peer.py")
PATIENCE_S = 30.0


class Peer:
    """One side of a stream."""

    def __init__(self, role: str, folder: Path, name: str = "stream") -> None:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
        command = [sys.executable, str(SCRIPT), role, str(folder / name)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def has_said(self, timeout_s: float = 0.0) -> bool:
        return bool(select.select([self.process.stdout], [], [], timeout_s)[0])

    def hear(self) -> Any:
        assert self.has_said(PATIENCE_S), "it hangs"
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline() or "null")

    def do(self, line: str) -> Any:
        self.ask(line)
        return self.hear()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Peer, Peer]]:
    writer = Peer("write", tmp_path)
    reader: Peer | None = None
    try:
        assert writer.hear() == "open"
        reader = Peer(getattr(request, "param", "read"), tmp_path)
        while not reader.has_said(0.02):  # its open ends when the writer comes by
            writer.do("come_by")
        assert reader.hear() == "open"
        yield writer, reader
    finally:
        for peer in (writer, reader):
            if peer is not None:
                peer.end()


def test_blocks_arrive_as_they_were_put(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    for step in range(8):
        number = writer.do(f"put {step}")
        found = reader.do(f"fetch {number} 10")
        assert found == {n: content for n, content in told(blocks(step)).items() if content[0]}  # no empty ones
    assert writer.do("close") is None
    assert "ended" in reader.do("fetch 99 10")


@pytest.mark.parametrize("pair", ["misread"], indirect=True)
def test_a_reader_that_declares_other_fields_is_told(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    said = reader.do(f"fetch {writer.do('put 1')} 10")
    assert said.startswith("SchemaMismatch") and "(6, 4)" in said and "(6, 5)" in said


def test_what_the_queue_dropped_is_told(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    numbers: list[int] = [writer.do(f"put {step}") for step in range(30)]
    answers: list[Any] = []
    for number in numbers:
        reader.ask(f"fetch {number} 0.2")
        if not reader.has_said(1.0):  # behind dropped steps SST waits for the next one, whatever its time-out says
            numbers.append(writer.do(f"put {len(numbers)}"))
        answers.append(reader.hear())
    lost = [answer for answer in answers if isinstance(answer, str)]
    kept = [step for step, answer in enumerate(answers) if isinstance(answer, dict)]
    assert lost and kept and len(lost) + len(kept) == 31 and all("PartDropped" in answer for answer in lost)
    assert all(answers[step]["x"] == told(blocks(step))["x"] for step in kept)
    assert kept[-1] == 30  # the stream goes on


@contextmanager
def streams(folder: Path, ranks: int = 1) -> Iterator[list[NodeStream]]:
    """The ways of some ranks into the stream of their node. Nothing of them is left."""
    made = [NodeStream(folder, FIELDS, {}, folder, f"rank-{rank}") for rank in range(ranks)]
    try:
        yield made
    finally:
        for stream in reversed(made):  # the one that started the courier waits for the others
            stream.close()
    left = {path.name for path in folder.iterdir()}
    assert left <= {f"{made[0].name}.sst"}  # a courier that is killed leaves its contact file


def pid_of(stream: NodeStream) -> int:
    assert stream.process is not None
    return stream.process.pid


def fetch(reader: Peer, place: Place, timeout_s: float = 10.0) -> Any:
    return reader.do(f"fetch {place.generation} {timeout_s} {place.slot}")


def test_ranks_of_a_node_share_a_stream_and_a_step(tmp_path: Path) -> None:
    with streams(tmp_path, 3) as ranks:
        assert len({stream.name for stream in ranks}) == 1
        assert [stream.process is not None for stream in ranks] == [True, False, False]
        reader = Peer("read", tmp_path, ranks[0].name)
        try:
            assert reader.hear() == "open"
            steps = []
            for step in range(1, 9):
                places = [stream.put(step, 0.5 * step, part(rank, step)) for rank, stream in enumerate(ranks)]
                for rank in (2, 0, 1):  # in whatever order their messages come
                    assert fetch(reader, places[rank]) == told(part(rank, step)), (rank, step)
                steps.append(reader.do("steps"))
            assert steps[-1] <= 10  # joined: twice one late rank is more than enough
            lonely = ranks[1].put(9, 4.5, part(1, 9))  # the others are at something else
            assert fetch(reader, lonely) == told(part(1, 9))
            ranks[2].close()
            last = [stream.put(10, 5.0, part(rank, 10)) for rank, stream in enumerate(ranks[:2])]
            assert [fetch(reader, place) for place in last] == [told(part(rank, 10)) for rank in (0, 1)]
        finally:
            reader.end()


def test_a_part_that_cannot_be_read_costs_nobody_else_anything(tmp_path: Path, capfd: Any) -> None:
    with streams(tmp_path, 2) as ranks:
        reader = Peer("read", tmp_path, ranks[0].name)
        try:
            assert reader.hear() == "open"
            for file in tmp_path.glob("rank-1-*"):
                file.unlink()
            ranks[1].put(1, 0.0, part(1, 1))
            for file in tmp_path.glob("rank-1-*"):  # before the courier, which waits for the other, has mapped it
                file.unlink()
            place = ranks[0].put(1, 0.0, part(0, 1))
            assert fetch(reader, place) == told(part(0, 1))
        finally:
            reader.end()
    assert "A part of the stream" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_dies_or_stops_does_not_hold_the_rank(tmp_path: Path, how: signal.Signals) -> None:
    with streams(tmp_path) as [stream]:
        reader = Peer("read", tmp_path, stream.name)
        try:
            assert reader.hear() == "open"  # the courier comes by when it has nothing to do
            assert isinstance(fetch(reader, stream.put(0, 0.0, blocks(0))), dict)
            reader.process.send_signal(how)
            for step in range(1, 60):
                with suppress(Crowded):
                    stream.put(step, 0.0, blocks(step))
        finally:
            stream.close()
            reader.end()


def test_a_courier_that_is_killed_is_told_and_another_takes_its_place(tmp_path: Path) -> None:
    with streams(tmp_path, 2) as [first, second]:
        first.put(0, 0.0, blocks(0))
        os.kill(pid_of(first), signal.SIGKILL)
        os.waitid(os.P_PID, pid_of(first), os.WEXITED | os.WNOWAIT)
        with pytest.raises(LinkError, match="has ended with code -9"):
            first.put(1, 0.0, blocks(1))
        with pytest.raises(LinkError, match=r"has ended$"):
            second.put(1, 0.0, blocks(1))
        assert list(tmp_path.glob(f"*{SUFFIX}"))
        third = NodeStream(tmp_path, FIELDS, {}, tmp_path, "rank-0")
        assert third.name != first.name and len(list(tmp_path.glob(f"*{SUFFIX}"))) == 1  # the old one is swept
        third.put(2, 0.0, blocks(2))
        third.close()


def test_a_courier_that_stops_is_crowded_at_last(tmp_path: Path) -> None:
    with streams(tmp_path) as [stream]:
        os.kill(pid_of(stream), signal.SIGSTOP)
        numbers = [stream.put(step, 0.0, blocks(0)).generation for step in range(SLOTS)]
        assert numbers == list(range(SLOTS))
        with pytest.raises(Crowded, match="keep up"):
            stream.put(SLOTS, 0.0, blocks(0))
        os.kill(pid_of(stream), signal.SIGKILL)


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


def test_a_writer_that_is_killed_ends_the_stream(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    assert isinstance(reader.do(f"fetch {writer.do('put 0')} 10"), dict)
    writer.process.kill()
    assert reader.do("fetch 1 20").startswith("LinkError")


def test_a_writer_that_stops_leaves_the_reader_in_time(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    assert isinstance(reader.do(f"fetch {writer.do('put 0')} 10"), dict)
    writer.process.send_signal(signal.SIGSTOP)
    assert reader.do("fetch 1 0.5").startswith("PartDropped")


def test_a_contact_file_that_was_left_is_swept(tmp_path: Path, pair: tuple[Peer, Peer]) -> None:
    writer, _ = pair
    writer.process.kill()
    writer.process.wait()
    assert (tmp_path / "stream.sst").exists()
    again = Peer("write", tmp_path)
    try:
        assert again.hear() == "open" and again.do("put 0") == 0
    finally:
        again.end()


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"QueueFullPolicy": "Block"}, "Discard"),
        ({"rendezvousreadercount": "1"}, "wait for readers"),
        ({"QueueLimit": "0"}, "1 or more"),
        ({"QueueLimit": "4"}, "must exceed ReserveQueueLimit"),
    ],
)
def test_parameters_that_would_stop_the_solver_are_refused(parameters: dict[str, str], word: str) -> None:
    [sentence] = adios.refused(parameters)
    assert word in sentence and next(iter(parameters)) in sentence
    assert not adios.refused({"DataTransport": "WAN", "QueueLimit": "40"})
