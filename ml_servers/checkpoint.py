"""Checkpoints of a task: one safetensors file, written so that a reader finds the old one or the new one whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from schemas.fields import Array


def write(path: Path, state: Mapping[str, Array], *, durable: bool = False) -> None:
    """Writes a state atomically: a temporary file in the same folder, then a rename.

    Args:
        path: Target file.
        state: Arrays by name.
        durable: Whether to wait until it survives a power failure (fsync).
    """
    from safetensors.numpy import save_file

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Not ascontiguousarray, which gives an array without axes one.
        save_file({name: np.asarray(array, order="C") for name, array in state.items()}, part)
        if durable:
            _sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        _sync(path.parent)


def read(path: Path) -> dict[str, Array]:
    """Reads a state.

    Raises:
        ValueError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"The checkpoint {path.name} is damaged: {error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
