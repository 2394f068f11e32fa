"""`bench data make` and `bench data combine`: what comes out, bit for bit, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from bench.cli import main
from bench.data import load
from bench.data.build import Make, make_dataset
from bench.data.card import Card
from bench.data.levels import Wish, card_of, choose
from bench.data.training import training_folder
from bench.engine import cpu
from bench.errors import ConfigError
from bench.online.collect import Collection
from bench.recipe import load_recipe
from tests.bench.runs import environment

SMALL = {"hidden": (8, 8), "batch_size": 8, "start_steps": 100}
POLE = "InvertedPendulum-v5"  # short episodes, actions -3 to 3
ENVIRONMENTS = {"sac": POLE, "td3": POLE, "dqn": "CartPole-v1"}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Training's settings of the process, taken back afterwards."""
    threads = torch.get_num_threads()
    cpu.prepare()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")


def collection(algo: str, steps: int, folder: Path) -> Collection:
    recipe = load_recipe(algo)
    hyper = recipe.hyper(**SMALL)
    return Collection(recipe, hyper, ENVIRONMENTS[algo], 0, steps, folder, interval=100)


def card(env_id: str, **make: Any) -> Card:
    facts = {"env_id": env_id, "family": "any", "licence": "MIT", "description": "a test"}
    return Card(id="toy/a-v0", path=None, recipe={"make": make}, **facts)  # type: ignore[arg-type]


