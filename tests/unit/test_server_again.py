"""A server that is started again while its trainers live: they meet it, and it has their models at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripted import ScriptedTask
from test_server_records import Setting, told

from coupler.contracts import Report
from coupler.links.memory import MemoryConnection
from ml_servers.trainer import Trainer
from schemas.fields import Snapshot
from schemas.messages import Sample

TASK = "task"


class Counting(ScriptedTask):
    """Learns a model of each state that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def observe(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot.step)

    def learn(self, steps: int) -> Report:
        self.version, before = len(self.seen), self.version
        return Report(version=self.version, kind="counting", promoted=self.version > before, idle=True)


class Met:
    """A Link whose listener comes and goes as it is told."""

    def __init__(self, link: MemoryConnection) -> None:
        self._link, self.meetings, self.connected = link, 1, True
        self.send, self.receive, self.close = link.send, link.receive, link.close


def serving(folder: Path) -> tuple[Setting, Callable[[], None]]:
    folder.mkdir(exist_ok=True)
    set_up = Setting(folder, records=False)

    def handle() -> None:
        while set_up.server.poll(0.0):
            pass

    return set_up, handle


def test_a_server_that_comes_back_has_the_model_of_the_trainer_that_stayed(tmp_path: Path) -> None:
    made: list[Counting] = []

    def make(*_: object) -> Counting:
        made.append(Counting())
        return made[-1]

    first, handle = serving(tmp_path)
    link = Met(first.trainer)
    trainer = Trainer(make, TASK, first.settings.run, link, tmp_path)
    handle()
    first.hello()
    for _ in range(3):
        first.ask()
        trainer.poll(0.0)
        handle()
    assert first.server.core.models[-1]["version"] == 3
    first.server._link.close()  # as one that is killed: it says nothing
    second, handle = serving(tmp_path)
    trainer._link = link = Met(second.trainer)
    link.meetings = 2
    trainer.poll(0.0)
    handle()
    assert not second.server.core.models
    second.hello()
    trainer.poll(0.0)
    handle()
    assert len(made) == 1 and [model["version"] for model in second.server.core.models] == [3]
    second.ask()
    trainer.poll(0.0)
    handle()
    assert second.server.core.models[-1]["version"] == 4 and made[0].seen == [0, 1, 2, 0]
    assert second.server.untrained == 0
    trainer.close()
    second.close()
    for rest in (first.rank, first.recorder, first.trainer):
        rest.close()


def test_a_model_that_is_learned_while_nobody_listens_is_told_later(tmp_path: Path) -> None:
    set_up, handle = serving(tmp_path)
    link = Met(set_up.trainer)
    trainer = Trainer(lambda *_: Counting(), TASK, set_up.settings.run, link, tmp_path)
    handle()
    set_up.hello()
    trainer.poll(0.0)
    set_up.ask()
    link.connected = False
    for _ in range(3):
        trainer.poll(0.0)
    handle()
    assert not set_up.server.core.models and not any((tmp_path / "checkpoint").iterdir())
    link.connected = True
    trainer.poll(0.0)
    trainer.poll(0.0)
    handle()
    assert [model["version"] for model in set_up.server.core.models] == [1]
    trainer.close()
    set_up.close()


def test_a_connection_that_only_broke_begins_nothing_anew(tmp_path: Path) -> None:
    set_up, handle = serving(tmp_path)
    link = Met(set_up.trainer)
    trainer = Trainer(lambda *_: Counting(), TASK, set_up.settings.run, link, tmp_path)
    handle()
    set_up.hello()
    trainer.poll(0.0)
    slots = trainer._slots
    link.meetings = 2
    trainer.poll(0.0)
    handle()
    trainer.poll(0.0)
    assert trainer._slots is slots
    trainer.close()
    set_up.close()


def test_states_that_come_before_the_trainer_is_up_are_counted_as_untrained(tmp_path: Path) -> None:
    set_up, _ = serving(tmp_path)
    set_up.hello()
    set_up.ask()
    set_up.ask()
    set_up.ready(set_up.trainer, TASK)
    set_up.ask()
    assert set_up.server.untrained == 2 and [sample.step for sample in told(set_up.trainer, Sample)] == [2]  # type: ignore[union-attr]
    set_up.close()
