"""The supervisor alone: what resists, what hides, and who presses Ctrl-C again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from launched import lives, until

from launch import supervise
from launch.plan import Process
from launch.processes import is_stopped, marked, signal_name
from launch.signals import Signals
from launch.supervise import Supervisor, last_line

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
HIDING = """
import os, time
if os.fork() == 0:  # as a daemon does: a session of its own, and init for a parent
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "GRACE_S", 0.2)


def planned(tmp_path: Path, code: str, name: str = "simulation") -> Process:
    role = "server" if name == "server" else "simulation"
    return Process(role, name, (sys.executable, "-c", code), log=tmp_path / f"{name}.log")


def said(tmp_path: Path) -> str:
    return until(lambda: (tmp_path / "simulation.log").read_text("utf-8").strip(), "the child")


def test_child_that_ignores_sigterm(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        child = supervisor.start(planned(tmp_path, STUBBORN))
        said(tmp_path)
        assert child.runs
    assert child.popen.returncode == -signal.SIGKILL


def test_child_that_hides(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        assert supervisor.watch(supervisor.start(planned(tmp_path, HIDING))).code == 0
        hidden = int(said(tmp_path))
        assert lives(hidden)
    until(lambda: not lives(hidden), "the hidden process to end")


def test_exception_in_the_block(tmp_path: Path) -> None:
    children = []
    with contextlib.suppress(ZeroDivisionError), Supervisor() as supervisor:
        children.append(supervisor.start(planned(tmp_path, STUBBORN)))
        raise ZeroDivisionError
    assert not children[0].runs


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, before = supervise._wait, signal.getsignal(signal.SIGINT)

    def pressed(*arguments: object) -> None:
        press()
        wait(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(supervise, "_wait", pressed)
    with Signals() as signals, Supervisor() as supervisor:
        child = supervisor.start(planned(tmp_path, STUBBORN))
        said(tmp_path)
        assert supervisor.watch(child, asked=lambda: signals.asked).interrupted
    assert child.popen.returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_breaks_off_a_block_that_does_not_ask() -> None:
    with Signals() as signals:
        for _ in range(2):  # the second time somebody has asked before
            with pytest.raises(KeyboardInterrupt), signals.raised():
                press()
        press()  # outside it is only noted
    assert signals.asked


def test_ctrl_c_that_is_switched_off_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            press()
        assert not signals.asked and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_server_that_never_says_goodbye(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FAREWELL_S", 0.2)
    with Supervisor() as supervisor:
        supervisor.start(planned(tmp_path, "import time; time.sleep(600)", "server"))
        outcome = supervisor.watch(supervisor.start(planned(tmp_path, "pass")))
    assert outcome.code == 0
    assert outcome.lost == ["The process 'server' did not end when the simulation had ended."]


def test_server_that_nobody_has_met_is_not_waited_for(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        child = supervisor.start(planned(tmp_path, "import time; time.sleep(600)", "server"))
        outcome = supervisor.watch(supervisor.start(planned(tmp_path, "pass")), met=lambda: False)
        assert not child.runs
    assert (outcome.code, outcome.lost) == (0, [])


def test_server_that_fails_in_its_farewell(tmp_path: Path) -> None:
    code = f"import time\nwhile not __import__('os').path.exists({str(tmp_path / 'over')!r}): time.sleep(0.01)\n1 / 0"
    with Supervisor() as supervisor:
        supervisor.start(planned(tmp_path, code, "server"))
        over = f"open({str(tmp_path / 'over')!r}, 'w').close()"
        outcome = supervisor.watch(supervisor.start(planned(tmp_path, over)))
    (sentence,) = outcome.lost
    assert "'server' ended with code 1 (ZeroDivisionError: division by zero)" in sentence


def test_processes_of_another_are_left_alone(tmp_path: Path) -> None:
    with Supervisor() as one, Supervisor() as other:
        child = one.start(planned(tmp_path, STUBBORN))
        said(tmp_path)
        assert marked(child.mark) == [child.popen.pid] and marked(child.mark[:-1]) == []
        other.__exit__()
        assert child.runs


def test_small_things(tmp_path: Path) -> None:
    assert signal_name(9) == "SIGKILL" and signal_name(99) == "signal 99"
    assert not is_stopped(os.getpid()) and not is_stopped(1 << 30)
    (tmp_path / "log").write_text("one\n two \n\n", "utf-8")
    assert last_line(tmp_path / "log") == "two" and last_line(tmp_path / "none") == ""
