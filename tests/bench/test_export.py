"""``bench export``: policies as files that need nothing of this project."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import cli_trained
from bench.cli import main
from bench.errors import ConfigError, RunError
from bench.evaluate import make_env
from bench.recipe import Problem, load_recipe
from bench.recipes import recipe_names
from bench.trained import modules
from bench.trained.export import example, export
from bench.trained.formats import FORMATS, format_of
from bench.trained.program import describe, flatten, tensors_of
from bench.trained.run import Trained
from bench.trained.verify import Expected, expected, largest_difference
from rlobj.specs import Bounded, Categorical
from tests.bench.conftest import make_transitions
from tests.bench.test_engine import SMALL as SIZES
from tests.bench.trained_runs import STEPS, Factory, Made

ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in FORMATS["onnx"].needs),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'rlobj-bench[export]'",
)
SOME = [
    ("td3_bc", "pt2"),
    ("dqn", "torchscript"),
    ("dt", "safetensors"),
    ("dreamer", "pt2"),
    ("td3_bc", "onnx"),
    ("dt", "onnx"),
]  # every kind of policy, and every format
EXPORTS = [
    pytest.param(
        algo,
        format,
        marks=[ONNX] * (format == "onnx") + [pytest.mark.slow] * ((algo, format) not in SOME),
    )
    for algo in ("td3_bc", "dqn", "dt", "dreamer", "qmix")
    for format in FORMATS
]


def exported(made: Made, format: str, place: Path, **options: Any) -> tuple[Trained, dict]:
    run = made.open(**options)
    return run, export(run, format, place, made.dataset)


# ------------------------------------------------------------------ runs, as users see them


@pytest.mark.parametrize(("algo", "format"), EXPORTS)
def test_a_user_drives_the_environment_as_training_did(
    algo: str, format: str, trained: Factory, tmp_path: Path
) -> None:
    """The file, read by the printed program in a Python without this project, earns the recorded
    returns from the same start states. Catches: raw observations to a network that wants normalised
    ones, actions without their scale, another checkpoint, a memory that is not the policy's."""
    made = trained(algo)
    run, about = exported(made, format, tmp_path)
    assert about["verified"]["equal"] and about["verified"]["observations"] >= 256
    starts = [_start(run, episode) for episode in range(2)]
    script = "\n".join([_ALONE, example(run, FORMATS[format], about), _DRIVE])
    given = {"env_id": run.config["env_id"], "horizon": run.config["horizon"], "starts": starts}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, json.dumps(given)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    returns = json.loads(done.stdout.splitlines()[-1])
    assert returns == pytest.approx(made.recorded(0)[STEPS], rel=1e-3)


def _start(run: Trained, episode: int) -> int:
    from bench.engine.trainer import stream_seed

    return stream_seed(run.config["seed"], 2, run.step * 10_000 + episode) % 2**31


_ALONE = """\
import sys
sys.modules.update(bench=None, rlobj=None, tensordict=None)
"""
# A user's loop around the printed program: one row, the state from zeros at every episode's start.
_DRIVE = """
import gymnasium
import json
given, about, returns = json.loads(sys.argv[1]), json.load(open("policy.json")), []
if given["env_id"].startswith("bench/"):
    class TwoStep(gymnasium.Env):  # of the QMIX paper
        action_space = gymnasium.spaces.Discrete(4)
        def seen(self):
            state = numpy.eye(4, 3, dtype="float32")[self.place]
            return numpy.concatenate([state, [1, 0], state, [0, 1], state]).astype("float32")
        def reset(self, seed=None):
            self.place = 0
            return self.seen(), {}
        def step(self, action):
            first, second = divmod(int(action), 2)
            last = self.place > 0
            pays = [[7, 7], [7, 7]] if self.place == 1 else [[0, 1], [1, 8]]
            reward = float(pays[first][second]) if last else 0.0
            self.place = 3 if last else 1 + first
            return self.seen(), reward, last, False, {}
    env = TwoStep()
else:
    limit = {} if given["horizon"] is None else {"max_episode_steps": given["horizon"]}
    env = gymnasium.make(given["env_id"], disable_env_checker=True, **limit)
target = return_to_go if "return_to_go" in globals() else None
for seed in given["starts"]:
    seen, _ = env.reset(seed=seed)
    state = [array(numpy.zeros((1, *s["shape"]), s["dtype"])) for s in about["state"]]
    to_go, total, over = target, 0.0, False
    while not over:
        rows = [array(numpy.asarray(seen, "float32").reshape(1, -1))]
        action, *state = policy(*rows, *([] if to_go is None else [to_go]), *state)
        action = numpy.asarray(action)[0]
        action = int(action) if about["action"]["dtype"] == "int64" else action
        seen, reward, terminated, truncated, _ = env.step(action)
        total, over = total + reward, terminated or truncated
        to_go = to_go if to_go is None else to_go - numpy.float32(reward)
    returns.append(float(total))
print(json.dumps(returns))
"""