def made(env_id: str, folder: Path, **make: Any) -> Any:
    return make_dataset(card(env_id, **make), folder, lambda text: None)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], rows: int) -> None:
    for key in a:
        assert np.array_equal(a[key][:rows], b[key][:rows]), key


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize("algo", sorted(ENVIRONMENTS))
def test_a_killed_collection_goes_on_as_if_nothing_happened(algo: str, tmp_path: Path) -> None:
    """Catches: state that is not saved (episode number, updates, curve), a replay that grows or
    is cut by the resume, rows past the checkpoint that stay."""
    straight = collection(algo, 400, tmp_path / "straight")
    straight.run(every=100)

    def kill(step: int, curve: Any) -> None:
        if step >= 250:
            raise KeyboardInterrupt

    broken = collection(algo, 400, tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.run(kill, every=100)
    resumed = collection(algo, 400, tmp_path / "broken")
    assert 200 <= resumed.replay.size < 250 <= broken.replay.size
    resumed.run(every=100)
    same(straight.replay.arrays(), resumed.replay.arrays(), 400)
    assert straight.curve == resumed.curve and len(resumed.curve) == 4
    for name, tensor in straight.trainer.tensors.items():
        assert torch.equal(tensor, resumed.trainer.tensors[name]), name
    for run in (straight, resumed):
        run.load_snapshot(200)
    act = [r.sample_action(np.zeros(r.problem.observation), np.random.default_rng(1), 200)
           for r in (straight, resumed)]  # fmt: skip
    assert np.array_equal(*act)


@pytest.mark.parametrize("algo", ["td3", "dqn"])
def test_a_longer_run_begins_alike(algo: str, tmp_path: Path) -> None:
    short, long = collection(algo, 200, tmp_path / "a"), collection(algo, 350, tmp_path / "b")
    short.run()
    long.run()
    same(short.replay.arrays(), long.replay.arrays(), 200)


def test_what_dqn_does_while_it_collects(tmp_path: Path) -> None:
    """Catches: an epsilon that does not fall, greedy and random the wrong way round, actions that
    reach the replay as something else than their number."""
    run = collection("dqn", 150, tmp_path)
    run.run()
    assert set(run.replay.arrays()["action"].tolist()) == {0.0, 1.0}
    rng = np.random.default_rng(0)
    steps = run.hp.epsilon_steps
    greedy = [np.mean([run.explore.draw(rng, s)[0] < 0 for _ in range(4000)])
              for s in (0, steps // 2, steps, 2 * steps)]  # fmt: skip
    assert greedy == pytest.approx([0, 0.475, 0.95, 0.95], abs=0.03)
    observation = np.array([0.1, 0.2, 0.3, 0.4])
    policy = _best(run, observation)
    chosen = {draw: run._act(_given(run, observation, draw)).item() for draw in (-1, 0, 1)}
    assert chosen == {-1: policy, 0: 0, 1: 1}


def test_what_td3_does_while_it_collects(tmp_path: Path) -> None:
    """Catches: noise in units of 1 where the largest action is 3, actions past the bounds."""
    run = collection("td3", 150, tmp_path)
    observation = np.array([0.1, 0.2, 0.3, 0.4])
    actor = _best(run, observation)
    acts = {draw: run._act(_given(run, observation, draw)).item() for draw in (0, 1, -99)}
    assert acts == {0: pytest.approx(actor), 1: pytest.approx(actor + 0.3), -99: -3.0}


def _best(run: Collection, observation: np.ndarray) -> float:
    """The evaluated action; a policy acts in ten episodes at once."""
    seen = torch.tensor(observation).float().expand(1, 10, -1)
    return run.policy.act(seen).flatten()[0].item()


def _given(run: Collection, observation: np.ndarray, draw: float) -> Any:
    observed = run._observed(observation, np.random.default_rng(0), 0)
    return observed.set("noise", torch.full_like(observed["noise"], draw))


@pytest.mark.parametrize(
    ("algo", "env_id", "text"),
    [
        ("dqn", "Pendulum-v1", "needs discrete actions, the environment's are continuous"),
        ("sac", "CartPole-v1", "needs continuous actions, the environment's are discrete"),
        ("bc", "Pendulum-v1", "bc cannot train in an environment"),
        ("sac", "bench/PixelPendulum-v0", "are no vector"),
    ],
)
def test_what_does_not_fit_is_refused(algo: str, env_id: str, text: str, tmp_path: Path) -> None:
    recipe = load_recipe(algo)
    with pytest.raises(ConfigError, match=text):
        Collection(recipe, recipe.hyper(), env_id, 0, 10, tmp_path)


# ------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize(
    ("env_id", "make"),
    [
        ("CartPole-v1", {"kind": "random"}),
        ("bench/TwoStep-v0", {"kind": "random"}),
        (POLE, {"kind": "rollouts", "snapshot": 200, "interval": 200, "hyper": SMALL}),
        ("CartPole-v1", {"kind": "rollouts", "snapshot": 200, "interval": 200, "hyper": SMALL,
                         "algorithm": "dqn"}),
        ("bench/PixelPendulum-v0", {"kind": "replay", "interval": 900, "hyper": SMALL}),
    ],
)  # fmt: skip
def test_a_seed_fixes_the_data(env_id: str, make: dict[str, Any], tmp_path: Path) -> None:
    """Catches: anything that draws from a clock or a global generator, a seed that is not used."""
    wanted = {"transitions": 220, "seed": 3, **make}
    first, again = (made(env_id, tmp_path / name, **wanted) for name in "ab")
    other = made(env_id, tmp_path / "c", **{**wanted, "seed": 4})
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.stats["transitions"] == 220 and first.stats["broken_chain"] == 0
    discrete = env_id in ("CartPole-v1", "bench/TwoStep-v0")
    assert first.transitions["action"].dtype == (torch.int64 if discrete else torch.float32)


def test_pictures_show_what_was_trained_on(tmp_path: Path) -> None:
    """Catches: frames of the wrong row, or of the following observation."""
    wanted = {"kind": "replay", "transitions": 220, "interval": 900, "hyper": SMALL}
    seen, numbers = (made(e, tmp_path, **wanted) for e in ("bench/PixelPendulum-v0", "Pendulum-v1"))
    pictures, angles = seen.transitions["observation"], numbers.transitions["observation"]
    assert pictures.dtype == torch.uint8 and pictures.shape == (220, 16, 16)
    weight = pictures.double() / pictures.double().sum((1, 2), keepdim=True)
    up = (weight.sum(2) * torch.arange(7.5, -8, -1, dtype=torch.float64)).sum(1)
    assert torch.corrcoef(torch.stack([up, angles[:, 0].double()]))[0, 1] > 0.99
    assert torch.equal(seen.transitions["next", "reward"], numbers.transitions["next", "reward"])


def test_medium_and_expert_of_a_curve() -> None:
    curve = [(1, 0.0, 1.0), (2, 60.0, 1.0), (3, 30.0, 1.0), (4, 100.0, 9.0), (5, 49.0, 1.0)]
    assert (choose(curve, "expert"), choose(curve, "medium")) == (4, 2)  # 49 came later
    assert choose([(1, -1000.0, 0.0), (2, -600.0, 0.0), (3, -100.0, 0.0)], "medium") == 2
    for flat in ([], [(1, 5.0, 0.0), (2, 4.0, 0.0)]):
        with pytest.raises(ConfigError, match="train longer"):
            choose(flat, "medium")


def test_levels_are_of_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.data.levels.choose", lambda curve, level: int(curve[0][0]))
    said: list[str] = []
    settings = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v)
                for k, v in SMALL.items()}  # fmt: skip
    found = {}
    for kind in ("medium", "medium-replay", "replay"):
        wish = Wish("CartPole-v1", kind, "dqn", 400, interval=200, settings=settings)
        found[kind] = Make.of(card_of(wish, tmp_path, said.append))
    assert found["medium"].snapshot == found["medium-replay"].transitions == 200
    assert (found["medium"].transitions, found["replay"].transitions) == (50_000, 400)
    assert found["medium"].hyper == {k: list(v) if isinstance(v, tuple) else v
                                     for k, v in SMALL.items()}  # fmt: skip
    folders = {training_folder(tmp_path, "CartPole-v1", make) for make in found.values()}
    assert list(tmp_path.iterdir()) == list(folders)


