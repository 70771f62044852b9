"""A task whose import ends a process of the server's side."""

from __future__ import annotations

import sys

from linear import Linear

if "ml_servers" in sys.orig_argv:
    sys.exit("this module wants another machine")


class Deadly(Linear):
    """Checks well, and kills later."""
