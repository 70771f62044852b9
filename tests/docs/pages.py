"""Code blocks of the pages, and what it takes to run them.

In a page under `docs/`, in order, in one folder and one namespace a page:

    ```python                              is executed
    ```{code-block} python :caption: F     is written to the file F, or appended when the page has begun it before
    ```{code-block} toml :caption: F       is written to the file F; a whole case is checked too
    ```console                             lines that start with `$` and a known program are run (`&`: beside the
                                           rest of the page); what follows a line must be its output
    ```{code-block} text :class: output    is the output of the block of Python before it

In an expected output `...` stands for anything. `$ echo $?` shows the exit code of the command before it, which is
otherwise 0; `$ cd DIR` changes the folder. A block below a comment that begins with `<!-- not run` is left alone.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^`\n]+)\n(?P<body>.*?)^(?P=fence)$", re.M | re.S)
_OPTION = re.compile(r"^:(\w+): *(.*)\n", re.M)


@dataclass(frozen=True)
class Block:
    """One code block: its language, options, content and line."""

    language: str
    options: dict[str, str]
    body: str
    line: int
    run: bool

    @property
    def file(self) -> str:
        return self.options.get("caption", "")

    @property
    def is_output(self) -> bool:
        return self.options.get("class") == "output"

    @property
    def is_case(self) -> bool:
        return self.language == "toml" and "name" in tomllib.loads(self.body).get("run", {})


def pages() -> list[Path]:
    """All pages that people wrote."""
    made = ("_build", "generated")
    return sorted(p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).parts[0] not in made)


def blocks(text: str) -> list[Block]:
    """The code blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        info, body, options = match["info"].strip(), match["body"], {}
        if info.startswith("{code-block}"):
            info = info.removeprefix("{code-block}").strip()
            while option := _OPTION.match(body):
                options[option[1]] = option[2]
                body = body[option.end() :]
        before = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(info, options, body.strip("\n") + "\n", line, not before.startswith("<!-- not run")))
    return found


def commands(body: str) -> list[tuple[str, str]]:
    """The commands of a console block and the output shown under each."""
    found: list[tuple[str, str]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def matches(expected: str, got: str) -> bool:
    """Whether an output is the one shown; `...` stands for anything, trailing space does not count."""
    shown, seen = (re.sub(r"[ \t]+$", "", text.strip(), flags=re.M) for text in (expected, got))
    return re.fullmatch(".*".join(re.escape(part) for part in shown.split("...")), seen, re.S) is not None
