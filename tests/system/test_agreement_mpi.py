"""Four ranks act alike whatever one of them is told: no deadlock, and the first reason is known to all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.mpi

SCRIPT = Path(__file__).with_name("agreement_ranks.py")
FAULTS = (
    "none",
    "blend",
    "late",
    "missing",
    "garbled",
    "nan",
    "not its own",
    "refused",
    "silent",
    "credit",
    "invariant",
    "lease",
)
FAULTS += ("host nan", "host dtype", "host step", "host step in a lease")


@pytest.fixture(scope="module")
def seen() -> dict[str, list[dict[str, Any]]]:
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", "4", sys.executable, str(SCRIPT), *FAULTS]
    paths = os.pathsep.join(str(SCRIPT.parents[up]) for up in (1, 2))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    ranks = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)
    try:
        said, errors = ranks.communicate(timeout=60)
    finally:
        if ranks.poll() is None:  # a deadlock: mpiexec's ranks go with its group
            os.killpg(ranks.pid, signal.SIGKILL)
            ranks.communicate()
    assert ranks.returncode == 0, errors
    found: dict[str, list[dict[str, Any]]] = json.loads(said)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_all_ranks_act_alike(seen: dict[str, list[dict[str, Any]]], fault: str) -> None:
    ranks = seen[fault]
    assert len(ranks) == 4
    # In a lease the rank whose host shows a wrong step makes one more before it is told.
    alike = ("actions", "saved") if fault == "host step in a lease" else ("actions", "steps", "saved")
    for key in alike:
        assert all(rank[key] == ranks[0][key] for rank in ranks)
    if not fault.startswith("host"):
        assert all(rank["exact"] for rank in ranks) and len(ranks[0]["actions"]) == 6


@pytest.mark.parametrize(
    ("fault", "adopted_at"),
    [("none", 1), ("late", 2), ("silent", 1), ("credit", 1), ("missing", None), ("garbled", None), ("refused", None)],
)
def test_a_learned_state_is_adopted_once_every_rank_has_its_part(
    seen: dict[str, list[dict[str, Any]]], fault: str, adopted_at: int | None
) -> None:
    actions = seen[fault][0]["actions"]
    assert [n for n, action in enumerate(actions) if action == "LEARNED"] == (
        [] if adopted_at is None else [adopted_at]
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "rank 2: the learned field 'x' is not finite"),
        ("not its own", "rank 2: the learned field 'x' is not the part that this rank holds"),
    ],
)
def test_the_first_reason_is_known_to_all(seen: dict[str, list[dict[str, Any]]], fault: str, reason: str) -> None:
    for rank in seen[fault]:
        assert set(rank["actions"]) == {"DIRECT"} and reason in rank["reasons"] and reason in rank["refused"]


def test_one_rank_without_an_answer_makes_all_integrate(seen: dict[str, list[dict[str, Any]]]) -> None:
    for rank in seen["silent"]:
        assert rank["actions"][1:3] == ["LEARNED", "DIRECT"] and rank["reasons"][2] == "no answer within the deadline"


def test_an_invariant_broken_on_one_rank_is_restored_on_all(seen: dict[str, list[dict[str, Any]]]) -> None:
    for rank in seen["invariant"]:
        assert rank["actions"][1] == "LEARNED" and rank["steps"][:3] == [1, 1, 2]
        assert any("invariant 'energy'" in text for text in rank["refused"])


def test_a_blended_hand_over_is_blended_on_all(seen: dict[str, list[dict[str, Any]]]) -> None:
    for rank in seen["blend"]:
        assert rank["actions"][1] == "LEARNED" and rank["steps"][1] == 5 and rank["saved"] == [1]


@pytest.mark.parametrize(("fault", "own"), [("host nan", "SimulationFailed"), ("host dtype", "SchemaMismatch")])
def test_one_rank_with_an_unusable_state_stops_all(seen: dict[str, list[dict[str, Any]]], fault: str, own: str) -> None:
    raised = [rank["raised"] for rank in seen[fault]]
    assert raised[2].startswith(f"{own}: At step") and "field" in raised[2]
    assert all("another rank found its state unusable" in text for n, text in enumerate(raised) if n != 2)


@pytest.mark.parametrize(("fault", "steps"), [("host step", 3), ("host step in a lease", 4)])
def test_ranks_at_different_steps_are_told(seen: dict[str, list[dict[str, Any]]], fault: str, steps: int) -> None:
    for n, rank in enumerate(seen[fault]):
        assert rank["raised"].startswith("SimulationFailed: Ranks show states of different steps")
        assert f"this is rank {n}" in rank["raised"] and len(rank["steps"]) == steps
