"""`python -m benchmarks.peers BYTES ...`: some sizes only, as tables on the screen."""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.compare import SIZES, compared
from benchmarks.table import show

if __name__ == "__main__":
    for size in map(int, sys.argv[1:]):
        show(f"peers, {size} bytes", compared(PEERS, size, SIZES[size]), Console(width=130))
