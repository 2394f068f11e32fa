"""What training holds, what it says when that is too much, and that it does not grow."""

from __future__ import annotations

import gc
import json
import operator
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bench.cli import build_parser
from bench.data import load
from bench.engine import memory
from bench.engine.cell import ERROR_LOG, Cell
from bench.engine.problem import problem_of, training_table
from bench.engine.stream import Streamed
from bench.engine.task import Task
from bench.errors import OutOfMemory
from bench.plan import Request, make_plan, misfit
from bench.recipe import load_recipe
from bench.recipes import recipe_names
from bench.store import RunFolder
from tests.bench.runs import bench, pendulum_file, results, small_run
from tests.bench.test_engine import SMALL, Setup

# ---------------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_estimate_is_what_a_trainer_holds(name: str, dataset: SimpleNamespace) -> None:
    """Catches: anything forgotten or counted twice, seeds left out, a recipe that cannot be built
    without memory."""
    setup = Setup(name, dataset)
    trainer = setup.trainer(0, 1, 2)
    trainer.update()
    parts = (setup.recipe, setup.hyper, setup.problem, setup.dataset.transitions, (0, 1, 2))
    found, held = memory.estimate(*parts), memory.held(trainer)
    # layouts of some results differ without memory: discrete actors take a few copies less
    assert found.activations == pytest.approx(held.activations, rel=0.2)
    assert replace(found, activations=0) == replace(held, activations=0)
    nbytes = lambda tensors: sum(t.nbytes for t in tensors)  # noqa: E731
    assert found.noise == nbytes(trainer.noise._drawn)
    assert found.parameters == nbytes(trainer.tensors.values()) * 4 // 3  # and one seed's again
    moments = {k: t for k, t in trainer.state().items() if k.startswith(("optimizer", "metrics"))}
    assert found.moments == nbytes(t for k, t in moments.items() if not k.endswith("count"))
    packed = trainer.sampler.packed.data
    windows = name in ("dt", "online_dt", "dreamer")
    assert found.data == packed.nbytes + (8 * len(packed) if windows else 0)
    assert 0 < found.gradients <= found.parameters and found.activations > 0
    assert found.total == sum(vars(found).values())


@pytest.mark.parametrize("name", ["td3_bc", "dt"])
def test_of_streamed_data_two_blocks_count(name: str, dataset: SimpleNamespace) -> None:
    setup = Setup(name, dataset)
    setup.sampler = sampler = Streamed(setup.sampler)
    trainer = setup.trainer(0, 1)
    trainer.load(1)
    found = memory.held(trainer).data
    assert found == sum(t.nbytes for t in sampler._held)
    parts = (setup.recipe, setup.hyper, setup.problem, dataset.transitions, (0, 1))
    assert memory.estimate(*parts, limit=10).data == found


@pytest.mark.parametrize(
    ("name", "family"),
    [(n, f) for n in recipe_names() for f in ("", *(f for f, _ in load_recipe(n).overrides))],
)
def test_the_size_of_the_data_under_every_familys_settings(name: str, family: str) -> None:
    """Catches: a table that cannot be made of a part of the rows, as rewards scaled by the spread
    of episode returns, which a single row does not have."""
    recipe = load_recipe(name)
    sets = ("lite/hopper/medium-replay-v0", "lite/cartpole/replay-v0", "lite/twostep/random-v0")
    loaded = next(d for d in map(load, sets) if not misfit(recipe, d))
    hyper = recipe.hyperparameters((family,), "paper", {})
    found = memory.data_bytes(recipe, hyper, loaded.transitions)
    table = training_table(recipe, hyper, loaded.transitions, problem_of(loaded, hyper))
    assert found == pytest.approx(recipe.sampler(hyper, table, torch.device("cpu")).nbytes(0))


