"""Run folders, checkpoints and locks: everything a run leaves on disk goes through here.

The disk is the truth and a process may die at any instruction, so there are three rules.
A file that is replaced is written beside itself, fsynced and renamed. A file that grows (CSV) is
made durable before the checkpoint that covers its rows, and whatever lies after that checkpoint
is dropped on resume. A checkpoint is a folder renamed into place as a whole.

torch is imported by the two checkpoint functions only: reports read run folders without it.
"""

from bench.store.checkpoints import load_checkpoint, save_checkpoint
from bench.store.files import atomic_write, read_json
from bench.store.lock import GroupLock
from bench.store.runs import STATES, RunFolder, config_hash, iter_runs, seed_folders

__all__ = [
    "STATES",
    "GroupLock",
    "RunFolder",
    "atomic_write",
    "config_hash",
    "iter_runs",
    "load_checkpoint",
    "read_json",
    "save_checkpoint",
    "seed_folders",
]
