"""The error tree. Raised when opening and closing; inside the time loop a failure is an Advice with a reason.

CouplerError
  CaseError         the run file is wrong; carries every mistake found
  PluginError       a plug-in is unknown, cannot be imported or broke its contract
  SchemaMismatch    the two sides, or two steps, disagree about a field or a version
  ProtocolError     a message broke the protocol
  LinkError         an address cannot be used or a peer is gone
  SimulationFailed  the simulation itself failed; the job ends with this cause
    FailedElsewhere another rank failed, and knows the cause
    StepFailed      a step could not be made, with this dt at least; a run that chooses its dt goes back
"""

from __future__ import annotations


class CouplerError(Exception):
    """Anything that this library raises. The message is a full sentence: what was seen, allowed, and to try."""


class CaseError(CouplerError):
    """A run file is wrong. `mistakes` holds one sentence for each mistake."""

    def __init__(self, mistakes: list[str]) -> None:
        """Args: mistakes: One full sentence each, with file and line where known."""
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class PluginError(CouplerError):
    """A plug-in is unknown, cannot be imported or broke its contract."""


class SchemaMismatch(CouplerError):
    """The two sides, or two steps of one side, disagree about a field or a version."""


class ProtocolError(CouplerError):
    """A message broke the protocol."""


class LinkError(CouplerError):
    """An address cannot be used, or a peer is gone."""


class SimulationFailed(CouplerError):
    """The simulation itself failed (not finite, a plug-in raised); the job ends with this cause."""


class FailedElsewhere(SimulationFailed):
    """Another rank of the simulation failed, and only that one can say why."""


class StepFailed(SimulationFailed):
    """`integrate` could not make its step, on all ranks alike; what `save` gave can still be restored.

    A run whose dt is chosen goes back and tries a smaller one; in any other run it is what it says, a failure.
    """
