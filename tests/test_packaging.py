"""What an installed package finds without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from bench.data import card

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "bench" / "shipped-datasets"
KINDS = ("cards", "embedded")


def test_a_wheel_gets_every_card_suite_and_embedded_file() -> None:
    """Catches: a new kind of file that the patterns miss, and a copy that goes stale instead of a
    link into `datasets`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["bench"]
    taken = {path.resolve() for pattern in patterns for path in (ROOT / "bench").glob(pattern)}
    for kind in KINDS:
        files = {file for file in (ROOT / "datasets" / kind).iterdir() if file.is_file()}
        assert files and files <= taken, kind
        assert (SHIPPED / kind).is_symlink() and (SHIPPED / kind).samefile(ROOT / "datasets" / kind)
    assert set((ROOT / "bench" / "suites").glob("*.toml")) <= taken


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`bench.data.card` as if it lay in site-packages, beside Hugging Face's `datasets`."""
    site = tmp_path / "site-packages"
    shutil.copytree(SHIPPED, site / "bench" / SHIPPED.name)
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").touch()
    monkeypatch.delenv("BENCH_DATASETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(card, "__file__", str(site / "bench" / "data" / "card.py"))
    return site / "bench" / SHIPPED.name


def test_an_installed_package_reads_its_own_and_writes_elsewhere(
    installed: Path, tmp_path: Path
) -> None:
    """Catches: cards looked for in somebody else's `datasets`, downloads into site-packages."""
    found = card.cards()
    assert len(found) > 100 and card.shipped_root() == installed
    assert found["lite/pendulum/random-v0"].path.is_relative_to(installed)
    assert found["lite/pendulum/random-v0"].path.exists()
    home = tmp_path / "home" / "rlobj-bench"
    assert card.data_root() == home
    for name in ("d4rl/hopper-medium-v2", "lite/walker2d/expert-v0"):
        assert found[name].path.is_relative_to(home / "cache"), name


def test_a_folder_of_ones_own_replaces_both(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATASETS", str(tmp_path / "mine"))
    assert card.shipped_root() == card.data_root() == tmp_path / "mine"
    assert card.cards() == {}


@pytest.mark.slow
def test_a_wheel_lists_loads_and_trains_outside_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77.0.3", reason="setuptools is not installed")
    tree = tmp_path / "tree"
    for name in ("bench", "rlobj"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=skipped)
    for kind in KINDS:
        shutil.copytree(ROOT / "datasets" / kind, tree / "datasets" / kind)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-q", "-w", str(tmp_path)], cwd=tree, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    given = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "BENCH_DATASETS"} | given

    def bench(*words: str) -> str:
        command = [sys.executable, "-m", "bench", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = bench("data", "list", "--all")
    assert all(name in listed for name in card.cards()) and "damaged" not in listed
    assert "lite/hopper/medium-v0" in listed
    bench("run", "--algo", "bc", "--dataset", "smoke", "--steps", "20", "--seeds", "1")
    assert list((tmp_path / "results" / "runs").rglob("scores.csv"))
