"""Checkpoints under kills, damage, full disks and malice."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from bench.errors import RunError
from bench.store import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "actor.weight": torch.randn(3, 40, 20, generator=generator),
        "steps": torch.full((3,), step),
        "rng": generator.get_state(),
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def steps_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip_and_the_last_two_are_kept(tmp_path):
    folder = tmp_path / "checkpoints" / "seeds-0-1-2"
    assert load_checkpoint(folder) is None
    for step in (0, 1000, 2000, 123456789):
        save_checkpoint(folder, step, tensors(step), {"seeds": [0, 1, 2], "lr": 0.1})
        step_read, read, meta = load_checkpoint(folder)
        assert step_read == step and same(read, tensors(step))
        assert meta == {"seeds": [0, 1, 2], "lr": 0.1}
    assert steps_in(folder) == ["step-00002000", "step-123456789"]


def test_a_checkpoint_reads_back_identically_in_sha256sum(tmp_path):
    """The hash taken while writing is the hash of what is on disk, and a standard tool agrees."""
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    save_checkpoint(tmp_path, 5, tensors(5), {})
    where = tmp_path / "step-00000005"
    subprocess.run(["sha256sum", "-c", "--strict", "manifest.sha256"], cwd=where, check=True)


def test_a_small_view_does_not_write_its_whole_storage(tmp_path):
    big = torch.zeros(1_000_000)
    param = torch.nn.Parameter(torch.ones(4))
    save_checkpoint(tmp_path, 1, {"view": big[10:20], "param": param}, {})
    assert (tmp_path / "step-00000001" / "tensors.pt").stat().st_size < 10_000
    _, read, _ = load_checkpoint(tmp_path)
    assert torch.equal(read["view"], big[10:20]) and not read["param"].requires_grad


def flip_bit(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def test_200_random_bit_flips_are_all_detected(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {"seeds": [0]})
    where = tmp_path / "step-00000001"
    rng = random.Random(0)
    for _ in range(200):
        path = where / rng.choice(["tensors.pt", "tensors.pt", "meta.json", "manifest.sha256"])
        place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip_bit(path, place, bit)
        with pytest.raises(RunError, match="no checkpoint can be used"):
            load_checkpoint(tmp_path)
        flip_bit(path, place, bit)
    assert same(load_checkpoint(tmp_path)[1], tensors(1))


@pytest.mark.parametrize("name", ["tensors.pt", "meta.json", "manifest.sha256"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, name, damage):
    save_checkpoint(tmp_path, 1, tensors(1), {})
    save_checkpoint(tmp_path, 2, tensors(2), {})
    path = tmp_path / "step-00000002" / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1 if damage == "truncated" else 0)
    with pytest.warns(UserWarning, match=r"step-00000002.*going on from step-00000001"):
        step, read, _ = load_checkpoint(tmp_path)
    assert step == 1 and same(read, tensors(1))
    (tmp_path / "step-00000001" / name).write_bytes(b"x")
    with pytest.raises(RunError, match="no checkpoint can be used") as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_copied_under_another_step_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {})
    os.rename(tmp_path / "step-00000001", tmp_path / "step-00000009")
    with pytest.raises(RunError, match="holds step 1"):
        load_checkpoint(tmp_path)


def test_after_a_fallback_the_given_up_future_is_removed(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step * 10, tensors(step), {})
    flip_bit(tmp_path / "step-00000030" / "tensors.pt", 100, 0)
    with pytest.warns(UserWarning):
        assert load_checkpoint(tmp_path)[0] == 20
    save_checkpoint(tmp_path, 25, tensors(25), {})
    assert load_checkpoint(tmp_path)[0] == 25
    assert steps_in(tmp_path) == ["step-00000020", "step-00000025"]


def test_leftovers_of_a_killed_save_are_ignored_and_cleaned(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {})
    leftover = tmp_path / ".tmp-step-00000002-dead"
    shutil.copytree(tmp_path / "step-00000001", leftover)
    (leftover / "manifest.sha256").unlink()
    assert load_checkpoint(tmp_path)[0] == 1
    save_checkpoint(tmp_path, 2, tensors(2), {})
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


def test_saving_a_step_again_survives_a_kill_between_the_two_renames(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {"n": 1})
    save_checkpoint(tmp_path, 1, tensors(1), {"n": 2})
    assert load_checkpoint(tmp_path)[2] == {"n": 2} and steps_in(tmp_path) == ["step-00000001"]
    os.rename(tmp_path / "step-00000001", tmp_path / ".old-step-00000001")
    assert load_checkpoint(tmp_path)[2] == {"n": 2}
    save_checkpoint(tmp_path, 2, tensors(2), {})
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


def test_killed_at_random_the_newest_checkpoint_is_always_whole(tmp_path):
    code = """
    import sys, torch
    from pathlib import Path
    from bench.store import save_checkpoint
    folder = Path(sys.argv[1])
    k = 1
    while True:
        save_checkpoint(folder, k, {"x": torch.full((200_000,), k)}, {"k": k})
        k += 1
    """
    for _ in range(3):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "c")], cwd=ROOT
        )
        deadline = time.time() + 60
        while not (tmp_path / "c" / "step-00000003").exists() and time.time() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.1))
        child.kill()
        child.wait()
        step, read, meta = load_checkpoint(tmp_path / "c")
        assert meta == {"k": step} and set(read["x"].tolist()) == {step}


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """A real refusal by the kernel in the middle of tensors.pt, in a process of its own."""
    code = """
    import resource, signal, sys, torch
    from pathlib import Path
    from bench.errors import RunError
    from bench.store import save_checkpoint
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    save_checkpoint(folder, 1, {"x": torch.arange(10)}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(folder, 2, {"x": torch.zeros(1_000_000)}, {})
    except RunError as error:
        print(error)
    """
    result = python(code, tmp_path)
    assert "step-00000002: cannot write 40000" in result.stdout, result.stdout + result.stderr
    assert "EFBIG" in result.stdout
    assert steps_in(tmp_path) == ["step-00000001"]
    assert torch.equal(load_checkpoint(tmp_path)[1]["x"], torch.arange(10))


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_pickle_with_a_valid_manifest_does_not_run(tmp_path, writer):
    import hashlib

    save_checkpoint(tmp_path / "c", 1, tensors(1), {})
    where, evil = tmp_path / "c" / "step-00000001", tmp_path / "executed"
    if writer == "torch":
        torch.save({"x": Hostile(evil)}, where / "tensors.pt")
    else:
        (where / "tensors.pt").write_bytes(pickle.dumps(Hostile(evil), protocol=2))
    manifest = "".join(
        f"{hashlib.sha256((where / n).read_bytes()).hexdigest()}  {n}\n"
        for n in ("meta.json", "tensors.pt")
    )
    (where / "manifest.sha256").write_text(manifest)
    with pytest.raises(RunError, match="refused"):
        load_checkpoint(tmp_path / "c")
    assert not evil.exists()
