"""Tables of numbers in files: written once, mapped into memory, shared by every process."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from bench.store.files import fsync_folder, writing


def mapped(stem: Path, blocks: Callable[[], Iterable[Tensor]], shape: tuple[int, int]) -> Tensor:
    """A float32 tensor ``shape`` whose memory is a file; only read it.

    The file is named after ``stem`` and its content, so it is found again by who needs the same,
    and no other. ``blocks()`` gives the rows, some at a time.

    Raises:
        RunError: where the disk refuses.
    """
    digest = hashlib.sha256()
    for block in blocks():
        digest.update(block.numpy().data)
    path = stem.with_name(f"{stem.name}-{digest.hexdigest()[:20]}.f32")
    size = 4 * shape[0] * shape[1]
    if not _is_whole(path, size):
        with writing(path, size):
            _write(path, blocks(), size)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_RANDOM)  # a row that is needed says nothing about its neighbours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no tensors that are read only
        return torch.frombuffer(memory, dtype=torch.float32).view(shape)


def _is_whole(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _write(path: Path, blocks: Iterable[Tensor], size: int) -> None:
    """Under its name there is a whole file or none. Of processes that need it at the same time one
    writes, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".tmp-{path.name}")
    with open(part, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_whole(path, size):
            file.truncate(0)  # what a killed process left
            for block in blocks:
                file.write(block.numpy().data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
            fsync_folder(path.parent)
        else:
            part.unlink(missing_ok=True)  # made anew by the opening
