"""Does an exported policy act as the trained one, where this project cannot be imported?"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import RunError
from bench.trained.formats import Format
from bench.trained.run import Trained

LIMIT = 1e-5
_OBSERVATIONS = 256
_STEPS = 32  # of an episode, for policies that remember; more than a window has, so that it slides

_ALONE = """\
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("bench", "rlobj", "tensordict"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
"""
_COMPARE = """\
import json, numpy

about, given = json.load(open("policy.json")), numpy.load(sys.argv[1])
steps, rows = given["action"].shape[:2]
state = [array(numpy.zeros((rows, *s["shape"]), s["dtype"])) for s in about["state"]]
off = []
for t in range(steps):
    action, *state = policy(*(array(given[s["name"]][t]) for s in about["inputs"]), *state)
    action = numpy.asarray(action)
    if action.shape != given["action"][t].shape:
        sys.exit(f"actions of shape {action.shape}, not {given['action'][t].shape}")
    off.append(numpy.abs(action.astype(float) - given["action"][t]).max())
print(numpy.max(off))
"""


@dataclass(frozen=True)
class Expected:
    """Inputs ``[steps, rows, ...]`` by name and the actions that the trained policy takes."""

    inputs: dict[str, np.ndarray]
    actions: np.ndarray

    @property
    def observations(self) -> int:
        return int(np.prod(self.actions.shape[:2]))


def expected(run: Trained, dataset: Any) -> Expected:
    """What the policy does as training evaluates it, on observations of its data: spread over all
    of them, or stretches of steps for one that remembers."""
    remembers = run.recipe.sequence or run.agent.carried
    steps = max(_STEPS, getattr(run.hyper, "context", 0) + 8) if remembers else 1
    rows = math.ceil(_OBSERVATIONS / steps)
    data = dataset.transitions
    starts = torch.linspace(0, len(data) - 1, rows).long()
    index = (starts + torch.arange(steps).unsqueeze(1)) % len(data)
    observation = data["observation"][index].float().flatten(2)
    reward = data["next", "reward"][index].squeeze(-1)
    inputs = {"observation": observation}
    if run.recipe.sequence:
        earned = reward.double().cumsum(0) - reward
        inputs["return_to_go"] = (run.hyper.target_returns[0] - earned).float()
    actions = _acted(run, observation, reward)
    return Expected({k: v.numpy() for k, v in inputs.items()}, actions)


def _acted(run: Trained, observation: Tensor, reward: Tensor) -> np.ndarray:
    steps, rows = reward.shape
    policy = run.policy(rows, alone=True)
    policy.reset(1, rows)
    taken = []
    for t in range(steps):
        taken.append(policy.act(observation[t].unsqueeze(0))[0].clone())
        policy.observe(reward[t].unsqueeze(0))
    actions = torch.stack(taken).numpy()
    if run.recipe.discrete:
        return actions
    return np.clip(actions, run.problem.action.low.numpy(), run.problem.action.high.numpy())


def largest_difference(folder: Path, written: Format, wanted: Expected) -> float:
    """Read the policy in a process of its own, as its users will, and compare actions.

    Raises:
        RunError: when it cannot be read or run there.
    """
    script = "\n".join([_ALONE, written.reader, _COMPARE])
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "check.npz"
        arrays: dict[str, Any] = {**wanted.inputs, "action": wanted.actions}
        np.savez(file, **arrays)
        done = subprocess.run(
            [sys.executable, "-I", "-c", script, str(file)],
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RunError(f"{folder / written.file}: cannot be used without this project: {why}")
    return float(done.stdout.split()[-1])
