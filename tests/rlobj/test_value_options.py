"""Options of single estimators, and losses that take their targets from multi-step returns."""

import statistics

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from rlobj.modules import ValueOperator
from rlobj.utils import next_state_value
from rlobj.value import (
    GAE,
    MultiAgentGAE,
    TD0Estimator,
    TD1Estimator,
    TDLambdaEstimator,
    ValueEstimatorBase,
    VTrace,
)
from rlobj.value import functional as F
from rlobj.value.networks import standardize
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, distance
from tests.rlobj.returns import network, rollout, slow_lambda, slowly

SHAPE, GAMMA, LMBDA = (4, 8), 0.9, 0.8
FLAT = ["observation", ("next", "observation"), "action", "action_log_prob"]
FLAT += [("next", k) for k in ("reward", "done", "terminated")]


def gae(**kwargs: object) -> GAE:
    return GAE(**{"gamma": GAMMA, "lmbda": LMBDA, "value_network": network(), **kwargs})


# ------------------------------------------------------- one call for s and s' (shifted)


def inner_truncations(data: TensorDict) -> list[list[bool]]:
    cut = data["next", "done"] & ~data["next", "terminated"]
    return cut.squeeze(-1).reshape(-1, data.shape[-1])[:, :-1].tolist()


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 6), (7,), (3, 1)])
@pytest.mark.parametrize("estimator", [GAE, TD1Estimator])
def test_one_call_equals_two(shape: tuple[int, ...], estimator: type) -> None:
    """With room for every truncation; the network is asked once."""
    data, net = rollout(shape, seed=2), network()
    budget = 1 + max(map(sum, inner_truncations(data)))
    settings = {"gamma": GAMMA, "value_network": net}
    settings |= {"lmbda": LMBDA} if estimator is GAE else {}
    expected = estimator(**settings)(data.clone())
    net.module.calls = 0
    found = estimator(**settings, shifted=True, shifted_budget=budget)(data.clone())
    assert net.module.calls == 1
    assert found["shifted_valid"].all()
    assert found["shifted_valid"].shape == shape
    for key in ("advantage", "value_target", "state_value"):
        assert_close(found[key], expected[key])


@pytest.mark.parametrize("budget", [1, 2])
def test_steps_without_a_slot_are_left_out(budget: int) -> None:
    """What more truncations than slots push out gets zeros and a mask; the rest is as if the
    rollout ended there."""
    data, estimator = rollout((6, 9), seed=5), gae(shifted=True, shifted_budget=budget)
    found = estimator(data.clone())
    lengths = []
    for row, cuts in enumerate(inner_truncations(data)):
        slot = [t + sum(cuts[:t]) for t in range(9)]
        kept = sum(s + 1 <= 9 + budget - 1 for s in slot)
        assert found["shifted_valid"][row].tolist() == [t < kept for t in range(9)]
        short = gae(value_network=estimator.value_network)(data[row, :kept].clone())
        for key in ("advantage", "value_target", "state_value"):
            assert_close(found[key][row, :kept], short[key])
            assert not found[key][row, kept:].any()
        lengths.append(kept)
    assert min(lengths) < max(lengths) == 9, "the batch exercises one case only"


def test_one_call_with_other_axes_and_parameters() -> None:
    net, data = network(), rollout(SHAPE, seed=2)
    other = network()
    params = TensorDict.from_module(other).data
    expected = gae(value_network=other)(data.clone())["advantage"]
    estimator = gae(value_network=net, shifted=True, shifted_budget=4, num_chunks=2)
    assert_close(estimator(data.clone(), params=params)["advantage"], expected)
    turned = data.transpose(0, 1).clone()
    found = estimator(turned, params=params, time_dim=0)
    assert_close(found["advantage"].transpose(0, 1), expected)
    assert found["shifted_valid"].shape == turned.shape
    with pytest.raises(RuntimeError, match="with the same parameters"):
        estimator(data.clone(), target_params=params)
    assert_close(
        estimator.value_estimate(data, params=params),
        gae(value_network=other).value_estimate(data),
    )


# ------------------------------------------------------------------ standardisation


def slow_standard(numbers: list[float], eps: float) -> list[float]:
    mean = statistics.fmean(numbers)
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return [(x - mean) / max(deviation, eps) for x in numbers]