def test_the_peak_of_a_program() -> None:
    """By hand: a 400 B, b 400 B, c 4 B beside them, then only d."""

    def program(x: Tensor) -> Tensor:
        a = x + 1
        b = a.view(10, 10).t() * 2  # views cost nothing
        c = (a * b.reshape(-1)).sum()  # the reshape copies: a, b and the copy; a, copy, product
        return c + 1

    graph = make_fx(program)(torch.zeros(100)).graph
    operations = [n for n in graph.nodes if n.op == "call_function"]
    assert operator.getitem not in [n.target for n in operations]
    assert memory.peak(graph) == 3 * 400


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1MB", 10**6),
        ("8GB", 8 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("0B", 0),
        ("77", 77),
        ("2kb", 2000),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    words = ["run", "--algo", "bc", "--data-memory", text]
    assert build_parser().parse_args(words).data_memory == size


@pytest.mark.parametrize("text", ["8 GBs", "much", "-1MB", "1e9", "GB"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--algo", "bc", f"--data-memory={text}"])
    assert "is not a size like 500MB or 8GB" in capsys.readouterr().err


def test_sizes_are_spelled() -> None:
    sizes = [0, 999, 1000, 1_540_000, 23_400_000_000, 999_600, 5e15]
    spelled = ["0 B", "999 B", "1.0 KB", "1.5 MB", "23 GB", "1.0 MB", "5000 TB"]
    assert [memory.spell(s) for s in sizes] == spelled


def test_workers_share_the_machine(data: Path, tmp_path: Path) -> None:
    request = Request(("bc",), (str(data),), seeds=4, out=tmp_path)
    one, four = (make_plan(request, n).tasks[0].data_memory for n in (1, 4))
    assert one == memory.default_limit("cpu") and four == one // 4
    assert 0 < one <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    asked = make_plan(replace(request, data_memory=5), 4).tasks[0]
    assert asked.data_memory == 5
    assert asked.config == make_plan(request, 4).tasks[0].config


# ----------------------------------------------------------------------- a whole cell


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pendulum_file(tmp_path_factory.mktemp("data") / "pendulum.hdf5")


def cell_of(data: Path, out: Path, algo: str = "bc", **changes: Any) -> Cell:
    """Without an environment."""
    settings = {"hidden": "8,8", "batch_size": "8"}
    if algo == "dt":
        settings = {"width": "8", "layers": "1", "batch_size": "4", "context": "3"}
    request = Request((algo,), (str(data),), steps=20, out=out, settings=settings, eval_interval=10)
    (task,) = make_plan(replace(request, **changes), workers=1).tasks
    return quiet(task, data)


def quiet(task: Task, data: Path) -> Cell:
    cell = Cell(task, load(str(data)), lambda event: None)
    cell._prepare_evaluation = lambda: None  # type: ignore[method-assign]
    return cell


def status(cell: Cell, seed: int = 0) -> dict[str, Any]:
    return json.loads((cell.folders[seed].path / "status.json").read_text())


CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
FAILURES = [
    MemoryError("tried to allocate 9 TB"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(f"{CPU}: you tried to allocate 8 bytes. Error code 12"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "where", ["bench.engine.cell.Trainer", "bench.engine.trainer.Trainer.load"]
)
def test_out_of_memory_says_what_is_needed_and_what_to_lower(
    failure: Exception, where: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While preparing and while training; afterwards the run can go on."""
    cell = cell_of(data, tmp_path)

    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(OutOfMemory) as caught:
            cell.run()
    (line,) = str(caught.value).splitlines()
    parts = (cell.recipe, cell.hyper, cell.problem, cell.dataset.transitions, (0, 1))
    assert f"2 seeds at once need {memory.estimate(*parts)}" in line
    assert "--set batch_size=8 hidden=8,8" in line
    assert all(f"--{name}" in line for name in ("seeds", "workers", "data-memory"))
    for seed in (0, 1):
        found = status(cell, seed)
        assert (found["state"], found["reason"]) == ("failed", f"OutOfMemory: {line}")
        assert str(failure) in (cell.folders[seed].path / ERROR_LOG).read_text()
    again = quiet(cell.task, data)
    again.run()
    assert status(again)["state"] == "done" and status(again)["data"] == "in memory"


def test_other_errors_are_none_of_memory() -> None:
    for error in (
        RuntimeError("mat1 and mat2 cannot be multiplied"),
        OSError("can't allocate memory"),
    ):
        assert not memory.is_out_of_memory(error)


def test_the_command_streams_and_scores_the_same(data: Path, tmp_path: Path) -> None:
    """The table has 16 KB; scores, metrics and the folder are those of data in memory."""
    plain, streamed = tmp_path / "plain", tmp_path / "streamed"
    assert bench(*small_run(data, plain)).returncode == 0
    words = small_run(data, streamed)
    done = bench(
        *words[: words.index("--set")], "--data-memory", "1KB", *words[words.index("--set") :]
    )
    assert done.returncode == 0, done.stderr
    assert f"16 KB of training data are streamed from {streamed / 'cache'}" in done.stderr
    assert results(plain) == results(streamed) and len(results(plain)) == 4
    (file,) = (streamed / "cache").iterdir()
    assert file.stat().st_size == 400 * 10 * 4 and not (plain / "cache").exists()
    said = {json.loads(p.read_text())["data"] for p in streamed.rglob("status.json")}
    assert said == {"streamed"}


# ------------------------------------------------------------------------- no growth


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(cell: Cell, every: int) -> list[tuple[int, int]]:
    """Tensors and resident bytes at every ``every`` steps of a run."""
    found: list[tuple[int, int]] = []

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] % every == 0:
            gc.collect()
            tensors = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
            found.append((tensors, resident()))

    cell.report = report
    cell.run()
    return found


def check_growth(cell: Cell, every: int) -> None:
    """A tensor takes some 500 bytes, whatever it holds, so a leak of one per update shows in the
    resident memory, too, where Python cannot see it. The first readings are of warming up."""
    found = watched(cell, every)[2:]
    tensors = [t for t, _ in found]
    assert len(found) >= 4 and max(tensors) == min(tensors), tensors
    grown = found[-1][1] - found[0][1]
    assert grown < 200 * every * (len(found) - 1), grown


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "streamed"])
def test_a_run_does_not_grow(limit: int | None, data: Path, tmp_path: Path) -> None:
    """Catches: a tensor that is kept per update, block, evaluation or checkpoint."""
    changes = {"steps": 9_000, "eval_interval": 500, "data_memory": limit}
    check_growth(cell_of(data, tmp_path, **changes), 1_500)


# one of each kind: delays, schedules, windows, stages, several losses
LONG = {"td3_bc": 60_000, "iql": 60_000, "cql": 30_000, "dt": 30_000, "clip_ppo": 60_000}
LONG |= {"online_dt": 12_000, "dreamer": 6_000}


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("algo", LONG)
def test_a_long_run_does_not_grow(algo: str, data: Path, tmp_path: Path) -> None:
    settings = {k: spell_setting(v) for k, v in SMALL[algo].items()}
    changes = {"settings": settings, "eval_interval": LONG[algo] // 60}
    check_growth(cell_of(data, tmp_path, algo, steps=LONG[algo], **changes), LONG[algo] // 6)


def spell_setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_rows_are_appended_and_not_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "data", "bc", "0" * 12, 0)
    held = set(vars(folder))
    folder.append_metrics([(0, "loss", 1.0)])
    path = folder.path / "metrics.csv"
    node, first = path.stat().st_ino, path.read_bytes()
    for step in range(1, 50):
        folder.append_metrics([(step, "loss", 1.0)])
        folder.append_scores([(step, 0, 1.0, 5, None)])
    assert set(vars(folder)) == held and path.stat().st_ino == node
    assert path.read_bytes().startswith(first) and len(path.read_bytes().splitlines()) == 51