def test_what_is_written_about_a_policy(
    trained: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: the last checkpoint for the best, another evaluation's score, a hash of other
    bytes."""
    made = trained("td3_bc")
    step = made.best(0)
    words = ["export", str(made.folders[0]), "--checkpoint", "best", "--to", str(tmp_path)]
    assert main([*words, "--dataset", made.data]) == 0
    printed = capsys.readouterr().out
    assert f"best checkpoint, step {step}" in printed and "torch.export.load" in printed
    about = json.loads((tmp_path / "policy.json").read_text())
    content = (tmp_path / "policy.pt2").read_bytes()
    assert about["sha256"] == hashlib.sha256(content).hexdigest()
    assert about["checkpoint"] == {"which": "best", "step": step}
    assert about["score"]["return"] == pytest.approx(np.mean(made.recorded(0)[step]))
    mean = made.dataset.transitions["observation"].mean(0)
    assert about["normalization"]["mean"] == mean.tolist()
    bounds = {"low": [-2.0], "high": [2.0]}
    assert about["action"] == {"name": "action", "shape": [1], "dtype": "float32", **bounds}
    assert about["run"].endswith("/seed-0") and about["env_id"] == "Pendulum-v1"
    assert about["verified"]["equal"] is True


def test_another_policy_is_not_written_over(trained: Factory, tmp_path: Path) -> None:
    made = trained("dqn")
    exported(made, "torchscript", tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"holds policy.pt of lite/cartpole.*seed-0; choose"):
        export(made.open(1), "torchscript", tmp_path, made.dataset)
    with pytest.raises(ConfigError, match="choose another folder"):
        export(made.open(0), "pt2", tmp_path, made.dataset)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    exported(made, "torchscript", tmp_path)  # the same one again


def test_a_run_on_a_file_must_be_told_where_it_is(
    trained: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trained("td3_bc")
    assert main(["export", str(made.folders[0])]) == 2
    assert "say where it is: --dataset FILE" in capsys.readouterr().err
    assert main(["export", str(made.folders[0].parent)]) == 2
    assert "holds 2 runs; name one" in capsys.readouterr().err
    assert not (made.folders[0] / "export").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.trained.formats.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--format safetensors needs safetensors: pip install"):
        format_of("safetensors")
    format_of("pt2")


def test_the_command_line_knows_the_formats() -> None:
    """It does not import torch to ask."""
    assert list(cli_trained.FORMATS) == list(FORMATS)


# ------------------------------------------------------------- the check, and what it catches

FAULTS = {
    "normalisation left out": ("seen", lambda self, observation: observation),
    "bounds left out": ("bounded", lambda self, action: action),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_wrong_policy_is_found_out(
    fault: str,
    trained: Factory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Files stay, and both the exit code and policy.json say that they are wrong."""
    made = trained("td3_bc")
    name, wrong = FAULTS[fault]
    if name == "bounded":  # this algorithm's actions are bounded anyhow: let them be larger
        act = modules.Standalone.act
        monkeypatch.setattr(modules.Standalone, "act", lambda *given: 3 * act(*given))
        monkeypatch.setattr(Trained, "policy", _tripled(Trained.policy))
    monkeypatch.setattr(modules.Standalone, name, wrong)
    words = ["export", str(made.folders[0]), "--to", str(tmp_path), "--dataset", made.data]
    assert main([*words, "--format", "torchscript"]) == 1
    assert "do not use" in capsys.readouterr().err
    verified = json.loads((tmp_path / "policy.json").read_text())["verified"]
    assert not verified["equal"] and verified["largest_difference"] > 1e-3
    assert (tmp_path / "policy.pt").exists()


def _tripled(policy: Any) -> Any:
    def three_times(self: Trained, episodes: int, *, alone: bool = False) -> Any:
        made = policy(self, episodes, alone=alone)
        act = made.act
        made.act = lambda seen: 3 * act(seen)
        return made

    return three_times


def test_differences_that_are_no_numbers_and_broken_files_are_found_out(
    trained: Factory, tmp_path: Path
) -> None:
    made = trained("dqn")
    run, _ = exported(made, "torchscript", tmp_path)
    wanted = expected(run, made.dataset)
    chosen = FORMATS["torchscript"]
    actions = wanted.actions.astype(float)
    actions[0, 3] = np.nan
    assert np.isnan(largest_difference(tmp_path, chosen, Expected(wanted.inputs, actions)))
    with pytest.raises(RunError, match=r"policy.pt: cannot be used .* actions of shape"):
        wider = np.stack([wanted.actions] * 2, -1)
        largest_difference(tmp_path, chosen, Expected(wanted.inputs, wider))
    (tmp_path / "policy.pt").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"policy.pt: cannot be used without this project"):
        largest_difference(tmp_path, chosen, wanted)


