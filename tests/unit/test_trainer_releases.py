"""A trainer tells which slots it needs no more several at a time, but before the server can run out of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import ScriptedTask

from coupler.contracts import Report
from coupler.links.memory import MemoryHub
from ml_servers import trainer as trainer_module
from ml_servers.slots import Slots
from ml_servers.trainer import HELD, RELEASE_S, Trainer
from schemas import wire
from schemas.fields import FieldSpec
from schemas.messages import Begin, Sample, Trained

FIELDS = (FieldSpec("u", "<f8", (2,), "1"),)
COUNT = 4 * HELD


class Looking(ScriptedTask):
    """Never has anything to say."""

    def learn(self, steps: int) -> Report:
        return Report(idle=True)


class Fed:
    """A trainer, and the server's side of it; its clock stands still until it is turned."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(trainer_module.time, "monotonic", lambda: self.now)
        self.slots = Slots(folder / "slots", FIELDS, COUNT, create=True)
        hub = MemoryHub(capacity_bytes=1 << 20)
        self.server = hub.listen()
        self.trainer = Trainer(lambda *_: Looking(), "task", "run", hub.connect(b"trainer"), folder)
        self.server.receive(0.0)  # Ready
        self.server.send(wire.encode(Begin(FIELDS, str(self.slots.path), COUNT)), b"trainer")

    def feed(self) -> None:
        slot = self.slots.filled(self.slots.acquire(), 1)
        assert slot is not None
        sample = Sample(slot, self.slots.generation(slot), 0, 0.0, 0.1, 1.0)
        self.server.send(wire.encode(sample), b"trainer")
        self.trainer.poll(0.0)

    def told(self) -> Iterator[int]:
        """How many slots each message released."""
        while (received := self.server.receive(0.0)) is not None:
            message, _ = wire.decode(received[1], 1 << 20)
            assert isinstance(message, Trained)
            yield len(message.released)


@pytest.fixture
def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fed]:
    fed = Fed(tmp_path, monkeypatch)
    yield fed
    fed.trainer.close()
    fed.slots.close()
    vars(fed).clear()  # pytest keeps it beyond the test, and with it the mappings


def test_an_eighth_of_the_slots_is_told_at_once(fed: Fed) -> None:
    for _ in range(COUNT // HELD - 1):
        fed.feed()
    assert not list(fed.told())
    fed.feed()
    assert list(fed.told()) == [COUNT // HELD]


def test_a_single_slot_is_told_after_a_while(fed: Fed) -> None:
    fed.feed()
    fed.now += 0.9 * RELEASE_S
    fed.trainer.poll(0.0)
    assert not list(fed.told())
    fed.now += 0.2 * RELEASE_S
    fed.trainer.poll(0.0)
    assert list(fed.told()) == [1]
