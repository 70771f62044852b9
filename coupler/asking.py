"""At which steps the server is asked, and when nothing can come of it. Pure."""

from __future__ import annotations


class Asking:
    """Fed with what all ranks know, so that it is the same on all of them."""

    def __init__(self, first_step: int) -> None:
        """Args: first_step: Step of the first exchange."""
        self._next = first_step
        self._asked = -1  # step at which all ranks asked last, or could have
        self._quiet_until = 0

    def is_due(self, step: int) -> bool:
        """Whether the server is asked at a step: not within a lease."""
        return step >= self._next

    def is_quiet(self, step: int) -> bool:
        """Whether a step lies in a lease that answers the last question: then there is nothing to wait or vote for."""
        return step < self._quiet_until

    def asked(self, step: int) -> None:
        """All ranks asked at a step."""
        self._asked = step

    def told(self, answers: int, lease: int) -> None:
        """To integrate directly, for `lease` steps from the state of step `answers` on. No lease ends another early."""
        self._next = max(self._next, answers + lease)
        if answers >= self._asked:
            self._quiet_until = self._next

    def goes_on_at(self, step: int) -> None:
        """The host asks at this step next: it left its trajectory, or has waited for an answer."""
        self._next, self._quiet_until = step, 0
