"""The server beside a recorder: the trainers keep their slots, and every state that is not recorded is counted."""

from __future__ import annotations

from pathlib import Path

import msgspec
from scripted import SETTINGS, ScriptedTask, Spinner, frames_of

from coupler.contracts import Link
from coupler.links.memory import MemoryHub
from ml_servers.recorder import RECORDER
from ml_servers.server import Server
from schemas import wire
from schemas.messages import VERSION, Ask, Begin, Hello, Message, Ready, Sample, Stamp, Trained, Welcome


def told(link: Link, kind: type[Message]) -> list[Message]:
    """The messages of a kind that have come."""
    found = []
    while (received := link.receive(0.0)) is not None:
        found.append(wire.decode(received[1], 1 << 20)[0])
    return [message for message in found if isinstance(message, kind)]


def test_the_recorder_takes_half_of_the_slots_and_its_cpu_time_is_no_training(tmp_path: Path) -> None:
    hub, settings = MemoryHub(capacity_bytes=1 << 24), msgspec.structs.replace(SETTINGS, records=True)
    more = {"slot_folder": tmp_path, "buffer_bytes": 0, "max_message_bytes": 1 << 20}
    server = Server(hub.listen(), settings, lambda *_: ScriptedTask(), tmp_path, **more)
    rank, trainer, recorder = (hub.connect(name) for name in (b"rank-0", b"trainer", b"recorder"))
    spinner, seq = Spinner(), 0

    def handled(link: Link, message: Message, blocks: object = None) -> None:
        assert link.send(frames_of(message, blocks or {}))
        while server.poll(0.0):
            pass

    def ask() -> None:
        nonlocal seq
        seq += 1
        shown = spinner.snapshot()
        stamp = Stamp(0, 1, seq, shown.step, shown.time, shown.dt, shown.controls_until, ())
        handled(rank, Ask(stamp, until=100), shown.blocks)
        spinner.integrate(shown.dt, 1)

    handled(trainer, Ready(VERSION, settings.run, settings.tasks[0]))
    fields = tuple(spinner.fields())
    handled(rank, Hello(VERSION, settings.run, 0, 1, fields, {}, 0, 100, False))
    assert told(rank, Welcome)
    ask()  # before the recorder is up: this state waits for it
    handled(recorder, Ready(VERSION, settings.run, RECORDER))
    for _ in range(3):
        ask()
    begun = [message.count for message in told(trainer, Begin)]
    assert begun == [4]
    kept = told(recorder, Sample)
    assert [sample.step for sample in kept] == [0, 1] and (server.keeping.given, server.keeping.missed) == (2, 2)
    handled(recorder, Trained(RECORDER, released=tuple(s.slot for s in kept), cpu_s=5.0))
    assert server.untrained == 0 and server.train_cpu_s == 0.0
    ask()  # the trainer holds all four slots
    assert server.untrained == 1 and server.keeping.missed == 3
    handled(recorder, Trained(RECORDER, failure="no space"))
    assert server.keeping.failure == "no space" and not server.core.failures
    server.close()
    for link in (rank, trainer, recorder):
        link.close()
