"""Files that are replaced as a whole, and the one line a user gets when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import RunError


@contextmanager
def writing(path: Path, nbytes: int) -> Iterator[None]:
    """Turn an operating system's refusal (disk full, quota, rights) into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        what = errno.errorcode.get(error.errno, "") + " " + (error.strerror or "")
        raise RunError(
            f"{path}: cannot write {nbytes} bytes ({what.strip()}); "
            "free space or choose another --out, then run the same command to resume"
        ) from error


def fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data``: afterwards it holds all of it or what it held before.

    Raises RunError where the disk refuses; the old content is then untouched.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    with writing(path, len(raw)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises RunError where it is missing, unreadable or no object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON ({error}); restore or delete it") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: holds a {type(content).__name__}, not an object; restore it")
    return content


def to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
