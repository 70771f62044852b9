"""The server beside a recorder: the trainers keep their slots, and every state that is not recorded is counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from scripted import SETTINGS, ScriptedTask, Spinner, frames_of

from coupler.contracts import Link
from coupler.links.memory import MemoryHub
from ml_servers.recorder import RECORDER
from ml_servers.server import Server
from schemas import wire
from schemas.fields import Block
from schemas.messages import VERSION, Ask, Begin, Bye, Hello, Message, Ready, Sample, Stamp, Trained, Welcome


def told(link: Link, kind: type[Message]) -> list[Message]:
    """The messages of a kind that have come."""
    found = []
    while (received := link.receive(0.0)) is not None:
        found.append(wire.decode(received[1], 1 << 20)[0])
    return [message for message in found if isinstance(message, kind)]


class Setting:
    """A server with four slots, a rank that asks, a trainer and a recorder to be."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.hub = MemoryHub(capacity_bytes=1 << 24)
        self.settings = msgspec.structs.replace(SETTINGS, **({"records": True} | changes))
        more = {"slot_folder": folder, "buffer_bytes": 0, "max_message_bytes": 1 << 20}
        self.server = Server(self.hub.listen(), self.settings, lambda *_: ScriptedTask(), folder, **more)
        self.rank, self.trainer, self.recorder = (self.hub.connect(n) for n in (b"rank-0", b"trainer", b"recorder"))
        self.spinner, self.seq = Spinner(), 0

    def handled(self, link: Link, message: Message, blocks: Mapping[str, Block] | None = None) -> None:
        assert link.send(frames_of(message, blocks or {}))
        while self.server.poll(0.0):
            pass

    def hello(self) -> None:
        fields = tuple(self.spinner.fields())
        hello = Hello(
            version=VERSION,
            run=self.settings.run,
            rank=0,
            ranks=1,
            fields=fields,
            invariants={},
            step=0,
            last_step=100,
            can_rewind=False,
        )
        self.handled(self.rank, hello)
        assert told(self.rank, Welcome)

    def ready(self, link: Link, task: str, rank: int = 0) -> None:
        self.handled(link, Ready(VERSION, self.settings.run, task, rank))

    def ask(self) -> None:
        self.seq += 1
        shown = self.spinner.snapshot()
        stamp = Stamp(0, 1, self.seq, shown.step, shown.time, shown.dt, shown.controls_until, ())
        self.handled(self.rank, Ask(stamp, until=100), shown.blocks)
        self.spinner.integrate(shown.dt, 1)

    def close(self) -> None:
        self.server.close()
        for link in (self.rank, self.trainer, self.recorder):
            link.close()


def test_the_recorder_takes_half_of_the_slots_and_its_cpu_time_is_no_training(tmp_path: Path) -> None:
    set_up = Setting(tmp_path)
    server, recorder = set_up.server, set_up.recorder
    set_up.ready(set_up.trainer, set_up.settings.tasks[0])
    set_up.hello()
    set_up.ask()  # before the recorder is up: this state waits for it
    set_up.ready(recorder, RECORDER)
    for _ in range(3):
        set_up.ask()
    assert [message.count for message in told(set_up.trainer, Begin)] == [4]
    kept = told(recorder, Sample)
    assert [sample.step for sample in kept] == [0, 1] and (server.keeping.given, server.keeping.missed) == (2, 2)
    set_up.handled(recorder, Trained(RECORDER, released=tuple(s.slot for s in kept), cpu_s=5.0))
    assert server.untrained == 0 and server.train_cpu_s == 0.0
    set_up.ask()  # the trainer holds all four slots
    assert server.untrained == 1 and server.keeping.missed == 3
    set_up.handled(recorder, Trained(RECORDER, failure="no space"))
    assert server.keeping.failure == "no space" and not server.core.failures
    set_up.close()


def test_a_run_that_is_over_before_the_recorder_is_up_is_recorded_all_the_same(tmp_path: Path) -> None:
    set_up = Setting(tmp_path)
    server, recorder, came = set_up.server, set_up.recorder, []
    set_up.hello()
    set_up.ask()
    set_up.handled(set_up.rank, Bye(0, 1, 1, "finished"))

    def comes_late() -> bool:
        if server.core.all_finished and not came:
            came.append(recorder.send(frames_of(Ready(VERSION, set_up.settings.run, RECORDER), {})))
        return False

    server.serve(comes_late)
    assert server.core.all_finished and [sample.step for sample in told(recorder, Sample)] == [0]
    set_up.close()
    assert server.keeping.given == 1 and server.keeping.missed == 0
