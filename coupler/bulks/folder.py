"""Where the processes of one run on one node keep what they share: a folder in shared memory, and a token in it.

Both sides derive the folder's name from that of the run folder. Whether they really see the same memory (a container
may have its own) shows at the handshake: HELLO carries the token that the client found, and the server compares it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import xxhash

from coupler.errors import LinkError

MEMORY = Path("/dev/shm")
TOKEN = "token"
OWNER = "owner"
PREFIX = "coupler-"
LEAST_BYTES = 1 << 20
"""Shared memory with less room is as good as none."""


def memory() -> Path:
    """Where shared memory is mounted; the temporary folder where there is none."""
    return MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())


def free_bytes(where: Path | None = None) -> int:
    """Bytes that can be had now, of shared memory or where a folder lies; none where nothing can be written."""
    room = os.statvfs(where or memory())
    return 0 if room.f_flag & os.ST_RDONLY else room.f_bavail * room.f_frsize


def shared_folder(run_folder: Path) -> Path:
    """The folder of a run in shared memory, or in the temporary folder where there is none. Not made here."""
    digest = xxhash.xxh3_64_hexdigest(os.fsencode(run_folder.resolve()))
    return memory() / f"{PREFIX}{os.geteuid()}-{digest}"


def make(folder: Path) -> str:
    """Makes the folder (mode 0700) and its token, unless they are there; gives the token.

    Raises:
        LinkError: It belongs to somebody else, or cannot be made; then nothing of it is left.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            raise LinkError(f"{folder} belongs to another user; remove it")
        fresh = folder / f"{TOKEN}.{os.getpid()}"
        try:
            fresh.write_text(secrets.token_hex(16))
            os.link(fresh, folder / TOKEN)  # whole from the first moment, and only once
        except FileExistsError:
            pass
        finally:
            fresh.unlink(missing_ok=True)
        return (folder / TOKEN).read_text()
    except OSError as error:
        with contextlib.suppress(OSError):  # in use by others, or not there
            folder.rmdir()
        raise LinkError(f"{folder} cannot be used for shared memory: {error.strerror}") from error


def usable(folder: Path) -> bool:
    """Makes a folder in shared memory, unless that cannot be used or has no room worth the name."""
    try:
        make(folder)
    except LinkError:
        return False
    return free_bytes() >= LEAST_BYTES


def own(folder: Path) -> None:
    """Notes this process as the one that will remove the folder, for `sweep`.

    Raises:
        LinkError: As `make`.
    """
    make(folder)
    try:
        (folder / OWNER).write_text(f"{os.getpid()} {_started(os.getpid())}")
    except OSError as error:
        remove(folder)  # nobody else has come yet
        raise LinkError(f"{folder} cannot be used for shared memory: {error.strerror}") from error


def leave(folder: Path) -> None:
    """Called by each process at its end: a folder whose owner is gone, or never was, goes with its last user."""
    try:
        if {path.name for path in folder.iterdir()} <= {TOKEN, OWNER} and not _owned(folder):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    except OSError:  # somebody else was faster, or has just come
        return


def remove(folder: Path) -> None:
    """Removes a folder and all that lies in it; what is mapped stays until the last process lets go."""
    shutil.rmtree(folder, ignore_errors=True)


def sweep(base: Path = MEMORY) -> list[Path]:
    """Removes the folders of this user whose owner was killed; gives their paths."""
    gone = []
    for folder in base.glob(f"{PREFIX}{os.geteuid()}-*"):
        if (folder / OWNER).exists() and not _owned(folder):  # without an owner it is not ours to judge
            remove(folder)
            gone.append(folder)
    return gone


def _owned(folder: Path) -> bool:
    """Whether the owner of a folder lives."""
    try:
        pid, started = (folder / OWNER).read_text().split()
    except (OSError, ValueError):
        return False
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; with its pid this names one process. Empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
