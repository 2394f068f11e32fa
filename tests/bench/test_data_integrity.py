"""Data that changed, disks that are full, names that do not fit: seen before they do harm."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from bench.cli import main
from bench.data import DataWarning, cards, load, raw
from bench.data.card import shipped_root
from bench.data.memory_map import write_memory_map
from bench.errors import DataError, RunError
from tests.bench.data_files import assert_same, columns, write
from tests.bench.runs import environment


def bench(*words):
    return main(["data", *map(str, words)])


# ------------------------------------------------------------------------------ changed data


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """A copy of the cards and of one set, to be damaged."""
    name = "lite/pendulum/medium-v0"
    card = cards()[name]
    root = tmp_path / "datasets"
    (root / "embedded").mkdir(parents=True)
    shutil.copytree(card.path.parents[1] / "cards", root / "cards")
    shutil.copy(card.path, root / "embedded")
    monkeypatch.setenv("BENCH_DATASETS", str(root))
    return name, root / "embedded" / card.path.name


def test_one_bit_of_a_final_observation(embedded, capsys):
    """Catches: next observations that no fingerprint covers, or that no card is held to."""
    name, path = embedded
    assert load(name).transitions["valid_next"].all()
    with h5py.File(path, "r+") as file:
        finals = file["final_observations"]
        bits = finals[7].view(np.int32)
        bits[1] ^= 1
        finals[7] = bits.view(np.float32)
    assert bench("check", name) == 2
    error = capsys.readouterr().err
    assert f"{path}: fingerprint_next: is " in error and error.count("error:") == 1


def test_next_observations_that_are_said_to_be_unknown(embedded):
    name, path = embedded
    with h5py.File(path, "r+") as file:
        file["valid_next"] = np.arange(len(file["rewards"])) != 199
    with pytest.raises(DataError, match=r"fingerprint_next: is .* restore the file"):
        load(name)


@pytest.mark.parametrize("out", ["copy.hdf5", "copy"])
@pytest.mark.parametrize("key", ["observations", "final"])
def test_our_own_files_say_what_was_written(tmp_path, out, key):
    """Catches: digests that are not written, or never compared with what is read."""
    assert bench("import", write(tmp_path / "a.hdf5", columns()), tmp_path / out) == 0
    dataset = load(str(tmp_path / out))
    assert dataset.transitions.shape == (12,)
    if out == "copy":
        place = "observation" if key == "observations" else "next/observation"
        held = np.memmap(tmp_path / out / f"{place}.memmap", np.float32, "r+")
        held[-1] += 1
        held.flush()
    else:
        with h5py.File(tmp_path / out, "r+") as file:
            file["observations" if key == "observations" else "final_observations"][-1, 0] += 1
    name = "fingerprint" if key == "observations" else "fingerprint_next"
    with pytest.raises(DataError, match=f"{name}: is .*the file says.*delete the attribute"):
        load(str(tmp_path / out))


def test_bounds_of_another_environment_are_no_damage(tmp_path):
    """Catches: a set that cannot be loaded any more because its actions are clipped on the way."""
    data = columns()
    data["actions"] *= 2
    out = tmp_path / "b.hdf5"
    assert bench("import", write(tmp_path / "a.hdf5", data, {}), out) == 0
    with pytest.warns(DataWarning, match="names no environment"):
        wide = load(str(out))
    with pytest.warns(DataWarning, match=r"lie outside \[-2, 2\]"):
        found = load(str(out), env_id="Pendulum-v1")
    assert found.stats["clipped_entries"] and found.fingerprint != wide.fingerprint


# --------------------------------------------------------------------------------- full disks


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Arrays above 64 KB lie in files."""
    monkeypatch.setenv("BENCH_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(raw, "IN_MEMORY", 1 << 16)
    return tmp_path / "datasets" / "cache"


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_before_anything_is_mapped(small, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"cache: 400,000 bytes are needed.*No space left.*free"):
        raw.scratch((100_000,), np.float32)
    assert list(small.iterdir()) == []


def test_every_block_is_there(small):
    """Catches: a sparse file, whose missing blocks kill the process that writes to them."""
    held = raw.scratch((1 << 20,), np.uint8)
    handles = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    (own,) = [h for h in handles if h.is_symlink() and str(small) in os.readlink(h)]
    assert isinstance(held, np.memmap) and own.stat().st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("missing", ["call", "support"])
def test_systems_without_the_call_write(small, tmp_path, monkeypatch, missing):
    if missing == "call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:

        def unsupported(*_):
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with open(tmp_path / "x", "wb") as file:
        raw.allocate(file, (1 << 24) + 5)
    stat = (tmp_path / "x").stat()
    assert stat.st_size == (1 << 24) + 5 and stat.st_blocks * 512 >= 1 << 24
    held = raw.scratch((100_000,), np.float32)
    held[:] = 1
    assert held.sum() == 100_000


LIMITED = """
import resource, sys
from bench.cli import main
from bench.data import raw
import tensordict
raw.IN_MEMORY = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("limit", "words", "text"),
    [(1 << 16, ["check"], "480,000 bytes are needed"), (1 << 30, ["import"], "cannot write")],
)
def test_a_process_that_may_not_write_so_much_survives(tmp_path, limit, words, text):
    """Catches: SIGBUS or SIGXFSZ, a traceback, an unfinished folder."""
    words = [*words, write(tmp_path / "a.hdf5", columns((5000,) * 8, "X" * 8))]
    words += [tmp_path / "out"] if words[0] == "import" else []
    (tmp_path / "datasets" / "cards").mkdir(parents=True)
    shutil.copy(shipped_root() / "cards" / "reference_scores.csv", tmp_path / "datasets" / "cards")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "data", *map(str, words)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**environment(), "BENCH_DATASETS": str(tmp_path / "datasets")},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-400:]
    assert done.stderr.count("error:") == 1 and text in done.stderr, done.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".write-*"))


def test_a_folder_of_arrays_on_a_full_disk(tmp_path, monkeypatch):
    """Catches: arrays that are mapped from sparse files, a part of a folder that stays."""
    transitions = load(write(tmp_path / "a.hdf5", columns())).transitions
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"out: cannot write .*No space left"):
        write_memory_map(tmp_path / "out", transitions, env_id=None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


# ---------------------------------------------------------------------- names that do not fit


@pytest.mark.parametrize("name", ["x.npz", "x.hdf", "x.zip", "x.hdf5.gz"])
@pytest.mark.parametrize("command", ["import", "combine"])
def test_what_is_not_written_is_refused_before_anything_is_read(tmp_path, command, name, capsys):
    """Catches: a folder called x.npz, a file that its name says is something else."""
    words = {"import": ["none.hdf5", tmp_path / name],
             "combine": ["none.hdf5", "--to", tmp_path / name]}  # fmt: skip
    assert bench(command, *words[command]) == 2
    error = capsys.readouterr().err
    assert "nothing is written as ." in error and "end it in .hdf5 or .h5" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x", "x.h5"])
def test_a_combined_set_says_what_it_combines_in_every_format(tmp_path, name, capsys):
    parts = [write(tmp_path / f"{seed}.hdf5", columns(seed=seed)) for seed in range(2)]
    out = tmp_path / name
    assert bench("combine", *parts, "--to", out) == 0
    if out.is_dir():
        facts = json.loads((out / "bench.json").read_text())
    else:
        with h5py.File(out) as file:
            facts = dict(file.attrs)
    assert [p["fingerprint"] for p in json.loads(facts["combines"])] == [
        load(part).fingerprint for part in parts
    ]
    both = load(str(out))
    assert (facts["fingerprint"], facts["fingerprint_next"]) == (
        both.fingerprint,
        both.fingerprint_next,
    )
    assert_same(both.transitions[12:].exclude("episode"),
                load(parts[1]).transitions.exclude("episode"))  # fmt: skip
    assert bench("combine", *parts, "--to", out) == 2
    mend = "delete it" if name == "x" else "add --force"
    assert f"exists already; choose another name or {mend}" in capsys.readouterr().err