@pytest.mark.parametrize("eps", [1e-5, 3.0])
def test_standardize(eps: float) -> None:
    x = torch.tensor([[1.0, 5.0, 2.0], [8.0, -3.0, 0.5]])
    group = torch.tensor([[7, -2, 7], [8, 7, -2]])
    assert_close(standardize(x, eps).flatten(), slow_standard(x.flatten().tolist(), eps))
    found = standardize(x, eps, group=group)
    for g in (7, -2, 8):
        assert_close(found[group == g], slow_standard(x[group == g].tolist(), eps))
    valid = torch.tensor([[True, True, False], [True, True, True]])
    found = standardize(x, eps, valid=valid)
    assert_close(found[valid], slow_standard(x[valid].tolist(), eps))
    assert found[0, 2] == 0
    found = standardize(x, eps, valid=valid, group=group)
    assert_close(found[valid & (group == 7)], slow_standard([1.0, -3.0], eps))
    assert_close(standardize(torch.full((3,), 4.0), eps), [0.0] * 3)
    assert_close(standardize(torch.tensor([4.0]), eps), [0.0])
    constant = torch.full((3,), 4.0, requires_grad=True)
    standardize(constant, eps)[0].backward()
    assert constant.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="expand"):
        standardize(x, eps, group=torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("grouped", [False, True])
def test_average_rewards(grouped: bool) -> None:
    data = rollout(SHAPE)
    data["task"] = torch.tensor([3, 1, 1, 3]).unsqueeze(-1).expand(SHAPE)
    key = {"group_key": "task"} if grouped else {}
    group = data["task"].unsqueeze(-1) if grouped else None
    reward = standardize(data["next", "reward"], 1e-5, group=group)
    plain = data.clone().set(("next", "reward"), reward)
    for estimator in (TD0Estimator, TD1Estimator, TDLambdaEstimator):
        settings = {"gamma": GAMMA, "value_network": network()}
        settings |= {"lmbda": LMBDA} if estimator is TDLambdaEstimator else {}
        expected = estimator(**settings).value_estimate(plain)
        averaged = estimator(**settings, average_rewards=True, **key)
        for _ in range(2):  # the rewards of the batch stay what they are
            assert_close(averaged.value_estimate(data), expected)
    if grouped:
        with pytest.raises(ValueError, match="no 'task': group_key names it"):
            averaged.value_estimate(data.exclude("task"))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_average_advantage(scale: float) -> None:
    """Over all steps, over groups, over valid steps; a tiny spread is not blown up."""
    data, net = rollout((6, 9), seed=5), network()
    data["next", "reward"] *= scale
    for p in net.parameters():
        p.data.mul_(scale)
    data["task"] = torch.tensor([3, 1, 1, 3, 3, 3]).unsqueeze(-1).expand(6, 9)
    raw = gae(value_network=net)(data.clone())
    for given in ({}, {"group_key": "task"}):
        found = gae(value_network=net, average_gae=True, **given)(data.clone())
        group = data["task"].unsqueeze(-1) if given else None
        assert_close(found["advantage"], standardize(raw["advantage"], 1e-4, group=group))
        assert_close(found["value_target"], raw["value_target"])
    found = gae(value_network=net, average_gae=True, shifted=True)(data.clone())
    kept = found["advantage"][found["shifted_valid"]]
    assert len(kept) < 54
    assert abs(statistics.fmean(kept.flatten().tolist())) < 1e-9
    if scale == 1:
        assert abs(statistics.stdev(kept.flatten().tolist()) - 1) < 1e-9
    actor = cases.stochastic(gaussian=True)
    settings = {"gamma": GAMMA, "actor_network": actor, "value_network": net}
    raw = VTrace(**settings)(data.clone())["advantage"]
    found = VTrace(**settings, average_adv=True)(data.clone())["advantage"]
    assert_close(found, standardize(raw, 1e-5))


# --------------------------------------------------------------- single estimators


def test_auto_reset() -> None:
    """s' of a truncated step belongs to the next episode: V(s) stands in."""
    data, estimator = rollout(SHAPE), gae(auto_reset_env=True)
    done, end = data["next", "done"], data["next", "terminated"]
    plain = gae(value_network=estimator.value_network)(data.clone())
    after = plain["next", "state_value"]
    after = torch.where(done & ~end, plain["state_value"], after)
    batch = (plain["state_value"], after, data["next", "reward"], done, end)
    expected = F.generalized_advantage_estimate(GAMMA, LMBDA, *batch)[0]
    assert_close(estimator(data)["advantage"], expected)
    assert not torch.allclose(expected, plain["advantage"])


@pytest.mark.parametrize("agent_dim", [-2, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_agents(agent_dim: int, shared: bool) -> None:
    """Each agent's advantage is GAE with its own values and, in a team, the team's reward."""
    data, agents = rollout(SHAPE), 3
    value, after = torch.randn(2, *SHAPE, agents, 1)
    reward = data["next", "reward"]
    pay = reward if shared else torch.randn(*SHAPE, agents, 1)
    data["state_value"], data["next", "state_value"] = value, after
    data["next", "reward"] = pay
    if not shared:
        for k in ("done", "terminated"):
            data["next", k] = data["next", k].unsqueeze(-2).expand(*SHAPE, agents, 1).contiguous()
    estimator = MultiAgentGAE(value_network=None, gamma=GAMMA, lmbda=LMBDA, agent_dim=agent_dim)
    before = data.clone()
    found = estimator(data)
    assert (data.select(*before.keys(True, True)) == before).all()
    for i in range(agents):
        flags = [data["next", k] for k in ("done", "terminated")]
        own = [reward, *flags] if shared else [x[..., i, :] for x in (pay, *flags)]
        batch = (value[..., i, :], after[..., i, :], *own)
        advantage, target = F.generalized_advantage_estimate(GAMMA, LMBDA, *batch)
        assert_close(found["advantage"][..., i, :], advantage)
        assert_close(found["value_target"][..., i, :], target)


def test_vtrace_needs_log_probabilities_and_spares_the_actor() -> None:
    actor, data = cases.stochastic(gaussian=True), rollout(SHAPE)
    estimator = VTrace(
        gamma=GAMMA, actor_network=actor, value_network=network(), differentiable=True
    )
    with pytest.raises(ValueError, match="no 'action_log_prob': record it with the actions"):
        estimator(data.exclude("action_log_prob"))
    data["next", "reward"].requires_grad_()
    target = estimator(data)["value_target"]
    grads = torch.autograd.grad(target.sum(), list(actor.parameters()), allow_unused=True)
    assert all(g is None for g in grads)
    assert "loc" not in data


def with_critic() -> nn.Module:
    loss = cases.build("iql")
    loss.__dict__["critic_network"] = loss.__dict__["value_network"]
    return loss


def test_wired_to_a_loss() -> None:
    """The critic's and the actor's parameters are those the loss has at the time of the call."""
    loss, data = with_critic(), rollout(SHAPE)
    estimator = VTrace.for_loss(loss, gamma=GAMMA)
    assert estimator.is_stateless
    assert {"action", "observation", "action_log_prob"} < set(estimator.in_keys)
    assert not list(estimator.children())

    def computed() -> Tensor:
        return estimator(data.clone(), params=loss.value_network_params)["advantage"]

    for _ in range(2):
        settings = {
            "actor_network": loss.get_stateful_net("actor_network"),
            "value_network": loss.get_stateful_net("value_network"),
        }
        expected = VTrace(gamma=GAMMA, **settings)(data.clone())["advantage"]
        assert_close(computed(), expected)
        cases.perturb(loss, seed=7)
    other = {k: v.detach() + 0.1 for k, v in loss.tensors().items()}
    with loss.bind(other):
        bound = computed()
    assert not torch.allclose(bound, computed())
    assert isinstance(GAE.for_loss(loss, gamma=0.5, lmbda=0.5), GAE)
    for needing in (GAE, MultiAgentGAE, VTrace):
        with pytest.raises(NotImplementedError, match="SACLoss has no critic_network"):
            needing.for_loss(cases.build("sac"), gamma=GAMMA)
    found = TD1Estimator.for_loss(cases.build("sac"), gamma=GAMMA)
    assert_close(
        found.value_estimate(data, next_value=data["next", "reward"]),
        F.td1_return_estimate(
            GAMMA, *(data["next", k] for k in ("reward", "reward", "done", "terminated"))
        ),
    )


def test_next_state_value() -> None:
    data = rollout((3,))
    reward, end = (data["next", k].squeeze(-1) for k in ("reward", "terminated"))
    net = ValueOperator(nn.Linear(cases.OBS, 1), out_keys=["v"])
    after = net(data["next"].clone())["v"].squeeze(-1)
    expected = reward + 0.5 * (~end).double() * after
    found = next_state_value(data, net, "v", gamma=0.5)
    assert_close(found, expected)
    assert not found.requires_grad
    assert "v" not in data["next"]
    for given in (after, after.unsqueeze(-1)):
        assert_close(next_state_value(data, gamma=0.5, pred_next_val=given), expected)
    data["steps_to_next_obs"] = torch.tensor([[2], [1], [3]])
    found = next_state_value(data, gamma=0.5, pred_next_val=after)
    assert_close(found, reward + torch.tensor([0.25, 0.5, 0.125]) * (~end).double() * after)
    data["next", "terminated"] = torch.ones(3, 1, dtype=torch.bool)
    assert_close(next_state_value(data, pred_next_val=after), reward)
    with pytest.raises(ValueError, match="needs operator or pred_next_val"):
        next_state_value(data)


# ------------------------------------------------------------------------- in losses


@pytest.mark.parametrize("kind", ["td1", "tdlambda"])
@pytest.mark.parametrize("name", cases.ENSEMBLES)
def test_losses(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The critics' loss on [B, T] batches, from V(s') to the reduced number, by slow sums."""
    settings = {"loss_function": "l2"} if name.startswith("xql") else {}
    loss, seen = cases.build(name, reduction="none", **settings), []
    data = torch.stack([cases.batch_for(name, seed) for seed in range(3)])  # steps 1, 2 are ends
    lmbda = {"tdlambda": LMBDA}.get(kind, 1.0)
    loss.make_value_estimator(kind, gamma=GAMMA, **({"lmbda": lmbda} if lmbda < 1 else {}))
    original = loss.bootstrap

    def spy(tensordict: TensorDict, next_value: Tensor) -> Tensor:
        seen.append(next_value.detach())
        return original(tensordict, next_value)

    monkeypatch.setattr(loss, "bootstrap", spy)
    found = loss(data)["loss_qvalue"].reshape(-1, data.numel()).sum(0).tolist()  # over critics
    flags = (data["next", k].squeeze(-1) for k in ("reward", "done", "terminated"))
    target = slowly(slow_lambda, data.shape, -1, GAMMA, lmbda, seen[0], *flags).flatten().tolist()
    out = loss.run_network("qvalue_network", data)
    q = out.get("state_action_value", None)
    q = (out["action_value"] * data["action"]).sum(-1) if q is None else q
    q = q.flatten(1).tolist()
    expected = [
        sum(distance(loss.loss_function, critic[i], goal) for critic in q)
        for i, goal in enumerate(target)
    ]
    assert_close(torch.tensor(found), expected)
    assert set(loss._value_estimator.state_dict()) == {"gamma", "lmbda"} - (
        {"lmbda"} if kind == "td1" else set()
    )


@pytest.mark.parametrize("kind", ["td1", "tdlambda"])
def test_losses_over_stacked_seeds(kind: str) -> None:
    """Seeds side by side, as a training runs them, equal each seed alone; so does a recording."""
    loss = cases.build("iql").make_value_estimator(kind, gamma=GAMMA)
    members = [cases.perturb(cases.CASES["iql"](), seed=s).tensors() for s in (2, 3)]
    data = [rollout(SHAPE, seed=s) for s in (2, 3)]

    def one(bound: dict[str, Tensor], entries: list[Tensor]) -> Tensor:
        batch = TensorDict(dict(zip(FLAT, entries, strict=True)), SHAPE)
        with loss.bind(bound):
            return loss(batch)["loss_qvalue"]

    entries = [[d[k] for k in FLAT] for d in data]
    alone = torch.stack([one(m, e) for m, e in zip(members, entries, strict=True)])
    stacked = {k: torch.stack([m[k].detach() for m in members]) for k in members[0]}
    together = [torch.stack(pair) for pair in zip(*entries, strict=True)]
    assert_close(vmap(one)(stacked, together), alone.detach())
    bound = [{k: v.detach() for k, v in m.items()} for m in members]
    graph = make_fx(one)(bound[0], entries[0])
    assert_close(graph(bound[1], entries[1]), alone[1].detach())


ESTIMATORS = {
    "td1": lambda: TD1Estimator(gamma=GAMMA, value_network=network()),
    "groups": lambda: gae(average_gae=True, shifted=True, group_key="action_id"),
    "vtrace": lambda: VTrace(
        gamma=GAMMA, actor_network=cases.stochastic(gaussian=True), value_network=network()
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_can_be_mapped_traced_and_compiled(name: str) -> None:
    estimator = ESTIMATORS[name]()
    data = [rollout(SHAPE, seed=s) for s in (2, 3)]
    entries = [[d[k] for k in FLAT] for d in data]

    def compute(given: list[Tensor]) -> Tensor:
        batch = TensorDict(dict(zip(FLAT, given, strict=True)), SHAPE)
        batch["action_id"] = (batch["action"][..., 0] > 0).long()
        return estimator(batch)["advantage"]

    alone = torch.stack([compute(e) for e in entries])
    together = [torch.stack(pair) for pair in zip(*entries, strict=True)]
    assert_close(vmap(compute)(together), alone)
    assert_close(make_fx(compute)(entries[0])(entries[1]), alone[1])
    torch._dynamo.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="eager")
    compiled(entries[0])
    assert_close(compiled(entries[1]), alone[1])


def test_subclass_of_a_user() -> None:
    """A few lines make an estimator: here, targets that are the rewards."""

    class Rewards(ValueEstimatorBase):
        def value_estimate(self, tensordict: TensorDict, **ignored: object) -> Tensor:
            return self._reward(tensordict)

    data = rollout(SHAPE)
    found = Rewards(value_network=network())(data)
    assert torch.equal(found["value_target"], data["next", "reward"])
    assert_close(found["advantage"], data["next", "reward"] - data["state_value"])
    with pytest.raises(NotImplementedError):
        ValueEstimatorBase(value_network=network())(data)
