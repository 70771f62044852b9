"""Which errors of a run its summary judges, as the case has them. Pure."""

from __future__ import annotations

from typing import Any

from coupler.connect import dt_is_chosen
from schemas.run import RunSpec


def advised_error(spec: RunSpec) -> dict[str, Any] | None:
    """`field` and `tolerance` of the error that the advised dt is to keep small; None where no dt is advised."""
    judged = [
        {"field": task.settings["error_field"], "tolerance": task.settings["tolerance"]}
        for task in spec.tasks
        if {"error_field", "tolerance"} <= task.settings.keys()
    ]
    return judged[0] if judged and spec.run.mode in ("advise", "act") else None


def limited_errors(spec: RunSpec, rejected: int | None) -> dict[str, Any] | None:
    """`errors`, `field` and `tolerance` of each that is limited, and `rejected`; None where nothing is.

    Args:
        spec: The case.
        rejected: Steps that were made again for them; None where the books do not say.
    """
    if not (spec.limits.errors and dt_is_chosen(spec)):
        return None
    errors = [{"field": name, "tolerance": limit} for name, limit in spec.limits.errors.items()]
    return {"errors": errors, "rejected": rejected}
