"""The server beside several ranks of a task: who gets which state, and who is not of this run."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import ScriptedTask
from test_server_records import Setting, told

from coupler.distribution import Share
from ml_servers.trainer import Trainer
from schemas.messages import Halt, Refusal, Sample, Trained

TASK = "flow"


def taken_by(folder: Path, how: str) -> list[list[int]]:
    """Steps that each of two ranks got of six states, two in a turn."""
    shares = {TASK: tuple(Share(how, 2, rank, turn=2) for rank in (0, 1))}  # type: ignore[arg-type]
    set_up = Setting(folder, tasks=(TASK,), shares=shares, records=False)
    pair = (set_up.trainer, set_up.hub.connect(b"second"))
    for rank, link in enumerate(pair):
        set_up.ready(link, TASK, rank)
    set_up.hello()
    steps: list[list[int]] = [[], []]
    for _ in range(6):
        set_up.ask()
        for rank, link in enumerate(pair):
            for sample in told(link, Sample):
                steps[rank].append(sample.step)  # type: ignore[union-attr]
                set_up.handled(link, Trained(TASK, released=(sample.slot,), rank=rank))  # type: ignore[union-attr]
    slots = set_up.server.slots
    assert slots is not None and all(
        slots.acquire()["x"].base is not None for _ in range(4)
    )  # every slot is free again
    assert set_up.server.untrained == 0
    set_up.close()
    pair[1].close()
    return steps


def test_ranks_take_turns(tmp_path: Path) -> None:
    assert taken_by(tmp_path, "steps") == [[0, 1, 4, 5], [2, 3]]


def test_by_blocks_every_rank_gets_every_state(tmp_path: Path) -> None:
    assert taken_by(tmp_path, "blocks") == [[0, 1, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize(("task", "rank", "count"), [(TASK, 2, 2), (TASK, -1, 2), ("wind", 0, 0)])
def test_a_trainer_that_this_run_does_not_have_is_refused(tmp_path: Path, task: str, rank: int, count: int) -> None:
    set_up = Setting(tmp_path, tasks=(TASK,), shares={TASK: (Share("blocks", 2, 0), Share("blocks", 2, 1))})
    set_up.ready(set_up.trainer, task, rank)
    (refusal,) = told(set_up.trainer, Refusal)
    assert f"{count} trainers of {task}" in refusal.reason  # type: ignore[union-attr]
    set_up.close()


def test_when_one_rank_fails_the_others_end(tmp_path: Path) -> None:
    set_up = Setting(tmp_path, tasks=(TASK,), shares={TASK: (Share("steps", 2, 0), Share("steps", 2, 1))})
    second = set_up.hub.connect(b"second")
    set_up.ready(set_up.trainer, TASK, 0)
    set_up.ready(second, TASK, 1)
    set_up.hello()
    set_up.handled(second, Trained(TASK, failure="ArithmeticError: no", rank=1))
    assert len(told(set_up.trainer, Halt)) == 1 and set_up.server.core.failures == {TASK: "ArithmeticError: no"}
    set_up.ask()
    assert told(set_up.trainer, Sample) == []
    set_up.close()
    second.close()


def test_a_trainer_that_is_told_to_end_gives_back_what_it_holds(tmp_path: Path) -> None:
    each = (Share("blocks", 2, 0), Share("blocks", 2, 1))
    set_up = Setting(tmp_path, tasks=(TASK,), shares={TASK: each}, records=False)
    second = set_up.hub.connect(b"second")
    run = set_up.settings.run
    trainer = Trainer(lambda *_: ScriptedTask(), TASK, run, set_up.trainer, tmp_path, share=each[0])
    set_up.ready(second, TASK, 1)
    set_up.hello()
    set_up.ask()
    (sample,) = told(second, Sample)
    failed = Trained(TASK, released=(sample.slot,), failure="no", rank=1)  # type: ignore[union-attr]
    set_up.handled(second, failed)
    trainer.poll(0.0)
    assert trainer.halted
    while set_up.server.poll(0.0):
        pass
    slots = set_up.server.slots
    assert slots is not None and len(slots._free) == slots.count
    set_up.close()
    second.close()
