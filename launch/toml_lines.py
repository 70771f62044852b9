"""On which line of a TOML text each key stands; `tomllib` does not tell. The text must be valid TOML already."""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]
"""Keys from the top of the document down; an int counts the elements of an array."""

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every key, table header and array element.

    Args:
        text: Valid TOML.
    """
    return _Scan(text).document()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a path, or of the nearest thing around it that is in the text; 1 when nothing is."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 1


class _Scan:
    """A walk through the text that notes where keys start."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.elements: dict[Path, int] = {}

    def document(self) -> dict[Path, int]:
        header: Path = ()
        while self._skip():
            start = self.at
            if self.text[self.at] == "[":
                array = self.text.startswith("[[", self.at)
                self.at += 2 if array else 1
                header = self._header(self._key(), array)
                self.at += 2 if array else 1
                self._note_all(header, 1, start)
            else:
                self._pair(header)
        return self.lines

    def _header(self, keys: tuple[str, ...], array: bool) -> Path:
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self.elements and not (array and len(path) == len(keys)):
                path = (*path, self.elements[path])
        if array:
            self.elements[path] = self.elements.get(path, -1) + 1
            path = (*path, self.elements[path])
        return path

    def _pair(self, inside: Path) -> None:
        start = self.at
        path = (*inside, *self._key())
        self._note_all(path, len(inside) + 1, start)
        self._skip()
        self.at += 1  # the equals sign
        self._skip()
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening in "[{":
            self._collection(path, "]" if opening == "[" else "}")
        elif match := _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at):
            self.at = match.end()

    def _collection(self, path: Path, closing: str) -> None:
        self.at += 1
        count = 0
        while self._skip() and self.text[self.at] != closing:
            if self.text[self.at] == ",":
                self.at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._note((*path, count), self.at)
                self._value((*path, count))
                count += 1
        self.at += 1

    def _key(self) -> tuple[str, ...]:
        keys: list[str] = []
        while True:
            self._skip()
            if match := _BARE.match(self.text, self.at):
                keys.append(match.group())
            else:
                match = _STRING.match(self.text, self.at)
                assert match is not None, "the text was read by tomllib before"
                keys.append(tomllib.loads(f"key = {match.group()}")["key"])
            self.at = match.end()
            self._skip()
            if self.text[self.at] != ".":
                return tuple(keys)
            self.at += 1

    def _skip(self) -> bool:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def _note_all(self, path: Path, shortest: int, at: int) -> None:
        for end in range(shortest, len(path) + 1):
            self._note(path[:end], at)

    def _note(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, at) + 1)
