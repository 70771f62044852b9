"""SST streams between two processes: what arrives, what is dropped, and what happens when one side dies or stops."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coupler.bulks import adios_engine as adios
from coupler.errors import LinkError

sys.path.insert(0, str(Path(__file__).parent))
from adios_peer import Peer, blocks, told

pytestmark = pytest.mark.skipif(bool(adios.available()), reason=adios.available() or "-")


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Peer, Peer]]:
    writer = Peer("write", tmp_path)
    reader: Peer | None = None
    try:
        assert writer.hear() == "open"
        reader = Peer(getattr(request, "param", "read"), tmp_path)
        wait_s = 0.05  # and longer each time, so that the empty steps do not fill the queue
        while not reader.has_said(wait_s):  # its open ends when the writer comes by
            writer.do("come_by")
            wait_s *= 1.5
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


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), IndexError("stoi")]
)
def test_whatever_the_bindings_raise_fails_the_stream_alone(error: Exception) -> None:
    with (
        pytest.raises(LinkError, match=f"the stream x cannot be read: {type(error).__name__}: .*(invalid|stoi)"),
        adios.telling("the stream x cannot be read"),
    ):
        raise error
    coloured = '\x1b[1;36m[Sat Nov 28]\x1b[1;34m [ADIOS2 EXCEPTION]\x1b[0m <Engine> <Parse> : Unknown "zz"\x1b[0m\n'
    with pytest.raises(LinkError, match=r'^it fails: ValueError: Unknown "zz"$'), adios.telling("it fails"):
        raise ValueError(coloured)
    with pytest.raises(LinkError, match=r"^already told$"), adios.telling("it fails"):
        raise LinkError("already told")
