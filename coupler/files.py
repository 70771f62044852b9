"""Files that a reader finds whole or not at all, also when the writer is killed half-way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = "part"


def write_whole(path: Path, content: str | Callable[[BinaryIO], None]) -> None:
    """Writes a file beside its place and moves it there: other processes never see half of it.

    Args:
        path: Target; an older file of that name is replaced.
        content: Text, or what writes bytes into the open file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{PART}")
    with part.open("wb") as file:
        if isinstance(content, str):
            file.write(content.encode("utf-8"))
        else:
            content(file)
    part.replace(path)


def sweep_parts(folder: Path) -> None:
    """Removes what killed writers left in a folder and below it. Only when nobody writes there any more."""
    for part in folder.rglob(f".*.{PART}"):
        part.unlink(missing_ok=True)
