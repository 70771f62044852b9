"""The other side of a stream, in a process of its own: `python adios_peer.py write|read FOLDER`; led through its input.

The bindings hold the interpreter's lock while they wait, so the two sides of a stream cannot share a process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from coupler.bulks.adios import AdiosReader, AdiosWriter
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


def told(step: Any) -> Any:
    return {
        name: [b.array.tolist(), list(b.offset), None if b.ids is None else b.ids.tolist()] for name, b in step.items()
    }


def main(role: str, path: Path) -> None:
    fields = OTHERS if role == "misread" else FIELDS
    side: Any = AdiosWriter(path, FIELDS) if role == "write" else AdiosReader(path, fields, open_timeout_s=PATIENCE_S)
    number = 0
    print(json.dumps("open"), flush=True)
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
                answer = told(side.fetch(int(rest[0]), float(rest[1])))
            elif word == "close":
                side.close()
        except CouplerError as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
        if word == "close":
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