# ------------------------------------------------------------------------------ the command


def bench_data(*words: object) -> int:
    return main(["data", *map(str, words)])


def test_a_dataset_of_any_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A level from training to file, whose attributes say how to have it again."""
    out = tmp_path / "acrobot.hdf5"
    words = ["make", "--env-id", "CartPole-v1", "--kind", "replay", "--algo", "dqn", "--to", out]
    words += ["--steps", 250, "--seed", 5, "--interval", 100, "--out", tmp_path]
    words += ["--set", "hidden=8,8", "batch_size=8", "start_steps=100"]
    assert bench_data(*words) == 0
    assert "250 transitions" in capsys.readouterr().out
    with h5py.File(out) as file:
        facts = dict(file.attrs)
    recipe, hyper = json.loads(facts["recipe"]), json.loads(facts["hyperparameters"])
    assert recipe["algorithm"] == "dqn" and recipe["seed"] == 5 and recipe["kind"] == "replay"
    assert hyper["hidden"] == [8, 8] and hyper["gamma"] == 0.99  # defaults may change one day
    assert json.loads(facts["versions"])["torch"] and facts["git_commit"] and facts["machine"]
    again = made(facts["env_id"], tmp_path / "again", **recipe)
    assert again.fingerprint == load(str(out)).fingerprint
    assert bench_data(*words) == 2
    assert "exists already" in capsys.readouterr().err
    assert bench_data(*words, "--force") == 0


REPLAY = ["--env-id", "Pendulum-v1", "--kind", "replay", "--to", "x.hdf5"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--env-id", "Pendulum-v1", "--kind", "random"], "needs --kind and --to"),
        (["--env-id", "Pendulum-v1", "--to", "x.hdf5"], "needs --kind and --to"),
        (["lite/pendulum/*", "--to", "x.hdf5"], "takes one dataset"),
        (["lite/pendulum/random-v0", "--kind", "random"], "give ids"),
        ([], "give ids"),
        (["lite/pendulum/random-v0", "--seed", "5"], "--seed: lite/pendulum/random-v0 is made as"),
        (
            ["a", "--env-id", "Pendulum-v1", "--kind", "random", "--to", "x.hdf5"],
            "leave out the ids a",
        ),
        (
            ["--env-id", "Pendulun-v1", "--kind", "random", "--to", "x.hdf5"],
            "did you mean Pendulum-v1",
        ),
        (["--env-id", "Pendulum-v1", "--kind", "waypoints", "--to", "x.hdf5"], "PointMaze"),
        (
            ["--env-id", "Pendulum-v1", "--kind", "random", "--to", "x.npz"],
            "end it in .hdf5 or .h5",
        ),
        (["--env-id", "Pendulum-v1", "--kind", "random", "--to", "x"], "end it in .hdf5 or .h5"),
        ([*REPLAY, "--set", "lr"], "key=value"),
        ([*REPLAY, "--set", "l=1"], "lr"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / w) if w.startswith("x") else w for w in words]
    assert bench_data("make", *words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert text in error and len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("*.hdf5"))


def test_combine_names_its_parts(tmp_path: Path) -> None:
    parts = [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]
    for seed, part in enumerate(parts):
        words = ["--env-id", "CartPole-v1", "--kind", "random", "--transitions", 50]
        assert bench_data("make", *words, "--seed", seed, "--to", part) == 0
    assert bench_data("combine", *parts, "--to", tmp_path / "ab.hdf5") == 0
    with h5py.File(tmp_path / "ab.hdf5") as file:
        found = json.loads(file.attrs["combines"])
    assert [p["fingerprint"] for p in found] == [load(str(p)).fingerprint for p in parts]
    assert load(str(tmp_path / "ab.hdf5")).stats["transitions"] == 100


def test_ordinary_runs_do_not_load_the_robots() -> None:
    """Catches: a slow import on the way of everybody."""
    code = (
        "import sys\nimport bench.engine.worker, bench.plan\nfrom bench.data import load\n"
        "from bench.evaluate import make_env\nload('lite/hopper/random-v0')\n"
        "make_env('Hopper-v5')\nsys.exit('gymnasium_robotics' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=120)
    assert done.returncode == 0
