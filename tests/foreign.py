"""BP5 files as somebody else writes them, with plain ADIOS2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coupler.bulks.adios_engine import adios2_module


def write(path: Path, steps: Iterable[Mapping[str, Any]], places: Mapping[str, tuple[int, ...]] | None = None) -> Path:
    """One step for each mapping of names to values.

    Args:
        path: The file.
        steps: A number is written as a single value, text as text, an array whole, and a list of pairs (start, array)
            as so many blocks of an array of the shape in `places`; of a local array where that is ().
        places: Shapes of what is written in blocks.
    """
    adios2, places = adios2_module(), places or {}
    adios = adios2.Adios()
    io, defined = adios.declare_io("foreign"), {}
    io.set_engine("BP5")
    engine = io.open(str(path), adios2.Mode.Write)
    for step in steps:
        engine.begin_step()
        for name, value in step.items():
            if isinstance(value, str):
                defined[name] = defined.get(name) or io.define_variable(name)
                engine.put(defined[name], value)
                continue
            blocks = value if isinstance(value, list) else [((0,) * np.ndim(value), np.asarray(value))]
            shape = list(places[name] if isinstance(value, list) else np.shape(value))
            for start, array in blocks:
                selection = [list(start), list(array.shape)]
                if name not in defined and isinstance(value, list) and not shape:
                    defined[name] = io.define_variable(name, np.zeros(1, array.dtype), [], [], selection[1])
                elif name not in defined:
                    defined[name] = io.define_variable(
                        name, np.zeros(1, array.dtype), *([shape, *selection] * bool(shape))
                    )
                elif shape:
                    defined[name].set_shape(shape)
                    defined[name].set_selection(selection)
                engine.put(defined[name], np.ascontiguousarray(array).reshape(array.shape or 1), adios2.Mode.Sync)
        engine.end_step()
    engine.close()
    return path
