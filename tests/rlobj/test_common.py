"""The contract that every loss keeps, tried on all of them."""

import copy
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict, unravel_key
from torch import Tensor

import rlobj
from rlobj import CQLLoss, IQLLoss, LossModule, SACLoss, TD3BCLoss
from tests.rlobj import cases, discrete, dreams, on_policy, teams
from tests.rlobj.cases import (
    BOOTSTRAPPING,
    CASES,
    REDUCIBLE,
    assert_close,
    batch_for,
    build,
    tape_for,
    taped,
)

BOOTSTRAP = [("next", k) for k in ("observation", "reward", "done", "terminated")]
OFFLINE = {"observation", "action", *BOOTSTRAP}
IN_KEYS = {
    "bc": {"observation", "action"},
    "bc_l2": {"observation", "action"},
    "dt": {"observation", "action", "return_to_go"},
    "online_dt": {"observation", "action", "return_to_go"},
    "cal_ql": {*OFFLINE, "mc_return"},
    "cal_ql_lagrange": {*OFFLINE, "mc_return"},
    "ddpg": {*OFFLINE, ("next", "action"), "priority_weight"},
    "redq": {*OFFLINE, "action_log_prob"},
    "rebrac": {*OFFLINE, ("next", "action")},
    **teams.IN_KEYS,
    **on_policy.IN_KEYS,
    **dreams.IN_KEYS,
}
# done is for other value estimators, and it stands in for terminated
FLAGS = {("next", "done"), ("next", "terminated")}
NOT_NEEDED = {  # declared as upstream declares them
    **on_policy.NOT_NEEDED,
    "ddpg": {("next", "action"), "priority_weight"},
    "redq": {"action_log_prob"},
    "dreamer_model": {"belief"},  # a recurrence without one starts at 0
}
SAC_OUT = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy"]
CQL_OUT = ["loss_actor", "loss_actor_bc", "loss_qvalue", "loss_cql", "loss_alpha", *SAC_OUT[3:]]
TD3_INFO = ["pred_value", "state_action_value_actor", "next_state_value", "target_value"]
TD3_BC_OUT = ["loss_actor", "loss_qvalue", "bc_loss", "lmbd", *TD3_INFO]
REDQ_INFO = ["state_action_value_actor", "action_log_prob_actor", "next.state_value"]
DDPG_INFO = ["pred_value", "target_value", "pred_value_max", "target_value_max"]
OUT_KEYS = {
    "bc": ["loss_bc"],
    "bc_l2": ["loss_bc"],
    "td3_bc": TD3_BC_OUT,
    "rebrac": TD3_BC_OUT,
    "td3": ["loss_actor", "loss_qvalue", *TD3_INFO],
    "ddpg": ["loss_actor", "loss_value", *DDPG_INFO],
    "awac": ["loss_actor", "loss_qvalue", "entropy"],
    "sac_v1": [*SAC_OUT, "loss_value"],
    "discrete_sac": SAC_OUT,
    "redq": [*SAC_OUT, *REDQ_INFO, "target_value"],
    "edac": ["loss_actor", "loss_qvalue", "loss_diversity", *SAC_OUT[2:]],
    "iql": ["loss_actor", "loss_qvalue", "loss_value", "entropy"],
    "sac": SAC_OUT,
    "sac_delayed": SAC_OUT,
    "cql": CQL_OUT,
    "cql_lagrange": [*CQL_OUT, "loss_alpha_prime"],
    "cal_ql": CQL_OUT,
    "cal_ql_lagrange": [*CQL_OUT, "loss_alpha_prime"],
    "xql": ["loss_actor", "loss_qvalue", "loss_value", "entropy"],
    "xql_random": ["loss_actor", "loss_qvalue", "loss_value", "entropy"],
    "dt": ["loss"],
    "online_dt": ["loss_log_likelihood", "loss_entropy", "loss_alpha", "alpha", "entropy"],
    **discrete.OUT_KEYS,
    **teams.OUT_KEYS,
    **on_policy.OUT_KEYS,
    **dreams.OUT_KEYS,
}
# what losses return without announcing it, as upstream
BESIDES = {
    "ddpg": ("td_error",),
    "discrete_cql": ("td_error", "pred_value", "target_value"),
    **on_policy.BESIDES,
}
GAUSSIAN = {"actor_network_params.module.0.module.0": (2 * cases.ACT, cases.OBS)}
LINEAR_ACTOR = {"actor_network_params.module": (cases.ACT, cases.OBS)}


