"""Four ranks, each with a Coupling and a server of its own in its process; rank 2's misbehaves. Prints what each did.

Started by `test_agreement_mpi.py`: `mpiexec -n 4 python agreement_ranks.py`.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from mpi4py import MPI
from scripted import DT, FIELDS, ScriptedLink, Spinner, frames_of, turned

from coupler.coupling import Coupling
from coupler.errors import CouplerError
from coupler.guard import Guard
from coupler.ranks import MpiRanks, Ranks
from coupler.terms import Terms
from schemas import messages
from schemas.fields import Block
from schemas.messages import Ack, Action, Ask, Hello, Message, Refusal, Welcome

BAD_RANK = 2
STEPS = 6
Reply = tuple[Message, Mapping[str, Block]]


class OneServer:
    """Answers one rank: the first Ask with a state 5 steps ahead, all others with DIRECT; or as the fault says."""

    def __init__(self, ranks: Ranks, fault: str) -> None:
        self.ranks, self.fault = ranks, fault if ranks.rank == BAD_RANK else "none"
        self.scenario, self.weight = fault, 0.5 if fault == "blend" else 1.0
        self.asks = 0
        self.held: list[Reply] = []
        self.link = ScriptedLink(self)

    def __call__(self, message: Message, blocks: Mapping[str, Block]) -> Sequence[Reply]:
        if isinstance(message, Hello):
            return [(Refusal("not you"), {})] if self.fault == "refused" else [(Welcome(1, 8, ()), {})]
        if not isinstance(message, Ask):
            return []
        self.asks += 1
        if self.scenario in ("host step in a lease", "lease"):
            told = {"answers": message.stamp.step, "lease": 40 if self.fault == "lease" else 4}
            return [(messages.Advice(action=Action.DIRECT, decision=self.asks, ack=self.ack(message), **told), {})]
        if self.asks == 1:
            return self.first(message)
        if self.asks == 2 and self.fault == "silent":
            return []
        late, self.held = self.held, []
        if self.asks == 2 and self.scenario == "late":  # a server decides nothing newer while a state is under way
            return [*late, (self.ack(message), {})]
        told = {"answers": message.stamp.step, "reason": "told so"}
        answer = messages.Advice(action=Action.DIRECT, decision=self.asks, ack=self.ack(message), **told)
        return [*late, (answer, {})]

    def ack(self, ask: Ask) -> Ack:
        return Ack(1, ask.stamp.seq, 0, 1 if self.fault == "credit" and self.asks > 1 else 8)

    def first(self, ask: Ask) -> Sequence[Reply]:
        advice, blocks = self.learned(ask)
        if self.fault == "missing":
            return []
        if self.fault == "late":
            self.held = [(advice, blocks)]
            return []
        if self.fault == "garbled":
            frames = frames_of(advice, blocks)
            self.link.inbox.append([*frames[:-1], memoryview(bytes(len(frames[-1])))])
            return []
        if self.fault == "nan":
            blocks["x"] = Block(blocks["x"].array * math.nan, blocks["x"].offset)
        if self.fault == "not its own":
            blocks["x"] = Block(blocks["x"].array, (0,))
        if self.fault == "invariant":
            blocks["x"] = Block(blocks["x"].array * 3.0, blocks["x"].offset)
        return [(advice, blocks)]

    def learned(self, ask: Ask) -> tuple[messages.Advice, dict[str, Block]]:
        sim, step = Spinner(self.ranks), ask.stamp.step + 5
        x, v = turned(sim.x, sim.v, step)
        offset = (int(sim.own[0]),)
        advice = messages.Advice(
            action=Action.LEARNED,
            decision=1,
            ack=self.ack(ask),
            answers=ask.stamp.step,
            step=step,
            time=step * DT,
            horizon=5,
            version=1,
            weight=self.weight,
        )
        return advice, {"x": Block(x, offset), "v": Block(v, offset)}


def run(ranks: Ranks, fault: str) -> dict[str, Any]:
    """A few exchanges on this rank."""
    server, sim = OneServer(ranks, fault), Spinner(ranks)
    guard = Guard(drift={"energy": 0.1}) if fault == "invariant" else Guard()
    terms = Terms(run="r", last_step=100)
    coupling = Coupling(server.link, FIELDS, terms, ranks=ranks, guard=guard, clock=server.link.clock)
    told: dict[str, Any] = {"actions": [], "reasons": [], "steps": [], "raised": ""}
    try:
        for n in range(STEPS):
            if fault == "host nan" and n == 3 and ranks.rank == BAD_RANK:
                sim.x[0] = math.nan
            if fault == "host dtype" and n == 3 and ranks.rank == BAD_RANK:
                sim.v = sim.v.astype(np.float32)
            if fault.startswith("host step") and n == 3 and ranks.rank == BAD_RANK:
                sim.step -= 1
            advice = coupling.exchange(sim.snapshot(), None, sim.invariants())
            coupling.apply(sim, advice)
            told["actions"].append(advice.action.name)
            told["reasons"].append(advice.reason)
            told["steps"].append(sim.step)
    except CouplerError as error:
        told["raised"] = f"{type(error).__name__}: {error}"
    coupling.close()
    fresh = Spinner(ranks)
    x, v = turned(fresh.x, fresh.v, sim.step)
    told["exact"] = not told["raised"] and bool(np.allclose(sim.x, x) and np.allclose(sim.v, v))
    told["refused"] = [m.refused for m in server.link.sent if isinstance(m, Ask)]
    told["saved"] = sorted(coupling.saved)
    return told


def main() -> None:
    """Every fault in turn; rank 0 prints one JSON object: by fault, what each rank did."""
    ranks = MpiRanks()
    seen = {}
    for fault in sys.argv[1:]:
        gathered = ranks.gather(msgspec.json.encode(run(ranks, fault)).decode())
        if gathered is not None:
            seen[fault] = [json.loads(text) for text in gathered]
    if ranks.rank == 0:
        sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # the other ranks would wait for ever
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
