"""What people use to hand an array from a simulation to another process of its node: `python -m benchmarks peers`.

Each peer has two programs of its own; all peers of a size take turns. A trip hands an array over (`put`, during which
the solver stands still), the other side adds one to every value, and an array of that size comes back (`round trip`).
The ratios are to bare pyzmq over tcp with the same bytes. A peer that is not installed says what to install.
"""

from benchmarks.peers.compare import rows

__all__ = ["rows"]
