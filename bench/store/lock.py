"""A lock between processes, with signs of life: a killed owner does not lock for ever."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from bench.errors import RunError
from bench.store.files import atomic_write

STALE_SECONDS = 600.0
HEARTBEAT_SECONDS = 60.0

_log = logging.getLogger("bench.store")


class GroupLock:
    """Keeps two processes from training into one folder: ``with GroupLock(folder): ...``.

    The file ``lock`` names pid, host and the time of the last sign of life, which a thread
    refreshes every minute. Raises RunError where it is held. A lock whose process is dead (same
    host) or silent for 10 minutes is taken over; ``note`` then says so. Call ``check`` before
    each checkpoint: it raises RunError where a machine slept so long that somebody took over.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / "lock"
        self.note: str | None = None
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._take_over()
        self._thread = threading.Thread(target=self._beat, name="bench-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._owned():
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises RunError where the lock is no longer ours."""
        if not self._owned():
            raise RunError(f"{self.path}: another process took over this run; stop one of the two")

    def _content(self) -> str:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "token": self._token}
        started = _process_start(os.getpid())
        return json.dumps({**owner, "process_start": started, "heartbeat": time.time()})

    def _create(self) -> bool:
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(fd, "w") as file:
            file.write(self._content())
        return True

    def _take_over(self) -> None:
        """Remove a stale lock (the caller tries again); RunError where it is alive."""
        owner = _read_lock(self.path)
        if owner is None:
            return
        who = f"pid {owner.get('pid', '?')} on {owner.get('host', '?')}"
        why = _stale(owner)
        if why is None:
            raise RunError(
                f"{self.path.parent} is being trained by {who}; wait for it or stop it first"
            )
        aside = self.path.with_name(f".tmp-lock-{self._token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:  # somebody else was faster
            return
        moved = _read_lock(aside)
        if moved is not None and moved.get("token") != owner.get("token"):
            os.replace(aside, self.path)  # it was somebody's fresh lock: give it back
            return
        aside.unlink(missing_ok=True)
        self.note = f"{self.path.parent}: took over the lock of {who} ({why})"
        _log.warning(self.note)

    def _owned(self) -> bool:
        return (_read_lock(self.path) or {}).get("token") == self._token

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            if not self._owned():
                return
            try:
                atomic_write(self.path, self._content())
            except RunError as error:  # a full disk must not end the run: the next beat may work
                _log.warning("%s", error)


def _read_lock(path: Path) -> dict[str, Any] | None:
    """The owner; None where there is no lock. An empty one (its maker is between two system
    calls, or died there) counts by the file's own time."""
    try:
        text, heartbeat = path.read_text(), path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("heartbeat"), float):
        return {"heartbeat": heartbeat}
    return content


def _stale(owner: dict[str, Any]) -> str | None:
    """Why a lock no longer counts, None while it does."""
    age = time.time() - owner["heartbeat"]
    if age > STALE_SECONDS:
        return f"no sign of life for {age / 60:.0f} minutes"
    pid = owner.get("pid")
    if not isinstance(pid, int) or owner.get("host") != socket.gethostname():
        return None
    same = _alive(pid) and owner.get("process_start") == _process_start(pid)
    return None if same else "that process is gone"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process_start(pid: int) -> str | None:
    """The kernel's start time of a process (pids are used again); None where it does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
