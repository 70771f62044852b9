"""The folder that the processes of a run share: its token, its owner, and what is left of those that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coupler.bulks import folder
from coupler.bulks.folder import PREFIX, leave, make, own, shared_folder, sweep
from coupler.errors import LinkError
from coupler.protocol.server import ServerProtocol
from schemas.fields import FieldSpec
from schemas.messages import VERSION, Hello, Welcome

OWNS = """
import pathlib, sys
from coupler.bulks.folder import own
own(pathlib.Path(sys.argv[1]))
print("up", flush=True)
sys.stdin.read()
"""


def place(tmp_path: Path, name: str = "a") -> Path:
    return tmp_path / f"{PREFIX}{os.geteuid()}-{name}"


def test_name_follows_from_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert shared_folder(tmp_path) == shared_folder(tmp_path / "link") != shared_folder(tmp_path / "other")
    assert shared_folder(tmp_path).name.startswith(f"{PREFIX}{os.geteuid()}-")


def test_all_who_make_it_find_one_token(tmp_path: Path) -> None:
    token = make(place(tmp_path))
    assert len(token) == 32 and make(place(tmp_path)) == token != make(place(tmp_path, "b"))
    assert place(tmp_path).stat().st_mode & 0o777 == 0o700
    assert [path.name for path in place(tmp_path).iterdir()] == ["token"]


@pytest.mark.parametrize(("mine", "theirs", "near"), [("a", "a", True), ("a", "b", False), ("", "", False)])
def test_only_one_and_the_same_token_is_near(tmp_path: Path, mine: str, theirs: str, near: bool) -> None:
    tokens = [make(place(tmp_path, name)) if name else "" for name in (mine, theirs)]
    server = ServerProtocol("r", (), 4, token=tokens[0])
    spec = (FieldSpec("u", "<f8", (3,), "1"),)
    welcome = server.hello(b"p", Hello(VERSION, "r", 0, 1, spec, {}, 0, 100, True, token=tokens[1]))
    assert isinstance(welcome, Welcome) and welcome.near == near


def test_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LinkError, match="belongs to another user"):
        make(place(tmp_path))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path).mkdir()
    target = place(tmp_path)
    monkeypatch.setattr(folder.os, "geteuid", lambda: target.stat().st_uid + 1)
    with pytest.raises(LinkError, match="belongs to another user"):
        make(target)
    assert list(target.iterdir()) == []


def test_file_in_its_place_is_refused(tmp_path: Path) -> None:
    place(tmp_path).touch()
    with pytest.raises(LinkError, match="cannot be used for shared memory"):
        make(place(tmp_path))


def test_last_one_takes_the_folder_along_unless_it_has_an_owner(tmp_path: Path) -> None:
    make(place(tmp_path))
    (place(tmp_path) / "up-0-1").touch()
    leave(place(tmp_path))
    assert place(tmp_path).exists()  # somebody's ring
    (place(tmp_path) / "up-0-1").unlink()
    leave(place(tmp_path))
    assert not place(tmp_path).exists()
    leave(place(tmp_path))
    own(place(tmp_path, "b"))
    leave(place(tmp_path, "b"))
    assert place(tmp_path, "b").exists()


def test_folder_of_a_killed_owner_is_swept(tmp_path: Path) -> None:
    own(place(tmp_path, "alive"))
    make(place(tmp_path, "nobodys"))
    child = subprocess.Popen(
        [sys.executable, "-c", OWNS, str(place(tmp_path))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        (place(tmp_path) / "up-0-1").touch()
        assert sweep(tmp_path) == [] and place(tmp_path).exists()
        child.kill()
    assert sweep(tmp_path) == [place(tmp_path)]
    assert {path.name for path in tmp_path.iterdir()} == {place(tmp_path, n).name for n in ("alive", "nobodys")}
