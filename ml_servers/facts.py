"""What the server side knows at the end, for the run's summary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from ml_servers.core import ServerCore


def summary(core: ServerCore) -> dict[str, Any]:
    """What the server side knows for the run's summary, as plain numbers."""
    books = {
        "admitted": core.admitted,
        "lost": sum(s.lost for s in core.protocol.streams.values()),
        "duplicates": sum(s.duplicates for s in core.protocol.streams.values()),
        "incomplete": core.incomplete,
        "unusable": dict(core.unusable.counts),
    }
    facts: dict[str, Any] = {"samples": books, "models": core.models, "failures": core.failures}
    facts["spent_s"], facts["saved_s"] = core.budget.spent_s, core.budget.saved_s
    if core.arbiter is not None:
        state, calibration = core.arbiter.state, core.arbiter.calibration
        facts["switch"] = msgspec.to_builtins(state)
        facts["step_errors"] = core.arbiter.step_errors
        facts["live_errors"] = core.arbiter.live_errors
        horizon = calibration.horizon(core.settings.switch.tolerance, core.settings.max_horizon)
        facts["horizon_error"] = {
            "horizon": horizon,
            "bound": _finite(core.arbiter.largest_bound or (calibration.typical(horizon) if horizon else math.inf)),
            "measured": _finite(calibration.worst) if calibration.checked else None,
            "coverage": _finite(calibration.measured),
            "n": calibration.checked,
            "backtests": {str(h): len(r) for h, r in calibration.ratios.items()},
        }
    return facts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
