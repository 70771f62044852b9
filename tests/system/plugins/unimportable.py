"""A task whose module can be imported everywhere but in a process of the server's side."""

from __future__ import annotations

import sys

from linear import Linear

if "ml_servers" in sys.orig_argv:
    raise ImportError("no such library on the server's machine")


class Unimportable(Linear):
    """Checks well, and fails later."""
