"""Docstrings as Markdown. Google sections become lists; tables drawn with spaces stay as they are."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from types import ModuleType
from typing import Any, NamedTuple

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):(.*)$")
_DRAWN = re.compile(r"\S {3,}\S|^\s*[-=|+ ]{6,}$")
_ITEM = re.compile(r"^(\*{0,2}\w+):\s(.*)$")


class Docstring(NamedTuple):
    """A docstring in parts: text before the sections, and the sections by name."""

    text: str
    sections: dict[str, str]

    def items(self, section: str) -> dict[str, str]:
        """The named entries of a section, each on one line."""
        found: dict[str, str] = {}
        name = ""
        for line in self.sections.get(section, "").splitlines():
            match = _ITEM.match(line)
            if match:
                name, found[match[1]] = match[1], match[2]
            elif name:
                found[name] = f"{found[name]} {line.strip()}".strip()
        return found


def docstring(thing: Any) -> Docstring:
    """The docstring of a thing; empty when it has none of its own."""
    return split(inspect.cleandoc(thing.__doc__ or ""))


def split(text: str) -> Docstring:
    """Cuts a clean docstring into its parts."""
    before: list[str] = []
    sections: dict[str, list[str]] = {}
    inside = before
    for line in text.splitlines():
        match = _HEADING.match(line)
        if match:
            inside = sections.setdefault(match[1], [])
            if match[2].strip():
                inside.append(match[2].strip())
        else:
            inside.append(line)
    return Docstring(
        "\n".join(before).strip(), {name: inspect.cleandoc("\n".join(lines)) for name, lines in sections.items()}
    )


def markdown(text: str) -> str:
    """Prose of a docstring as Markdown: what is aligned with spaces becomes a literal block."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        indented = all(line.startswith("    ") for line in lines if line.strip())
        if lines and (indented or any(_DRAWN.search(line) for line in lines)):
            body = inspect.cleandoc("\n" + paragraph)
            if paragraphs and paragraphs[-1].endswith("```"):  # one drawing with an empty line in it
                paragraphs[-1] = paragraphs[-1].removesuffix("```") + f"\n{body}\n```"
            else:
                paragraphs.append(f"```text\n{body}\n```")
        else:
            paragraphs.append(inline(paragraph))
    return "\n\n".join(paragraphs)


def inline(text: str) -> str:
    """Prose with nothing in it that Markdown would take for markup, code in backticks left alone."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    return re.sub(r"([\\<*_\[\]{}#$])", r"\\\1", text)


def cell(text: str) -> str:
    """Prose on one line, fit for a table."""
    return inline(" ".join(text.split())).replace("|", "\\|")


def code(text: Any) -> str:
    """A word as code, fit for a table."""
    return f"`{text}`".replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table of cells that are ready."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def constants(module: ModuleType) -> dict[str, str]:
    """Public constants of a module that carry a docstring, in order."""
    return _documented(ast.parse(inspect.getsource(module)).body)


def members(cls: type[Any]) -> dict[str, str]:
    """Class-level names that carry a docstring, such as the members of an enumeration, in order."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    return _documented(body.body) if isinstance(body, ast.ClassDef) else {}


def _documented(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for line, after in itertools.pairwise(body):
        name = _assigned(line)
        if name and not name.startswith("_") and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[name] = inspect.cleandoc(str(after.value.value))
    return found


def _assigned(line: ast.stmt) -> str:
    targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
    return targets[0].id if targets and isinstance(targets[0], ast.Name) else ""
