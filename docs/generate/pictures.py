"""Pictures that a run leaves: shown where they are there."""

from __future__ import annotations

from pathlib import Path

SWITCHING = "images/switching.png"


def parts(docs: Path) -> dict[str, str]:
    """`switching`: the picture of the vortex street, or nothing."""
    shown = f"![The vortex street, switching between solver and model](/{SWITCHING})\n"
    return {"switching": shown if (docs / SWITCHING).exists() else ""}
