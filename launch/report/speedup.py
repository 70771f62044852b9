"""What the coupling earned: net speedup, effective speedup and its break-even. Pure."""

from __future__ import annotations

import math


def net_speedup(reference_wall_s: float | None, wall_s: float | None) -> float | None:
    """Wall time of the all-direct run over wall time of the coupled run, everything counted; None when unknown."""
    if reference_wall_s is None or wall_s is None or wall_s <= 0.0:
        return None
    return reference_wall_s / wall_s


def effective_speedup(
    t_seq: float, t_lookup: float, t_train: float, t_learn: float, n_lookup: float, n_train: float
) -> float | None:
    """Effective speedup of a run that learned from some steps and looked the others up.

    S = T_seq (N_lookup + N_train) / (T_lookup N_lookup + (T_train + T_learn) N_train), Fox et al., "Learning
    Everywhere" (2019), arXiv:1902.10810.

    Args:
        t_seq: Seconds of one step of the all-direct run.
        t_lookup: Seconds of one learned step.
        t_train: Seconds of one direct step of the coupled run, each of which yields a training sample.
        t_learn: Seconds of training for each of those samples, where they add to the wall time.
        n_lookup: Learned steps.
        n_train: Direct steps.

    Returns:
        The speedup, or None when nothing was done.
    """
    spent = t_lookup * n_lookup + (t_train + t_learn) * n_train
    return t_seq * (n_lookup + n_train) / spent if spent > 0.0 else None


def break_even(t_seq: float, t_lookup: float, t_train: float, t_learn: float, n_train: float) -> float:
    """Number of learned steps from which the effective speedup is at least 1.

    Args:
        t_seq: As in `effective_speedup`, as all others.
        t_lookup: See there.
        t_train: See there.
        t_learn: See there.
        n_train: See there.

    Returns:
        That number, 0 when training costs nothing extra, infinity when a learned step is no cheaper than a direct one.
    """
    extra = (t_train + t_learn - t_seq) * n_train
    if extra <= 0.0:
        return 0.0
    return extra / (t_seq - t_lookup) if t_lookup < t_seq else math.inf
