"""At which steps the server is asked, and when nothing can come of it. Pure."""

from __future__ import annotations

VOTES = 16
"""Once in so many exchanges ranks compare their steps in a lease too: one that shows a wrong one is told soon."""


class Asking:
    """Fed with what all ranks know, so that it is the same on all of them."""

    def __init__(self, first_step: int) -> None:
        """Args: first_step: Step of the first exchange."""
        self._next = first_step
        self._asked = -1  # step at which all ranks asked last, or could have
        self._quiet = 0  # exchanges to come; not steps, lest a rank that shows a wrong one leave the others waiting

    def is_due(self, step: int) -> bool:
        """Whether the server is asked at a step: not within a lease."""
        return step >= self._next

    def is_quiet(self) -> bool:
        """Whether nothing is to be received or voted for now: in a lease that answers the last question."""
        left, self._quiet = self._quiet, max(self._quiet - 1, 0)
        return left % VOTES != 0

    def asked(self, step: int) -> None:
        """All ranks asked at a step."""
        self._asked = step

    def offered(self, step: int, answers: int, lease: int) -> int:
        """Exchanges after that of a step which a lease from the step of `answers` on leaves without a question."""
        return max(self._next - step - 1, answers + lease - step - 1, 0) if answers >= self._asked else 0

    def told(self, answers: int, lease: int, quiet: int) -> None:
        """To integrate directly in a lease, none of which ends another early; and what all ranks were offered."""
        self._next = max(self._next, answers + lease)
        self._quiet = quiet

    def goes_on_at(self, step: int) -> None:
        """The host asks at this step next: it left its trajectory, or has waited for an answer."""
        self._next, self._quiet = step, 0