def delayed(layers: dict[str, tuple]) -> dict[str, tuple]:
    return {f"{p}{k}": v for p in ("", "target_") for k, v in layers.items()}


ONE, CRITICS, THREE = (
    delayed({"qvalue_network_params.module.linear": (n, 1, 5)}) for n in (1, 2, 3)
)
TEMPERATURE = {"log_alpha": (), "alpha_init": ()}
BOX = {"max_action": (2,), "min_action": (2,)}
LAYERS = {
    "bc": GAUSSIAN,
    "bc_l2": LINEAR_ACTOR,
    "td3_bc": {**delayed(LINEAR_ACTOR), **CRITICS},
    "td3": {**delayed(LINEAR_ACTOR), **CRITICS},
    "rebrac": {**delayed(LINEAR_ACTOR), **CRITICS},
    "ddpg": {**LINEAR_ACTOR, **delayed({"value_network_params.module.linear": (1, 5)})},
    "sac_v1": {**GAUSSIAN, **ONE, **delayed({"value_network_params.module": (1, cases.OBS)})},
    "discrete_sac": {
        "actor_network_params.module.0.module": (3, 3),
        **delayed({"qvalue_network_params.module": (2, 3, 3)}),
    },
    **dict.fromkeys(("redq", "edac"), GAUSSIAN | THREE),
    "iql": {**GAUSSIAN, **CRITICS, "value_network_params.module": (1, cases.OBS)},
    "sac": {**GAUSSIAN, **CRITICS},
    "sac_delayed": {**delayed(GAUSSIAN), **CRITICS},
    **dict.fromkeys(("cql", "cql_lagrange", "cal_ql", "cal_ql_lagrange"), GAUSSIAN | CRITICS),
    "awac": {**GAUSSIAN, **CRITICS},
    "xql": {**GAUSSIAN, **CRITICS, "value_network_params.module": (1, cases.OBS)},
    "xql_random": {**GAUSSIAN, **CRITICS, "value_network_params.module": (1, cases.OBS)},
    "dt": {"actor_network_params.module.lin": (cases.ACT, 6)},
    "online_dt": {"actor_network_params.module.0.module.lin": (2 * cases.ACT, 6)},
    **discrete.LAYERS,
    **teams.LAYERS,
    **on_policy.LAYERS,
    **dreams.LAYERS,
}
OTHERS = {
    "td3_bc": BOX,
    "td3": BOX,
    "rebrac": {**BOX, "actor_bc_coeff": (), "critic_bc_coeff": ()},
    "sac_v1": {**TEMPERATURE, "_target_entropy": ()},
    "discrete_sac": {**TEMPERATURE, "target_entropy": ()},
    "redq": {**TEMPERATURE, "min_log_alpha": (), "max_log_alpha": ()},
    "edac": {**TEMPERATURE, "_target_entropy": ()},
    "sac": {**TEMPERATURE, "_target_entropy": ()},
    "sac_delayed": {**TEMPERATURE, "_target_entropy": ()},
    "online_dt": {**TEMPERATURE, "target_entropy": ()},
    "cal_ql": {**TEMPERATURE, "target_entropy_buffer": ()},
    "cal_ql_lagrange": {**TEMPERATURE, "target_entropy_buffer": (), "log_alpha_prime": ()},
    "cql": {**TEMPERATURE, "target_entropy_buffer": ()},
    "cql_lagrange": {**TEMPERATURE, "target_entropy_buffer": (), "log_alpha_prime": ()},
    **discrete.OTHERS,
    **dreams.OTHERS,
    **on_policy.OTHERS,
}
ALWAYS_MEAN = ("loss_alpha_prime",)  # under "sum", too
each_loss = pytest.mark.parametrize("name", CASES)
each_reducible = pytest.mark.parametrize("name", REDUCIBLE)


