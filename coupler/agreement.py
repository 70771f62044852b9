"""How all ranks come to act alike: one small allreduce of votes, outside any waiting for the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed
from coupler.ranks import Operation, Ranks


@dataclass(frozen=True, slots=True)
class Vote:
    """What a rank brings to an exchange.

    Attributes:
        decision: Newest decision number that it holds.
        may_send: Whether its window has room.
        fault: 0, or the number of the fault that it found in its state.
        step: Step of its state.
    """

    decision: int
    may_send: bool
    fault: int
    step: int


def agree(ranks: Ranks, vote: Vote) -> Vote:
    """The Vote all ranks act on: the newest decision that every rank holds, room on every rank, the worst fault.

    Raises:
        SimulationFailed: Ranks show states of different steps; on every rank.
    """
    if ranks.size == 1:
        return vote
    mine = np.array([vote.decision, vote.may_send, -vote.fault, vote.step, -vote.step], dtype=np.float64)
    decision, may_send, fault, first, last = ranks.allreduce(mine, "min")
    if first != -last:
        raise SimulationFailed(
            f"Ranks show states of different steps, {int(first)} to {-int(last)}; this is rank {ranks.rank}, at "
            f"{vote.step}. Every rank must make every exchange, at the same step."
        )
    return Vote(int(decision), bool(may_send), -int(fault), vote.step)


def agree_decision(ranks: Ranks, decision: int) -> int:
    """The newest decision that every rank holds."""
    if ranks.size == 1:
        return decision
    return int(ranks.allreduce(np.array([decision], dtype=np.float64), "min")[0])


def agree_objection(ranks: Ranks, objection: str) -> str:
    """The objection of the first rank that has one, known to all ranks; empty when none has."""
    return agree_advice(ranks, objection, 0)[0]


def agree_advice(ranks: Ranks, objection: str, quiet: int) -> tuple[str, int]:
    """See `agree_objection`; and for how many exchanges no rank has anything to wait for, whatever each was told."""
    if ranks.size == 1:
        return objection, quiet
    mine = np.array([ranks.rank if objection else ranks.size, quiet], dtype=np.float64)
    first, fewest = map(int, ranks.allreduce(mine, "min"))
    return (str(ranks.bcast(f"rank {first}: {objection}", first)) if first < ranks.size else ""), fewest


def totals(ranks: Ranks, names: Iterable[str], items: Mapping[str, Invariant]) -> dict[str, float]:
    """Global values of named invariants, from every rank's contributions. Collective."""
    values: dict[str, float] = {}
    operations: tuple[Operation, ...] = ("sum", "max")
    for operation in operations:
        wanted = [name for name in sorted(names) if name in items and items[name].reduction == operation]
        if wanted:
            own = np.array([items[name].value for name in wanted], dtype=np.float64)
            values |= dict(zip(wanted, map(float, ranks.allreduce(own, operation)), strict=True))
    return values