def test_the_check_runs_without_this_project(trained: Factory, tmp_path: Path) -> None:
    """Catches: a check that would pass if the file needed us."""
    made, chosen = trained("dqn"), FORMATS["torchscript"]
    run, _ = exported(made, "torchscript", tmp_path)
    tried = replace(chosen, reader=f"{_TRY}\n{chosen.reader}")
    assert largest_difference(tmp_path, tried, expected(run, made.dataset)) == 0.0


_TRY = """\
for name in ("bench", "bench.recipe", "rlobj", "tensordict"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported")
"""

# ------------------------------------------------------------------------ every recipe


def _problem(discrete: bool) -> Problem:
    if discrete:
        return Problem(3, Categorical(3))
    mean, std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.5, 2.0, 1.0])
    bounds = Bounded(torch.tensor([-1.0, -0.2]), torch.tensor([1.0, 3.0]))
    return Problem(3, bounds, 100, mean, std)


def _untrained(name: str) -> Trained:
    """A recipe's policy, the second of two seeds, with random parameters."""
    recipe = load_recipe(name)
    hyper = recipe.hyper(**SIZES[name])
    if recipe.sequence:
        hyper = replace(hyper, target_returns=(20.0,), return_scale=10.0)
    problem = _problem(recipe.discrete)
    torch.manual_seed(0)
    agent = recipe.build(hyper, problem)
    tensors = {k: torch.stack([t.detach()] * 2) for k, t in agent.loss.tensors().items()}
    for name_of, tensor in tensors.items():
        if tensor.is_floating_point() and name_of.endswith(("weight", "bias")):
            tensor[1] = 2 * torch.randn(tensor.shape[1:]) / tensor.shape[-1] ** 0.5
    facts = (Path(), {}, "last", 0, recipe, hyper, problem, agent, tensors, frozenset(), 1, None)
    return Trained(*facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_acts_the_same_as_a_list_of_operations(name: str) -> None:
    """Catches: a recipe whose policy cannot be exported, draws numbers, or is not the evaluated
    one; a bound, a normalisation or a part of the memory left out."""
    run = _untrained(name)
    data = make_transitions(length=11, obs=run.problem.observation)
    wanted = expected(run, SimpleNamespace(transitions=data))
    graph = flatten(modules.standalone(run))
    program = describe(graph)
    assert program == json.loads(json.dumps(program))
    policy = _reader(program, tensors_of(graph))
    state = [slot.zeros(wanted.actions.shape[1]) for slot in modules.standalone(run).state]
    for t, actions in enumerate(wanted.actions):
        given = [torch.from_numpy(v[t]) for v in wanted.inputs.values()]
        action, *state = policy(*given, *state)
        assert action.shape == actions.shape
        assert np.abs(action.numpy() - actions).max() <= 1e-4  # large parameters amplify rounding
    assert len(np.unique(wanted.actions)) > (1 if run.recipe.discrete else 20)
    if name == "awac":  # the one whose mean knows no bounds
        assert (wanted.actions == run.problem.action.high.numpy()).any()


def _reader(program: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """The documented way to run operations, written once more."""

    def value(known: dict[str, Any], x: Any) -> Any:
        if isinstance(x, list):
            return [value(known, part) for part in x]
        if isinstance(x, dict):
            return getattr(torch, x["dtype"])
        return known[x] if isinstance(x, str) else x

    def policy(*given: torch.Tensor) -> list[torch.Tensor]:
        known: dict[str, Any] = {**tensors, **dict(zip(program["inputs"], given, strict=True))}
        for name, operation, args, named in program["operations"]:
            packet, _, overload = operation.partition(".")
            run = (lambda parts, i: parts[i]) if packet == "getitem" else None
            run = run or getattr(getattr(torch.ops.aten, packet), overload)
            found = {k: value(known, v) for k, v in named.items()}
            known[name] = run(*value(known, args), **found)
        return [known[name] for name in program["outputs"]]

    return policy


def test_actions_of_an_exported_policy_by_hand(trained: Factory) -> None:
    """The network worked out with numpy from the checkpoint's numbers. Catches: what live policy
    and exported one have in common."""
    made = trained("td3_bc")
    run = made.open(1)
    observation = made.dataset.transitions["observation"][:50]
    x = (observation.numpy() - run.problem.mean.numpy()) / run.problem.std.numpy()
    layers = [f"actor_network_params.module.net.{i}" for i in (0, 2, 4)]
    for layer in layers:
        weight, bias = (made.cell.trainer.tensors[f"{layer}.{k}"][1] for k in ("weight", "bias"))
        x = x @ weight.detach().numpy().T + bias.detach().numpy()
        x = np.maximum(x, 0) if layer != layers[-1] else 2 * np.tanh(x)
    (action,) = modules.standalone(run)(observation)
    assert np.abs(action.numpy() - x).max() < 1e-5
    assert make_env("Pendulum-v1").action_space.high.tolist() == [2.0]
