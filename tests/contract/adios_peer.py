"""A side of a stream in a process of its own: `python adios_peer.py write|read|rank PATH`; led through its input.

The bindings hold the interpreter's lock while they wait, so the two sides of a stream cannot share a process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from coupler.bulks.adios import AdiosWriter
from coupler.bulks.node_stream import NodeStream
from coupler.bulks.streams import PartReader
from coupler.errors import CouplerError
from schemas.fields import Block, FieldSpec

FIELDS = (FieldSpec("x", "<f8", (6, 4), "m"), FieldSpec("p", "<f4", (9, 2), "m", "particle"))
OTHERS = (FieldSpec("x", "<f8", (6, 5), "m"),)
PATIENCE_S = 20.0


def blocks(step: int) -> dict[str, Block]:
    x = np.asfortranarray(1.0 * step + np.arange(12.0).reshape(3, 4))
    ids = np.arange(step % 4, dtype=np.int64) * 2  # none at all at every fourth step
    p = np.repeat(ids.astype(">f4")[:, None], 2, axis=1) + np.float32(step)
    return {"x": Block(x, (2, 0)), "p": Block(p, (), ids)}


def part(rank: int, step: int) -> dict[str, Block]:
    """What one of three ranks puts: two rows each, and particles that wander."""
    x = 10.0 * step + rank + np.arange(8.0).reshape(2, 4)
    ids = np.array([i for i in range(9) if (i + step) % 3 == rank], np.int64)
    return {"x": Block(x, (2 * rank, 0)), "p": Block(np.repeat(ids.astype("<f4")[:, None], 2, axis=1), (), ids)}


def told(step: Any) -> Any:
    return {
        name: [b.array.tolist(), list(b.offset), None if b.ids is None else b.ids.tolist()] for name, b in step.items()
    }


def main(role: str, path: Path) -> None:
    fields = OTHERS if role == "misread" else FIELDS
    if role == "rank":
        side: Any = NodeStream(path.parent, FIELDS, {}, path.parent, f"rank-{os.getpid()}")
        side.put(0, 0.0, blocks(1))
        print(json.dumps(side.process.pid if side.process else 0), flush=True)
    else:
        side = AdiosWriter(path, FIELDS) if role == "write" else PartReader(path, fields, {}, PATIENCE_S)
        print(json.dumps("open"), flush=True)
    number = 0
    for line in sys.stdin:
        word, *rest = line.split()
        answer: Any = None
        try:
            if word == "put":
                number = side.put(int(rest[0]), 0.0, blocks(int(rest[0])))
                answer = number
            elif word == "come_by":
                side.come_by()
            elif word == "fetch":
                number, timeout_s, *member = rest
                answer = told(side.fetch(int(*member or [0]), int(number), float(timeout_s)))
            elif word == "steps":
                answer = side._reader._reads
            elif word == "close":
                side.close()
        except CouplerError as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
        if word == "close":
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
