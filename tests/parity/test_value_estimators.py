"""Value estimators against torchrl: keys, state, what is written, gradients and options."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict, unravel_key

from tests.parity.estimators import (
    CALL_TIMED,
    KINDS,
    LAMBDA,
    TIMED,
    Case,
    comparable,
    entry,
    groups,
    never_terminated,
    no_observation_at_ends,
    per_agent,
    renamed,
    run,
    standing,
    steps,
    without,
)
from tests.parity.harness import assert_same, libraries, tensors_of

pytestmark = pytest.mark.parity
NAMES = {"reward": "pay", "done": ("end", "any"), "terminated": ("end", "real")}
WRITES = {"advantage": ("out", "a"), "value_target": "goal", "value": ("v", "now")}
CASES = {
    "default": Case(),
    "[T]": Case(shape=(6,)),
    "[B, C, T]": Case(shape=(2, 3, 4)),
    "one step": Case(shape=(4, 1)),
    "long": Case(shape=(2, 50)),
    "gamma 1": Case({"gamma": 1.0}),
    "gamma 0.5": Case({"gamma": 0.5}),
    "gamma as a tensor": Case({"gamma": torch.tensor(0.7)}),
    "gamma per step": Case({"gamma": 0.5 + 0.03 * steps(TensorDict({}, [3, 5]))}, kinds=KINDS[:4]),
    "lambda 1": Case({"lmbda": 1.0}, kinds=LAMBDA),
    "lambda 0.3": Case({"lmbda": 0.3}, kinds=LAMBDA),
    "lambda as a tensor": Case({"lmbda": torch.tensor(0.6)}, kinds=LAMBDA),
    "looped": Case({"vectorized": False}, kinds=LAMBDA),
    "looped, lambda 0": Case(
        {"vectorized": False, "lmbda": 0.0}, kinds=LAMBDA, unlike=("estimate",)
    ),
    "vectorized": Case({"vectorized": True}, kinds=LAMBDA),
    "differentiable": Case({"differentiable": True}),
    "differentiable, looped": Case({"differentiable": True, "vectorized": False}, kinds=LAMBDA),
    "time named": Case(names=("time", None), time=0),
    "time named last": Case(names=(None, None, "time"), shape=(2, 3, 4)),
    "time_dim": Case({"time_dim": 0}, time=0, kinds=TIMED),
    "time_dim in the middle": Case({"time_dim": -2}, shape=(2, 4, 3), time=1, kinds=TIMED),
    "time_dim of the call": Case(call={"time_dim": 0}, time=0, kinds=CALL_TIMED),
    "steps to the next observation": Case(
        change=entry("steps_to_next_obs", steps), kinds=[k for k in KINDS if k != "magae"]
    ),
    "without terminated": Case(
        change=without(("next", "terminated")), kinds=[k for k in KINDS if k != "vtrace"]
    ),
    "no observation at the ends": Case(
        change=no_observation_at_ends, unlike=("values", "estimate")
    ),
    "renamed": Case(change=renamed, keys={**NAMES, "sample_log_prob": "mu"}),
    "writes elsewhere": Case(keys=WRITES),
    "average": Case({"average": True}, unlike=("rewards",)),
    "average over groups": Case(
        {"average": True, "group_key": "g"}, change=entry("g", groups), unlike=("rewards",)
    ),
    "tiny rewards, average": Case(
        {"average": True},
        change=lambda data: data["next", "reward"].mul_(2e-5),
        kinds=KINDS[:3],
        unlike=("rewards",),
    ),
    "chunks of two": Case({"value_chunk_size": 2}),
    "three chunks": Case({"num_chunks": 3}),
    "two chunks": Case({"num_chunk": 2}),
    "chunks of time": Case({"value_chunk_size": 2, "value_chunk_dim": 1}),
    "no vmap": Case({"deactivate_vmap": True}, kinds=KINDS[:-1]),
    "values stand": Case({"value_network": None}, change=standing()),
    "values stand under a name": Case(
        {"value_network": None, "differentiable": True}, change=standing("v"), keys={"value": "v"}
    ),
    "skips": Case({"skip_existing": True}, change=standing(), unlike=("estimate",)),
    "does not skip": Case({"skip_existing": False}, change=standing()),
    "parameters": Case(parameters=("params",)),
    "both parameters": Case(parameters=("params", "target_params")),
    "both parameters, differentiable": Case(
        {"differentiable": True}, parameters=("params", "target_params")
    ),
    "both parameters, chunks": Case({"num_chunks": 2}, parameters=("params", "target_params")),
    "one call": Case({"shifted": True, "shifted_budget": 6}),
    "one call, budget 1": Case(
        {"shifted": True}, shape=(4, 9), change=never_terminated, unlike=("estimate",)
    ),
    "one call, budget 2": Case(
        {"shifted": True, "shifted_budget": 2},
        shape=(4, 9),
        change=never_terminated,
        unlike=("estimate",),
    ),
    "one call, differentiable": Case(
        {"shifted": True, "differentiable": True}, change=never_terminated, unlike=("estimate",)
    ),
    "auto reset": Case({"auto_reset_env": True}, kinds=("gae", "magae"), unlike=("estimate",)),
    "auto reset, looped": Case(
        {"auto_reset_env": True, "vectorized": False}, kinds=("gae", "magae"), unlike=("estimate",)
    ),
    "rewards of each agent": Case(change=per_agent, kinds=("magae",)),
    "agents' axis from the front": Case({"agent_dim": 2}, kinds=("magae",)),
    "agents' axis, average": Case({"agent_dim": 2, "average": True}, kinds=("magae",)),
    "low clips": Case({"rho_thresh": 0.6, "c_thresh": 0.4}, kinds=("vtrace",)),
    "high clips": Case({"rho_thresh": torch.tensor(3.0), "c_thresh": 2.0}, kinds=("vtrace",)),
    "torchrl's modules": Case(own_modules=False),
    "torchrl's modules, parameters": Case(own_modules=False, parameters=("params",)),
}
RUNS = [(kind, name) for kind in KINDS for name, case in CASES.items() if kind in case.kinds]


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_equals_torchrl(kind: str, name: str) -> None:
    case = CASES[name]
    theirs_lib, ours_lib = libraries(case.own_modules)
    theirs, expected, slopes, target = run(case, theirs_lib, kind)
    ours, found, own_slopes, own_target = run(case, ours_lib, kind)
    held = {k: v for k, v in tensors_of(theirs).items() if "actor_network" not in k}
    assert_same(tensors_of(ours), held, "state")
    added = {"action", "observation"} if kind == "vtrace" else set()
    assert set(ours.in_keys) == {unravel_key(k) for k in theirs.in_keys} | added
    assert ours.out_keys == theirs.out_keys
    assert_same(comparable(case, found), comparable(case, expected), "batch after the call")
    for key in added:  # torchrl's weights move with the state: their action is drawn from it
        own_slopes.pop(key, None), slopes.pop(key, None)
    assert_same(own_slopes, slopes, "gradient")
    if target is not None:
        assert_same({"target": own_target}, {"target": target}, "value_estimate")


@pytest.mark.parametrize("kind", KINDS)
def test_enough_configurations(kind: str) -> None:
    assert sum(k == kind for k, _ in RUNS) >= 20
