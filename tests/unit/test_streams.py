"""The server's streams: whatever one of them does, it costs its own states and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coupler.bulks import adios, streams
from coupler.bulks.adios_engine import available
from coupler.bulks.streams import Streams
from coupler.errors import LinkError
from schemas.fields import FieldSpec
from schemas.messages import BlockEntry, Place
from schemas.wire import WireError

pytestmark = pytest.mark.skipif(bool(available()), reason=available() or "-")
FIELDS = (FieldSpec("x", "<f8", (3,), "m"),)
ENTRY = BlockEntry("x", "<f8", (3,), (0,), False, 0, Place("adios", "node-1", 7, 0, 0))
NOT_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


class Fake:
    """An engine and its IO, which fail in one place."""

    def __init__(self, place: str, error: Exception) -> None:
        self.place, self.error, self.closed = place, error, False

    def _come_to(self, place: str) -> None:
        if place == self.place:
            raise self.error

    def begin_step(self, *_: object) -> Any:
        from adios2.bindings import StepStatus

        self._come_to("begin")
        return StepStatus.OK

    def inquire_variable(self, name: str) -> str:
        self._come_to("inquire")
        return name

    def get(self, *_: object) -> str:
        self._come_to("get")
        return "no layout"

    def end_step(self) -> None:
        self._come_to("end")

    def close(self) -> None:
        self.closed = True
        self._come_to("close")


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], tuple[Streams, Fake]]:
    def make(place: str, error: Exception) -> tuple[Streams, Fake]:
        fake = Fake(place, error)
        monkeypatch.setattr(adios, "engine_io", lambda *_: fake)
        monkeypatch.setattr(adios, "open_engine", lambda *_: fake)
        made = Streams(tmp_path, {})
        made.declare(FIELDS)
        return made, fake

    return make


@pytest.mark.parametrize("place", ["begin", "inquire", "get", "end", "nowhere"])
@pytest.mark.parametrize("error", [NOT_TEXT, IndexError("no such block"), RuntimeError("[ADIOS2 EXCEPTION] : gone")])
def test_a_stream_that_raises_anything_has_failed(failing: Any, place: str, error: Exception) -> None:
    made, _ = failing(place, error)
    with pytest.raises(WireError, match="the stream node-1 cannot be read: ") as told:
        made.fetch(ENTRY)
    assert place == "nowhere" or type(error).__name__ in str(told.value)
    with pytest.raises(WireError, match=r"node-1 has failed before: .* cannot be read"):
        made.fetch(ENTRY)
    made.close()


def test_a_stream_that_cannot_be_left_keeps_no_other(failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    made, fake = failing("close", RuntimeError("it is gone"))
    for name in ("node-1", "node-2"):
        made._readers[name] = streams.PartReader(made._folder / name, FIELDS, {})
    fake.closed = False
    with caplog.at_level(logging.WARNING):
        made.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"the stream {name} cannot be left: RuntimeError: it is gone" for name in ("node-1", "node-2")
    ]


def test_parameters_that_adios2_refuses_are_told_in_one_line(tmp_path: Path) -> None:
    made = Streams(tmp_path, {"QueueLimit": str(10**14)})  # IndexError: stoi
    made.declare(FIELDS)
    with pytest.raises(WireError, match=r"^the stream node-1 cannot be opened: IndexError: stoi\.$"):
        made.fetch(ENTRY)
    with pytest.raises(LinkError, match="Unknown Sst"):
        adios.AdiosReader(tmp_path / "node-1", FIELDS, {"CPCommPattern": "zz"})


def test_nothing_is_read_before_it_was_said_what_a_stream_holds(tmp_path: Path) -> None:
    undeclared = Streams(tmp_path, {})
    with pytest.raises(WireError, match="The stream node-1 cannot be read before a rank has said what it holds"):
        undeclared.fetch(ENTRY)
    undeclared.close()
