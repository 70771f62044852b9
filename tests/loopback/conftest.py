"""Puts the outside plug-ins of the tests within reach, and puts `sys.path` back after each test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PLUGINS = str(Path(__file__).parents[1] / "system" / "plugins")
sys.path.append(PLUGINS)


@pytest.fixture(autouse=True)
def _search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
