"""What the pages list by hand is compared with what the code has."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import DOCS, blocks

from launch import cli

ROOT = DOCS.parent
SPEAKERS = {
    "coupler/switch.py": ("Switch", ""),
    "coupler/coupling.py": ("Coupling", ""),
    "coupler/alone.py": ("",),
    "coupler/decisions.py": ("objection_to",),
    "coupler/channel.py": ("why_closed", ""),
    "coupler/guard.py": ("Guard",),
    "coupler/blending.py": ("unmixable",),
    "ml_servers/answers.py": ("rewind",),
    "ml_servers/core.py": ("_advice",),
}
"""Where reasons are made: files, and in them classes or functions; the empty name means constants of the module."""
CASE = """
[run]
name = "keys"
steps = 160
mode = "act"
rung = "inline"
[simulation]
use = "oscillator"
k = 1.0
beta = 0.0
amplitude = [0.5, 1.5]
dt = 0.1
[[task]]
use = "propagator"
models = ["affine"]
[switch]
tolerance = 0.01
"""


def first_column(page: str) -> list[str]:
    """The code in the first cell of every table row of a page."""
    rows = re.findall(r"^\| (`[^|]*) \|", (DOCS / page).read_text(), re.M)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def spoken(path: str, where: tuple[str, ...]) -> Iterator[str]:
    """Sentences in the code of some classes and functions, `…` for what is filled in; docstrings left out."""
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in where:
            yield from _sentences(node)
    if "" in where:
        for line in tree.body:
            if isinstance(line, ast.Assign):
                yield from _sentences(line)


def _sentences(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    text = ""
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _sentences(child)
    if " " in text.strip("… "):
        yield text


def test_every_reason_is_explained() -> None:
    shown = [
        re.compile(".*".join(re.escape(part) for part in reason.split("…")))
        for reason in first_column("how-to/never-takes-over.md")
    ]
    reasons = [reason for path, where in SPEAKERS.items() for reason in spoken(path, where)]
    assert len(reasons) > 40
    assert [r for r in reasons if not any(pattern.fullmatch(r) for pattern in shown)] == []


def test_every_explained_reason_exists() -> None:
    source = "\n".join(
        path.read_text() for folder in ("coupler", "ml_servers", "schemas") for path in (ROOT / folder).rglob("*.py")
    )
    strange = []
    for reason in first_column("how-to/never-takes-over.md"):
        parts = [part.strip(" '\"") for part in reason.split("…")]
        strange += [reason for part in parts if part.removeprefix("audit: ") not in source]
    assert strange == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "case.toml").write_text(CASE)
    assert cli.main(["run", str(folder / "case.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_every_key_of_the_summary_is_explained(run_folder: Path) -> None:
    summary: Mapping[str, Any] = json.loads((run_folder / "summary.json").read_text())
    table = (DOCS / "reference/run-folder.md").read_text().partition("## `summary.json`")[2]
    explained = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", table, re.M))))
    assert explained == set(summary)
    for key in ("time", "horizon_error", "step_error", "effective_speedup", "ledger"):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{key}` |"))
        assert [part for part in summary[key] if f"`{part}`" not in row] == []


def test_every_file_of_a_run_folder_is_explained(run_folder: Path) -> None:
    page = (DOCS / "reference/run-folder.md").read_text()
    names = [path.name for path in run_folder.iterdir()]
    assert [name for name in names if f"`{name}`" not in page and f"`{name}/" not in page] == []


def test_every_command_is_explained() -> None:
    commands = {str(name) for name in cli.app if not str(name).startswith("-")}
    page = (DOCS / "reference/command-line.md").read_text()
    assert {"run", "check", "report", "ls", "init"} <= commands
    assert [name for name in commands if f"`coupler {name}" not in page] == []


def test_the_embedding_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "case.toml").write_text(
        CASE.replace('mode = "act"', 'mode = "off"').replace("steps = 160", "steps = 3")
    )
    names: dict[str, Any] = {"run_folder": tmp_path, "u": np.ones(3), "step": 0, "time": 0.0, "dt": 0.1}
    names |= {"next_output": 3, "integrate": lambda u, dt: (1 - dt) * u}
    (block,) = [b for b in blocks((ROOT / "README.md").read_text()) if b.language == "python"]
    exec(block.body, names)
    assert names["step"] == 3
    assert names["u"] == pytest.approx(np.full(3, 0.9**3))
