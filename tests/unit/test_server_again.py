"""A server that is started again while its trainers live: they meet it, and it has their models at once."""

from __future__ import annotations

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


class Served(Setting):
    """A server without a recorder, and a trainer whose Link can lose it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, records=False)
        self.link = Met(self.trainer)

    def handle(self) -> None:
        while self.server.poll(0.0):
            pass

    def trains(self, made: list[Counting], folder: Path) -> Trainer:
        """A trainer that has met the server, which knows the fields; it puts its tasks into `made`."""

        def make(*_: object) -> Counting:
            made.append(Counting())
            return made[-1]

        trainer = Trainer(make, TASK, self.settings.run, self.link, folder)
        self.handle()
        self.hello()
        trainer.poll(0.0)
        return trainer

    @property
    def versions(self) -> list[int]:
        return [model["version"] for model in self.server.core.models]


def test_a_server_that_comes_back_has_the_model_of_the_trainer_that_stayed(tmp_path: Path) -> None:
    made: list[Counting] = []
    first = Served(tmp_path)
    trainer = first.trains(made, tmp_path)
    for _ in range(3):
        first.ask()
        trainer.poll(0.0)
        first.handle()
    assert first.versions[-1] == 3
    first.server._link.close()  # as one that is killed: it says nothing
    second = Served(tmp_path)
    trainer._link, second.link.meetings = second.link, 2
    trainer.poll(0.0)
    second.handle()
    assert not second.versions
    second.hello()
    trainer.poll(0.0)
    second.handle()
    assert len(made) == 1 and second.versions == [3]
    second.ask()
    trainer.poll(0.0)
    second.handle()
    assert second.versions[-1] == 4 and made[0].seen == [0, 1, 2, 0] and second.server.untrained == 0
    second.close()
    for rest in (first.rank, first.recorder, first.trainer):
        rest.close()


def test_a_model_that_is_learned_while_nobody_listens_is_told_later(tmp_path: Path) -> None:
    served = Served(tmp_path)
    trainer = served.trains([], tmp_path)
    served.ask()
    served.link.connected = False
    for _ in range(3):
        trainer.poll(0.0)
    served.handle()
    assert not served.versions and not any((tmp_path / "checkpoint").iterdir())
    served.link.connected = True
    for _ in range(2):
        trainer.poll(0.0)
    served.handle()
    assert served.versions == [1]
    served.close()


def test_a_connection_that_only_broke_begins_nothing_anew(tmp_path: Path) -> None:
    served = Served(tmp_path)
    trainer = served.trains([], tmp_path)
    slots, served.link.meetings = trainer._slots, 2
    trainer.poll(0.0)
    served.handle()
    trainer.poll(0.0)
    assert slots is not None and trainer._slots is slots
    served.close()


def test_states_that_come_before_the_trainer_is_up_are_counted_as_untrained(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.hello()
    served.ask()
    served.ask()
    served.ready(served.trainer, TASK)
    served.ask()
    assert served.server.untrained == 2 and [sample.step for sample in told(served.trainer, Sample)] == [2]  # type: ignore[union-attr]
    served.close()