def computed(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> TensorDict:
    return dreams.terms(taped(tape, loss, data.clone()))


def same(one: TensorDict, other: TensorDict) -> None:
    assert set(one.keys()) == set(other.keys())
    for key in set(one.keys()):
        assert_close(one[key], other[key].detach())


def test_every_loss_has_a_case() -> None:
    exported = (getattr(rlobj, name) for name in rlobj.__all__)
    losses = {x for x in exported if isinstance(x, type) and issubclass(x, LossModule)}
    assert losses - {LossModule} == {type(build(name)) for name in CASES}
    assert set(LAYERS) == set(OUT_KEYS) == set(CASES)


@each_loss
def test_keys(name: str) -> None:
    loss, data = build(name), batch_for(name)
    assert set(loss.in_keys) == IN_KEYS.get(name, OFFLINE)
    assert len(loss.in_keys) == len(set(loss.in_keys))
    assert list(loss.out_keys) == OUT_KEYS[name]
    assert set(dreams.terms(loss(data)).keys()) == {*OUT_KEYS[name], *BESIDES.get(name, ())}


@each_loss
def test_in_keys_suffice_and_are_needed(name: str) -> None:
    loss, data = build(name), batch_for(name)
    needed = data.select(*loss.in_keys, strict=False)
    tape = tape_for(loss, data)
    same(computed(loss, needed, tape), computed(loss, data, tape))
    for key in set(loss.in_keys) - FLAGS - NOT_NEEDED.get(name, set()):
        with pytest.raises((KeyError, AttributeError, TypeError, ValueError)):
            loss(data.exclude(key))


def test_in_keys_of_a_critic_that_sees_more() -> None:
    """A critic may read an entry that the actor does not: its next value is needed too."""
    critic = cases.critic()
    critic.in_keys = ["state", "action"]
    loss, data = SACLoss(cases.stochastic(), critic), cases.batch()
    data["state"], data["next", "state"] = data["observation"], data["next", "observation"]
    assert set(loss.in_keys) == {*OFFLINE, "state", ("next", "state")}
    loss.mark_updated()
    loss(data.select(*loss.in_keys))


@each_loss
def test_keywords_and_selection(name: str) -> None:
    loss, data = build(name), batch_for(name)
    tape, given = tape_for(loss, data), {}
    for key in (k for k in loss.in_keys if k in data.keys(True)):
        given["_".join(key) if isinstance(key, tuple) else key] = data[key]
    by_name, expected = taped(tape, lambda: loss(**given)), computed(loss, data, tape)
    by_name = by_name if isinstance(by_name, tuple) else (by_name,)
    for value, key in zip(by_name, loss.out_keys, strict=True):
        assert_close(value, expected[key].detach())
    first = loss.out_keys[0]
    loss.select_out_keys(first)
    assert_close(taped(tape, lambda: loss(**given)), expected[first].detach())


@pytest.mark.parametrize("name", BOOTSTRAPPING)
def test_renamed_entries(name: str) -> None:
    loss, data = build(name), batch_for(name)
    tape = tape_for(loss, data)
    expected = computed(loss, data, tape)
    loss.set_keys(reward="pay", terminated=("flags", "over"), done="stop", priority="urgency")
    after = data["next"]
    after["pay"], after["stop"] = after.pop("reward"), after.pop("done")
    after["flags", "over"] = after.pop("terminated")
    assert {("next", "pay"), ("next", "flags", "over"), ("next", "stop")} < set(loss.in_keys)
    same(taped(tape, loss, data), expected)
    assert data["urgency"].shape in ((cases.N,), (cases.N, 1))
    assert "td_error" not in data
    loss.set_keys(reward=None, terminated=None, done=None)
    assert set(loss.in_keys) == IN_KEYS.get(name, OFFLINE)
    assert loss.value_estimator.tensor_keys.reward == "reward"


RENAMED: dict[str, Callable[[], LossModule]] = {
    "td3_bc": lambda: TD3BCLoss(
        cases.deterministic("move"), cases.critic("move", "q"), action_spec=cases.spec()
    ),
    "iql": lambda: IQLLoss(
        cases.stochastic(action="move"), cases.critic("move", "q"), cases.value("v"), expectile=0.8
    ),
    "sac": lambda: SACLoss(cases.stochastic(action="move"), cases.critic("move", "q")),
    "cql": lambda: CQLLoss(
        cases.stochastic(action="move"), cases.critic("move", "q"), num_random=3
    ),
}


@pytest.mark.parametrize("name", RENAMED)
def test_renamed_outputs_of_networks(name: str) -> None:
    loss, renamed, data = build(name), cases.perturb(RENAMED[name]()), cases.batch()
    tape = tape_for(loss, data)
    expected = computed(loss, data, tape)
    values = {"value": "v"} if name == "iql" else {}
    renamed.set_keys(action="move", state_action_value="q", **values)
    data["move"] = data.pop("action")
    same(computed(renamed, data, tape), expected)


@each_loss
def test_unknown_key(name: str) -> None:
    with pytest.raises(ValueError, match=f"'speed' is not a key of {type(build(name)).__name__}"):
        build(name).set_keys(speed="fast")
    assert build(name).default_keys is type(build(name))._AcceptedKeys


@each_reducible
def test_reductions_agree(name: str) -> None:
    with pytest.raises(NotImplementedError, match="reduction 'median': choose one of"):
        build(name, reduction="median")
    data = batch_for(name)
    results = {r: build(name, reduction=r) for r in ("none", "sum", "mean")}
    tape = tape_for(results["mean"], data)
    out = {r: computed(loss, data, tape) for r, loss in results.items()}
    same(out["mean"], computed(build(name), data, tape))
    for key in (k for k in OUT_KEYS[name] if k.startswith("loss")):
        each = out["none"][key].detach()
        assert data.shape in (each.shape[: data.ndim], each.shape[-data.ndim :])
        assert_close(out["sum"][key], each.mean() if key in ALWAYS_MEAN else each.sum())
        assert_close(out["mean"][key], each.mean())


def masked(name: str) -> tuple[TensorDict, Tensor]:
    """A batch whose masked entries hold absurd numbers, and what to keep."""
    data = batch_for(name)
    keep = torch.rand(data.shape, generator=torch.Generator().manual_seed(3)) > 0.4
    assert keep.any()
    assert not keep.all()
    for key in data.keys(True, True):
        if data[key].is_floating_point():
            data[key][~keep] = 0.9 * data[key][~keep] + (0.0 if key == "action" else 50.0)
    return data, keep


@each_reducible
@pytest.mark.parametrize(
    ("where", "column"),
    [(("collector", "mask"), False), ("shifted_valid", True), ("both", False), ("own", True)],
)
def test_masked_entries_do_not_count(name: str, where: str, column: bool) -> None:
    data, keep = masked(name)
    tape = tape_for(build(name), data)
    alone = computed(build(name), data[keep], [_of(keep, t) for t in tape])
    mask = keep.unsqueeze(-1) if column else keep
    if where == "both":  # each lets something pass that the other stops
        part = torch.arange(keep.numel()).reshape(keep.shape) % 2 == 0
        data["collector", "mask"], data["shifted_valid"] = mask | part, mask | ~part
    else:
        data["valid" if where == "own" else where] = mask
    for reduction in ("mean", "sum"):
        loss = build(name, reduction=reduction)
        loss.loss_mask_key = "valid" if where == "own" else "auto"
        out = computed(loss, data, tape)
        for key in (k for k in OUT_KEYS[name] if k.startswith("loss")):
            summed = reduction == "sum" and key not in ALWAYS_MEAN
            scale = alone_size(name, key, keep) if summed else 1
            assert_close(out[key], alone[key].detach() * scale)
    loss.loss_mask_key = None
    bare = data.select(*loss.in_keys, strict=False)
    same(computed(loss, data, tape), computed(loss, bare, tape))


def alone_size(name: str, key: str, keep: Tensor) -> int:
    """Terms in a sum: one per sample, or one per entry of an action where actions are compared;
    REDQ's are one per critic, and for the temperature one at s and one at s'."""
    if name == "redq":
        return int(keep.sum()) * (2 if key == "loss_alpha" else 3)
    return int(keep.sum()) * (cases.ACT if name in ("bc_l2", "dt") else 1)


def _of(keep: Tensor, noise: Tensor) -> Tensor:
    """Noise [*samples, *batch, a] of the kept entries; noise that is no sample's stays."""
    if noise.ndim == keep.ndim:
        return noise
    lead = noise.ndim - keep.ndim - 1
    return noise[(slice(None),) * lead + (keep,)]


@each_reducible
def test_priority_weights(name: str) -> None:
    data, weight = batch_for(name), 0.1 + torch.rand(batch_for(name).shape)
    losses = {r: build(name, reduction=r) for r in ("none", "sum", "mean")}
    tape = tape_for(losses["mean"], data)
    each = computed(losses["none"], data, tape)
    plain = computed(losses["mean"], data, tape)
    data["priority_weight"] = weight.unsqueeze(-1)
    mine = ("bc", "bc_l2", "dt", "online_dt", "iql", "cql", "cql_lagrange", "redq")
    mine += ("cal_ql", "cal_ql_lagrange", "xql", "xql_random", *teams.TEAMS, *on_policy.ON_POLICY)
    weighs = name in discrete.WEIGHS or name not in (*mine, *discrete.DISCRETE)
    for reduction, loss in losses.items():
        assert bool(loss.use_prioritized_weights) == weighs
        out = computed(loss, data, tape)
        for key in (k for k in OUT_KEYS[name] if k.startswith("loss")):
            value = each[key].detach() * (weight if weighs else 1.0)
            total = weight.sum() if weighs else each[key].numel()
            expected = {"none": value, "sum": value.sum(), "mean": value.sum() / total}
            mean = key in ALWAYS_MEAN and reduction == "sum"
            assert_close(out[key], expected["mean" if mean else reduction])
    losses["mean"].use_prioritized_weights = False
    same(computed(losses["mean"], data, tape), plain)


def test_weights_that_do_not_fit_are_refused() -> None:
    loss, data = build("sac"), cases.batch()
    data["priority_weight"] = torch.ones(cases.N, 2)
    with pytest.raises(RuntimeError, match="expand"):
        loss(data)


@each_loss
def test_state_dict(name: str) -> None:
    loss, data = build(name), batch_for(name)
    expected = dict(OTHERS.get(name, {}))
    for layer, shape in LAYERS[name].items():
        expected |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:-1]}
    assert {k: tuple(v.shape) for k, v in loss.state_dict().items()} == expected
    tape = tape_for(loss, data)
    if loss.value_type is not None and name not in discrete.OTHERS:  # C51 has no estimator
        expected["_value_estimator.gamma"] = ()
        expected |= {"_value_estimator.lmbda": ()} if name == "dreamer_actor" else {}
    assert set(loss.state_dict()) == set(expected)
    fresh = CASES[name]()
    fresh.mark_updated()
    tape_for(fresh, data)
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    for key in dreams.ELSEWHERE.get(name, ()):
        fresh.tensors()[key].data.copy_(loss.tensors()[key])
    same(computed(fresh, data, tape), computed(loss, data, tape))


@each_loss
def test_parameters_are_the_online_networks(name: str) -> None:
    trained = {k for k, _ in build(name).named_parameters()}
    whole = name in dreams.DREAMS
    names = {k for k in build(name).state_dict() if whole or "_network_params." in k}
    expected = {k for k in names if not k.startswith("target_") and not k.endswith(".support")}
    assert trained - {"log_alpha", "log_alpha_prime"} == expected
    entropic = name.startswith(("sac", "cql", "cal_ql", "redq", "edac", "discrete_sac", "online"))
    assert ("log_alpha" in trained) == entropic
    assert {unravel_key(k) for k in trained} == trained
