"""SST streams between two processes: what arrives, what is dropped, and what happens when one side dies or stops."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coupler.bulks import adios_engine as adios
from coupler.bulks.courier import SLOTS, Courier, Crowded
from coupler.errors import LinkError

sys.path.insert(0, str(Path(__file__).parent))
from adios_peer import FIELDS, blocks, told

pytestmark = pytest.mark.skipif(bool(adios.available()), reason=adios.available() or "-")
SCRIPT = Path(__file__).with_name("adios_peer.py")
PATIENCE_S = 30.0


class Peer:
    """One side of a stream."""

    def __init__(self, role: str, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
        command = [sys.executable, str(SCRIPT), role, str(folder / "stream")]
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
        expected = {
            name: content for name, content in told(blocks(step)).items() if content[0]
        }  # empty ones do not travel
        assert found == expected
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
    assert lost and kept and len(lost) + len(kept) == 31 and all("StepDropped" in answer for answer in lost)
    assert all(answers[step]["x"] == told(blocks(step))["x"] for step in kept)
    assert kept[-1] == 30  # the stream goes on


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_dies_or_stops_does_not_hold_the_rank(tmp_path: Path, how: signal.Signals) -> None:
    courier = Courier(tmp_path / "stream", FIELDS, {}, tmp_path, "rank-0")
    reader = Peer("read", tmp_path)
    try:
        assert reader.hear() == "open"  # the courier comes by when it has nothing to do
        assert isinstance(reader.do(f"fetch {courier.put(0, 0.0, blocks(0))} 10"), dict)
        reader.process.send_signal(how)
        for step in range(1, 60):
            with suppress(Crowded):
                courier.put(step, 0.0, blocks(step))
    finally:
        courier.close()
        reader.end()


def test_a_courier_that_is_killed_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    courier = Courier(tmp_path / "stream", FIELDS, {}, tmp_path, "rank-0")
    courier.put(0, 0.0, blocks(0))
    os.kill(courier.pid, signal.SIGKILL)
    os.waitid(os.P_PID, courier.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(LinkError, match="has ended with code -9"):
        courier.put(1, 0.0, blocks(1))
    courier.close()
    assert not list(tmp_path.glob("rank-0-*"))


def test_a_courier_that_stops_is_crowded_at_last(tmp_path: Path) -> None:
    courier = Courier(tmp_path / "stream", FIELDS, {}, tmp_path, "rank-0")
    os.kill(courier.pid, signal.SIGSTOP)
    numbers = [courier.put(step, 0.0, blocks(0)) for step in range(SLOTS)]
    assert numbers == list(range(SLOTS))
    with pytest.raises(Crowded, match="keep up"):
        courier.put(SLOTS, 0.0, blocks(0))
    os.kill(courier.pid, signal.SIGKILL)
    courier.close()


def test_a_writer_that_is_killed_ends_the_stream(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    assert isinstance(reader.do(f"fetch {writer.do('put 0')} 10"), dict)
    writer.process.kill()
    assert reader.do("fetch 1 20").startswith("LinkError")


def test_a_writer_that_stops_leaves_the_reader_in_time(pair: tuple[Peer, Peer]) -> None:
    writer, reader = pair
    assert isinstance(reader.do(f"fetch {writer.do('put 0')} 10"), dict)
    writer.process.send_signal(signal.SIGSTOP)
    assert reader.do("fetch 1 0.5").startswith("StepDropped")


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
