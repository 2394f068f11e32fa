"""Checkpoints: folders renamed into place as a whole, with the sha256 of every byte in them.

``torch.load`` accepts nearly every flipped bit in silence, so nothing is unpickled unchecked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.errors import RunError
from bench.store.files import atomic_write, fsync_folder, writing

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 2

_STEP = re.compile(r"^(\.old-)?step-(\d{8,})$")
_CHECKPOINT_FILES = ("meta.json", "tensors.pt")


class _HashingFile:
    """A sink for ``torch.save`` that hashes on the way, so that a big file is not read again."""

    def __init__(self, file: IO[bytes]):
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # the C++ writer turns it into a RuntimeError without errno
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write_file(path: Path, save: Any) -> str:
    """Write one durable file through ``save(sink)``; the sha256 of its content."""
    with open(path, "wb") as file:
        sink = _HashingFile(file)
        try:
            save(sink)
        except RuntimeError as error:
            if sink.error is None:
                raise
            raise sink.error from error
        file.flush()
        os.fsync(file.fileno())
    return sink.sha256.hexdigest()


def _compact(tensor: Tensor) -> Tensor:
    """Detached; copied only where ``torch.save`` would write a bigger storage behind a view."""
    tensor = tensor.detach()
    whole = tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Write ``folder/step-<step>``: on disk as a whole or not at all; the last two are kept.

    ``tensors`` may lie on any device; ``meta`` must be JSON. Checkpoints of a later step than
    this one belong to a future that was given up (a fallback after damage) and are removed.
    Raises RunError where the disk refuses; the checkpoints before it are then untouched.
    """
    import torch

    compact = {name: _compact(t) for name, t in tensors.items()}
    about = json.dumps({"step": step, "meta": meta}, sort_keys=True).encode()
    needed = sum(t.numel() * t.element_size() for t in compact.values()) + len(about)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    with writing(target, needed):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _clean(folder)
            temporary.mkdir()
            hashes = {
                "meta.json": _write_file(temporary / "meta.json", lambda f: f.write(about)),
                "tensors.pt": _write_file(
                    temporary / "tensors.pt", lambda f: torch.save(compact, f)
                ),
            }
            atomic_write(temporary / "manifest.sha256", _manifest(hashes))
            _put_in_place(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    _prune(folder, step)


def _manifest(hashes: dict[str, str]) -> str:
    """What ``sha256sum -c`` reads."""
    return "".join(f"{hashes[name]}  {name}\n" for name in _CHECKPOINT_FILES)


def _put_in_place(temporary: Path, target: Path) -> None:
    old = target.with_name(f".old-{target.name}")
    if target.exists():  # a folder cannot be replaced in one call; load_checkpoint knows .old-
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(temporary, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clean(folder: Path) -> None:
    """Remove what a killed save left; bring back a checkpoint that was being replaced."""
    for path in folder.glob(".tmp-step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".old-step-*"):
        target = folder / path.name.removeprefix(".old-")
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, target)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[2]), not m[1], p) for p in folder.iterdir() if (m := _STEP.match(p.name))]
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _prune(folder: Path, step: int) -> None:
    kept = 0
    for other, path in _checkpoints(folder):
        kept += other <= step
        if other > step or kept > KEEP:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest undamaged checkpoint as (step, tensors on CPU, meta); None where there is none.

    Every byte is checked against the manifest before anything is unpickled, and nothing but
    tensors is unpickled. Warns for each damaged one passed over; RunError where all are.
    """
    damage = []
    for step, path in _checkpoints(folder):
        try:
            result = _read_checkpoint(path, step)
        except (OSError, ValueError) as error:
            damage.append(f"{path.name}: {error}")
            continue
        for line in damage:
            warnings.warn(
                f"{folder}: checkpoint {line}; going on from {path.name}", UserWarning, stacklevel=2
            )
        return result
    if damage:
        raise RunError(
            f"{folder}: no checkpoint can be used ({'; '.join(damage)}); "
            "delete the folder to train again from step 0"
        )
    return None


def _read_checkpoint(path: Path, step: int) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Raises OSError or ValueError for a checkpoint that is not byte for byte what was saved."""
    import pickle

    import torch

    hashes = {}
    for name in _CHECKPOINT_FILES:
        with open(path / name, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if (path / "manifest.sha256").read_bytes() != _manifest(hashes).encode():
        raise ValueError("damaged (sha256 differs from its manifest)")
    about = json.loads((path / "meta.json").read_bytes())
    if about["step"] != step:
        raise ValueError(f"holds step {about['step']}")
    try:
        tensors = torch.load(path / "tensors.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"refused ({str(error).splitlines()[0]})") from error
    return step, tensors, about["meta"]
