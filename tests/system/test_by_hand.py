"""A server, trainers and a recorder that somebody starts by hand: nobody else ends them when the run is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases import spec_of

from coupler import connect
from coupler.files import write_whole
from ml_servers import __main__ as servers
from ml_servers.from_case import core_settings, task_maker
from ml_servers.server import SUMMARY, Server
from ml_servers.trainer import Trainer
from schemas import wire
from schemas.messages import Ready
from schemas.run import RunSpec, dump


def never() -> bool:
    return False


def case(folder: Path) -> RunSpec:
    spec = spec_of(folder, rung="local", **{"output": {"record": "bp5"}})
    folder.mkdir(mode=0o700)
    write_whole(folder / connect.CASE, dump(spec))
    return spec


def served(spec: RunSpec, folder: Path) -> Server:
    room = {"slot_folder": folder, "buffer_bytes": 1 << 16, "max_message_bytes": spec.link.max_message_bytes}
    return Server(connect.listen(spec, folder), core_settings(spec), task_maker(spec), folder, **room)


def test_a_trainer_that_was_busy_when_the_server_ended_gets_its_halt(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    spec = case(folder)
    server = served(spec, folder)
    link: Any = connect.connect(spec, folder, "trainer-Linear-0")
    trainer = Trainer(lambda *_: None, "Linear", spec.run.name, link, folder)  # type: ignore[arg-type, return-value]
    with closing(trainer):
        while not server._trainers:
            trainer.poll(0.0)
            server.poll(0.01)
        server.close()
        while link.connected:  # it learns meanwhile
            pass
        trainer.run(never)
        assert trainer.halted


WORKERS = {
    "trainer": lambda spec, folder: servers.train(spec, folder, "Linear", 0, never),
    "recorder": lambda spec, folder: servers.record(spec, folder, never),
}


@pytest.mark.parametrize("who", WORKERS)
def test_one_whose_server_has_vanished_ends_by_itself(
    tmp_path: Path, who: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(servers, "GONE_S", 0.05)
    folder = tmp_path / "run"
    spec = case(folder)
    listener = connect.listen(spec, folder)

    def vanish() -> None:
        """As one that is killed: it says nothing more."""
        with closing(listener):
            received = listener.receive(30)
            assert received is not None and isinstance(wire.decode(received[1], 1 << 20)[0], Ready)

    server = threading.Thread(target=vanish)
    server.start()
    assert WORKERS[who](spec, folder) == servers.FAILED
    server.join()
    assert "the server has been gone" in caplog.text


def ending(monkeypatch: pytest.MonkeyPatch, folder: Path, **link: bool) -> tuple[Callable[[], bool], list[float]]:
    now = [0.0]
    monkeypatch.setattr(servers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return servers._Gone(SimpleNamespace(**link), folder, never), now  # type: ignore[arg-type]


def test_a_server_that_never_came_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, now = ending(monkeypatch, tmp_path, connected=False)
    now[0] = 1e6
    assert not gone()
    (tmp_path / SUMMARY).touch()  # it has closed its books: this trainer came too late
    assert gone()


def test_a_link_that_cannot_tell_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, now = ending(monkeypatch, tmp_path)
    now[0] = 1e6
    assert not gone()


def test_a_server_that_comes_back_in_time_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, now = ending(monkeypatch, tmp_path, connected=True)
    link: Any = gone._link  # type: ignore[attr-defined]
    for _ in range(3):
        link.connected = True
        assert not gone()
        link.connected = False
        now[0] += servers.GONE_S - 1.0
        assert not gone()
    now[0] += 2.0
    assert gone()
