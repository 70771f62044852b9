"""The house rules that can be measured: sizes, forbidden calls, and what a simulation process imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "coupler", "sim_clients", "ml_servers", "launch")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 400, 60
"""Of a function without its docstring: a constructor describes each of its settings."""

ALLOWED = {"schemas", "coupler", "sim_clients", "zmq", "msgspec", "msgpack", "numpy", "xxhash"}
"""Top-level packages, beside the standard library's, that a simulation process may import."""
THEIRS = {"cython_runtime", "typing_extensions"}
"""What some versions of those bring along."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            text = node.body[0] if ast.get_docstring(node) is not None else None
            docstring = (text.end_lineno or 0) - text.lineno + 1 if text else 0
            yield f"{name(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1 - docstring


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(module: ast.Module) -> Iterator[str]:
    """What no module may do, with its line."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            if {n.split(".")[0] for n in names} & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}:
                yield f"{node.lineno}: imports a pickle"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in ("eval", "exec", "torch.load") or called.endswith(".load_pickle"):
                yield f"{node.lineno}: calls {called}"
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
                yield f"{node.lineno}: allows a pickle"
        elif isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{node.lineno}: catches everything without a name"
            if all(isinstance(s, ast.Pass) for s in node.body) and dotted(node.type or ast.Name("")) in (
                "",
                "Exception",
            ):
                yield f"{node.lineno}: catches and ignores"


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 60 and ROOT / "coupler" / "coupling.py" in MODULES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert [(where, lines) for where, lines in functions(path) if lines > MOST_FUNCTION_LINES] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_forbidden(path: Path) -> None:
    assert list(offences(tree(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception:\n    pass",
    ],
)
def test_the_rules_find_what_they_forbid(code: str) -> None:
    assert list(offences(ast.parse(code)))


def test_a_simulation_process_imports_little() -> None:
    code = "import sys, coupler.coupling, coupler.connect, sim_clients.driver; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    tops = {module.split(".")[0] for module in found.stdout.split()}
    foreign = {m for m in tops if m not in sys.stdlib_module_names and not m.startswith("_")}
    # An editable installation puts its own finder among the modules.
    assert {m for m in foreign - ALLOWED - THEIRS if not m.startswith("__editable__")} == set()
    assert {"coupler", "sim_clients", "numpy"} <= foreign
