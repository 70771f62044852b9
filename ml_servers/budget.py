"""The budget of the coupling: how often to stream while the model has not paid for itself. Pure.

The planned run costs about `steps * direct_step_s` of wall time without coupling. A share `overhead` of it may be
spent on streaming and learning before the model earns anything; most of it at once, the rest as the run goes on.
When it is spent, the host is given leases, during which it neither sends nor asks, long enough to keep to the plan.
While a model is nearly good enough, more may be spent: it would be a pity to stop just before it pays. What learned
steps save is added to the budget, so that a model that pays is never starved.
"""

from __future__ import annotations

import math

import msgspec

MAX_LEASE = 1 << 20
"""Longest lease in steps. It does not cut a wait short that the budget asks for: each burst after one costs again."""
BURST = 128
"""States streamed in a row between two leases: a learner of dynamics needs successive ones."""
QUIET = 32
"""Steps of a quiet lease, in which trainers rest: direct steps show what they cost alone. A run shorter than 64 times
as long has one in proportion."""
LOOKS = (0.0, 0.3, 0.6)
"""Shares of what may be spent after which a quiet lease follows. The first comes after the first state, and may be
disturbed by processes that are starting; all that is spent must not rest on it."""
AT_ONCE = 0.9
"""Share of the budget that may be spent at once: a model that comes late has less of the run left to pay with."""


PROMISE = 2.5
"""How many times as much may be spent while a model promises to take over soon."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Where the coupling stands. Immutable.

    Attributes:
        overhead: Share of the planned direct wall time that may be spent.
        steps: Steps of the whole run.
        spent_s: Wall time spent on the coupling so far: stalls, and CPU of the server side that ranks had to yield.
        saved_s: Wall time saved by learned steps.
        streamed: States streamed.
        direct_step_s: Wall time of a direct step, when nothing disturbs it: the fastest told so far.
        burst: States streamed since the last lease.
        looks: Quiet leases given.
        quiet_until: Step at which the last of them ends.
        promising: Whether a model is nearly good enough to take over.
    """

    overhead: float
    steps: int
    spent_s: float = 0.0
    saved_s: float = 0.0
    streamed: int = 0
    direct_step_s: float = 0.0
    burst: int = 0
    looks: int = 0
    quiet_until: int = 0
    promising: bool = False

    def asked(
        self, direct_step_s: float, stall_s: float, cpu_s: float, steps: int, *, promising: bool = False
    ) -> Budget:
        """After one streamed state: its stall on the host, the CPU time it cost on the server's side, and the plan."""
        told = _seconds(direct_step_s) or self.direct_step_s
        return msgspec.structs.replace(
            self,
            steps=steps,
            # The fastest seen: a coupling that slows the ranks down must not be allowed more for it.
            direct_step_s=min(told, self.direct_step_s) if self.direct_step_s > 0.0 else told,
            spent_s=self.spent_s + _seconds(stall_s) + _seconds(cpu_s),
            streamed=self.streamed + 1,
            burst=self.burst + 1,
            promising=promising,
        )

    def learned(self, steps: int) -> Budget:
        """After a learned state that covered some steps."""
        return msgspec.structs.replace(self, saved_s=self.saved_s + steps * self.direct_step_s)

    def allowed_s(self, step: int) -> float:
        """What may have been spent by this step."""
        plan = self.overhead * self.steps * self.direct_step_s * (PROMISE if self.promising else 1.0)
        return plan * (AT_ONCE + (1.0 - AT_ONCE) * min(step / self.steps, 1.0)) + 0.5 * self.saved_s

    def trained(self, cpu_s: float) -> Budget:
        """After a trainer used some CPU time."""
        return msgspec.structs.replace(self, spent_s=self.spent_s + cpu_s)

    def share(self, step: int) -> float:
        """Share of a core that a trainer may use while ranks integrate: all of it within the budget but in a look."""
        if step < self.quiet_until:
            return self._rest
        return 1.0 if self.direct_step_s <= 0.0 or self.spent_s <= self.allowed_s(step) else self._rest

    @property
    def _rest(self) -> float:
        """Share of the wall time that may be spent as the run goes on."""
        return (1.0 - AT_ONCE) * self.overhead

    def lease(self, step: int) -> tuple[int, Budget]:
        """Steps until the next state should be streamed (1: the next one), and the budget after it."""
        if self._should_look(step):
            quiet = max(min(QUIET, self.steps // 64), 1)
            return quiet, msgspec.structs.replace(self, looks=self.looks + 1, quiet_until=step + quiet)
        excess = self.spent_s - self.allowed_s(step)
        if self.direct_step_s <= 0.0 or excess <= 0.0 or self.burst < BURST or not self.streamed:
            return 1, self
        # The allowance grows by this much each step: wait until it has caught up, and pays for the burst to come.
        growth = self._rest * self.direct_step_s
        burst_s = BURST * self.spent_s / self.streamed
        wait = int((excess + burst_s) / growth) + 1 if growth > 0.0 else MAX_LEASE
        return min(max(wait, BURST), MAX_LEASE), msgspec.structs.replace(self, burst=0)

    def _should_look(self, step: int) -> bool:
        if not self.streamed or self.overhead == math.inf:
            return False
        return self.looks < len(LOOKS) and self.spent_s >= LOOKS[self.looks] * self.allowed_s(step)


def _seconds(told: float) -> float:
    """A client's figure; what cannot be a duration counts as none."""
    return told if 0.0 <= told < math.inf else 0.0
