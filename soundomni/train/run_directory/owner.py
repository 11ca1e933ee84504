"""Ownership of a run directory: one process at a time trains in it.

While a run trains, it holds a lock (flock) on `owner.json` in its directory, and that file names its host and process.
The lock ends with the process, however it ends, so that a file left by a killed process can be taken over. Other hosts
may not see the lock, as on some network file systems; so the owner also writes to the file every few seconds, and a
file from another host is watched for a while before it is taken over. Clocks are not compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from soundomni.core.errors import CheckpointError

FILE_NAME = "owner.json"
REFRESH_SECONDS = 5.0
"""Seconds between an owner's writes to its file."""
WATCH_SECONDS = 20.0
"""Seconds for which another host's file must stay unchanged before it is taken over."""
_SETTLING_SECONDS = 2.0  # between locking the file and writing to it, a new owner is not named yet
_TRIES = 100  # each one only fails if another owner ends between opening and locking
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """Contents of `owner.json`.

    Args:
        host, pid: the process that trains.
        boot: id of the current boot of its machine; empty if unknown.
        started: when the process began, in clock ticks since boot; empty if unknown.
        beat: counts up while the process lives.
    """

    host: str
    pid: int
    boot: str
    started: str
    beat: int = 0

    @property
    def is_here(self) -> bool:
        """Whether it names this machine, in this boot or an earlier one."""
        return self.host == socket.gethostname() or (self.boot != "" and self.boot == _boot())

    def is_of(self, other: Claim) -> bool:
        """Return whether both name the same process."""
        return replace(self, beat=0) == replace(other, beat=0)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs on this machine."""
        if not self.is_here or self.boot != _boot():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.started == _started(self.pid)


class Owner:
    """The owner of a run directory, from its construction to `release`.

    Args:
        directory: the run directory; created if it is missing.
        refresh_seconds, watch_seconds: see REFRESH_SECONDS and WATCH_SECONDS.

    Raises:
        CheckpointError: another process owns it, or it cannot be written.
    """

    def __init__(self, directory: Path, *, refresh_seconds: float = REFRESH_SECONDS, watch_seconds: float = WATCH_SECONDS) -> None:
        self.path = directory / FILE_NAME
        self._refresh_seconds, self._watch_seconds = refresh_seconds, watch_seconds
        self._made = not directory.exists()
        self._locks = True
        self.rival: Claim | None = None
        """A process that wrote to the file in spite of the lock, on a file system that grants locks to everybody."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._lock()
        except OSError as error:
            told = f"the run directory '{directory}' cannot be written: {_why(directory, error)}"
            raise CheckpointError(f"{told}; set train.run_dir") from error
        self._claim = Claim(socket.gethostname(), os.getpid(), _boot(), _started(os.getpid()))
        self._ended = threading.Event()
        try:
            self._take_over()
        except BaseException:
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._refresh, name="run-owner", daemon=True)
        self._thread.start()

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def is_held(self) -> bool:
        """Return whether `owner.json` is still in its place and belongs to nobody else.

        Costs one look at the file system.
        """
        if self.rival is not None:
            return False
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # the file may be readable again later; a checkpoint that cannot be written raises its own error
        return os.path.samestat(found, os.fstat(self._file))

    def find(self) -> Path | None:
        """Return the current path of the directory, which may have been moved; None if it or `owner.json` was
        deleted."""
        for place in (self.path, _path_of(self._file)):
            with contextlib.suppress(OSError):
                if place is not None and os.path.samestat(place.stat(), os.fstat(self._file)):
                    return place.parent
        return None

    def release(self) -> None:
        """Give up the directory, and remove it if this object created it and it is empty. May be called twice."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        place = self.find()
        with contextlib.suppress(OSError):
            if place is not None:
                (place / FILE_NAME).unlink()
            if place is not None and self._made:
                place.rmdir()
        os.close(self._file)

    def _lock(self) -> int:
        """Open and lock the file, and return its descriptor.

        The file may be removed, with its lock, between the two.
        """
        for _ in range(_TRIES):
            if self.path.is_symlink():  # the file that it leads to is not this program's
                raise CheckpointError(f"'{self.path}' is a link, which a run does not make; remove it, or choose another train.run_dir")
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            try:
                self._try_lock(file)
                if os.path.samestat(self.path.stat(), os.fstat(file)):
                    return file
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        raise self._refusal(None)

    def _try_lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(self._named(file)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._locks = False
            logger.warning("the file system of '%s' has no locks: only the contents of the file say who owns the run directory", self.path)

    def _named(self, file: int) -> Claim | None:
        """Return the holder of the lock, as soon as the file names it."""
        deadline = time.monotonic() + _SETTLING_SECONDS
        claim = _read(file)
        while time.monotonic() < deadline and (claim is None or (claim.is_here and not claim.is_alive)):
            time.sleep(0.02)
            claim = _read(file)
        return claim

    def _take_over(self) -> None:
        """Write to the file, unless the process that it names is alive. Raise CheckpointError if it is."""
        if not _is_claim(self._file):
            raise CheckpointError(f"'{self.path}' was not written by a run; move it elsewhere, or choose another train.run_dir")
        before = _read(self._file)
        if before is not None and before.is_alive and (before.pid != os.getpid() or not self._locks):
            raise self._refusal(before)  # some file systems grant a lock to everybody
        if before is not None and not before.is_here:
            self._watch(before)
        _write(self._file, self._claim)
        if not self._locks:  # another process may have done the same at the same time
            time.sleep(1.0)
            now = _read(self._file)
            if now is None or not now.is_of(self._claim):
                raise self._refusal(now)

    def _watch(self, before: Claim) -> None:
        """Wait until the owner on another host has been silent for long enough. Raise CheckpointError if it is not."""
        text = "'%s' names process %d on host %s; waiting %g s to see whether it is still training"
        logger.warning(text, self.path, before.pid, before.host, self._watch_seconds)
        deadline = time.monotonic() + self._watch_seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._watch_seconds))
            now = _read(self._file, self.path)
            if now is not None and now != before:
                raise self._refusal(now)

    def _refusal(self, claim: Claim | None) -> CheckpointError:
        who = "another process" if claim is None else f"process {claim.pid} on host {claim.host}"
        return CheckpointError(
            f"the run directory '{self.path.parent}' is in use: {who} trains in it; wait until it ends, set another train.run_dir, "
            f"or, if that process no longer exists, remove '{self.path}'"
        )

    def _refresh(self) -> None:
        beat, told = 0, False
        while not self._ended.wait(self._refresh_seconds):
            beat += 1
            now = _read(self._file)
            if now is not None and not now.is_of(self._claim):
                self.rival = now
                return
            try:
                _write(self._file, replace(self._claim, beat=beat))
            except OSError as error:
                if not told:
                    logger.warning(
                        "'%s' cannot be refreshed, so other hosts may think that its owner is gone: %s", self.path, error.strerror
                    )
                told = True


def _why(directory: Path, error: OSError) -> str:
    """Return why a directory cannot be owned; if something else is in its place, what that is."""
    if directory.is_symlink() and not directory.exists():
        return f"it is a link to '{directory.readlink()}', which is not there"
    if directory.exists() and not directory.is_dir():
        return "it is a file"
    return f"'{FILE_NAME}' in it is a directory" if isinstance(error, IsADirectoryError) else str(error.strerror or error)


def _read(file: int, path: Path | None = None) -> Claim | None:
    """Return the claim in an open file, or None if it does not hold one.

    If a path is given, it is opened again, which network file systems need to show what others wrote.
    """
    try:
        text = os.pread(file, 4096, 0) if path is None else path.read_bytes()
        return Claim(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None


def _is_claim(file: int) -> bool:
    """Return whether an open file is a claim, of this version or another, or the rest of one after a power failure."""
    text = os.pread(file, 4096, 0).strip(b"\0 \n")
    try:
        tree = json.loads(text) if text else {"host": ""}
    except (ValueError, RecursionError):
        return text.startswith(b"{")
    return isinstance(tree, dict) and not tree.keys().isdisjoint({"host", "pid"})


def _write(file: int, claim: Claim) -> None:
    text = json.dumps(asdict(claim)).ljust(250).encode() + b"\n"  # of fixed length, so that nobody reads the end of a longer one
    os.pwrite(file, text, 0)
    os.ftruncate(file, len(text))
    os.fsync(file)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _path_of(file: int) -> Path | None:
    try:
        return Path(f"/proc/self/fd/{file}").readlink()
    except OSError:
        return None
