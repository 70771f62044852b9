"""Plays files in tests, as one of several ranks where asked for."""

from __future__ import annotations

from coupler import registry
from coupler.ranks import Ranks


class Part(Ranks):
    """One of several ranks, alone."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def play(path, ranks=None, **settings):
    cls = registry.find("simulations", "recording")
    return registry.construct(cls, {"path": str(path), **settings}, ranks=ranks or Ranks(), seed=0)
