"""DQN, double DQN and C51 against loops over actions and atoms, and against slopes."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rlobj import DistributionalDQNLoss, DQNLoss, LossModule, ValueEstimators
from rlobj.dqn import project_distribution
from rlobj.modules import QValueActor
from rlobj.specs import OneHot
from tests.rlobj import cases, discrete
from tests.rlobj.cases import assert_close, distance, linear, numbers
from tests.rlobj.discrete import ATOMS, DISCRETE, HIGH, LOW, SPACE_OF, SPECS

GAMMA = 0.9
ATOM_VALUES = [LOW + i * (HIGH - LOW) / (ATOMS - 1) for i in range(ATOMS)]


def dqn(space: str = "one_hot", **kwargs: object) -> LossModule:
    loss = DQNLoss(discrete.q_actor(space), **kwargs)
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def slow_dqn(loss: LossModule, data: TensorDict, space: str, kind: str, double: bool) -> dict:
    (online,), (target,) = (numbers(loss, f"{p}value_network_params") for p in ("", "target_"))
    out: dict = {"loss": [], "td_error": []}
    met = set()
    for row in discrete.rows(data, space):
        chooser, judge = linear(online if double else target, row["s2"]), linear(target, row["s2"])
        after = sum(judge[i] for i in discrete.best(chooser, space))
        goal = row["r"] + (0.0 if row["end"] else GAMMA * after)
        q = sum(linear(online, row["s"])[i] for i in row["a"])
        out["loss"].append(distance(kind, q, goal))
        out["td_error"].append((q - goal) ** 2)
        other = discrete.best(linear(target, row["s2"]), space)
        met |= {("same", other == discrete.best(linear(online, row["s2"]), space))}
        met |= {("end", row["end"])}
    assert len(met) == 4, "the batch does not exercise every branch"
    return out


@pytest.mark.parametrize("space", SPECS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["l2", "smooth_l1"])
def test_dqn_by_loop(space: str, double: bool, kind: str) -> None:
    settings = {"double_dqn": double, "loss_function": kind}
    loss, each = (dqn(space, reduction=r, **settings) for r in ("mean", "none"))
    data = discrete.batch(space, n=24)
    expected = slow_dqn(loss, data, space, kind, double)
    value, info = each.qvalue_loss(data)
    assert_close(value, expected["loss"])
    assert_close(info["td_error"], expected["td_error"])
    assert_close(loss(data)["loss"], sum(expected["loss"]) / 24)
    assert_close(data["td_error"], torch.tensor(expected["td_error"]).unsqueeze(-1))


def test_dqn_by_hand() -> None:
    """Q = (1, 2), Q' = (5, 3): r + 0.9 * 5 - 2 = 3.5 alone; double picks 1: 1 + 2.7 - 2 = 1.7."""
    for double, error in ((False, 3.5), (True, 1.7)):
        net = nn.Linear(1, 2, bias=False)
        loss = DQNLoss(net, action_space=OneHot(2), double_dqn=double, loss_function="l1")
        loss.mark_updated()
        loss.make_value_estimator(gamma=0.9)
        for name, weights in (("", [[1.0], [2.0]]), ("target_", [[5.0], [3.0]])):
            key = f"{name}value_network_params.module.0.module.weight"
            loss.tensors()[key].data.copy_(torch.tensor(weights))
        flag, seen = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1)
        after = {"observation": seen, "done": flag, "terminated": flag, "reward": seen}
        entries = {"observation": seen, "action": torch.tensor([[0, 1]]), "next": after}
        value = loss(TensorDict(entries, [1]))["loss"]
        assert_close(value, error)


def test_without_delay_the_target_is_the_online_network() -> None:
    loss, data = dqn(delay_value=False), discrete.batch()
    assert loss.delayed_networks() == []
    assert (loss.delay_value, dqn().delay_value) == (False, True)
    (online,) = numbers(loss, "value_network_params")
    expected = [
        r["r"] + (0.0 if r["end"] else GAMMA * max(linear(online, r["s2"])))
        for r in discrete.rows(data, "one_hot")
    ]
    assert_close(loss.qvalue_loss(data)[1]["target_value"], expected)


def test_n_step_transitions() -> None:
    """gamma^k where the batch says how far the next observation is."""
    loss, data = dqn(), discrete.batch()
    one = loss.qvalue_loss(data)[1]["target_value"] - data["next", "reward"].squeeze(-1)
    data["steps_to_next_obs"] = torch.full((discrete.N, 1), 3)
    three = loss.qvalue_loss(data)[1]["target_value"] - data["next", "reward"].squeeze(-1)
    assert_close(three, one * GAMMA**2)


@pytest.mark.parametrize("double", [False, True])
def test_dqn_gradient(double: bool) -> None:
    loss, data = dqn(double_dqn=double), discrete.batch()
    cases.check_gradient(loss, lambda: loss.qvalue_loss(data)[0], "value_network_params")


@pytest.mark.parametrize("column", [False, True])
def test_categorical_equals_one_hot(column: bool) -> None:
    """The same numbers whether actions are indices, a column of them, or one-hot vectors."""
    for name in ("dqn", "c51"):
        one = discrete.DISCRETE[name](reduction="none")
        kind = discrete.q_actor if name == "dqn" else discrete.c51_actor
        other = (
            DQNLoss(kind("categorical"), reduction="none")
            if name == "dqn"
            else DistributionalDQNLoss(kind("categorical"), gamma=0.9, reduction="none")
        )
        data, index = discrete.batch("one_hot"), discrete.batch("categorical")
        index["action"] = index["action"].unsqueeze(-1) if column else index["action"]
        found = [cases.perturb(x).qvalue_loss(d)[0] for x, d in ((one, data), (other, index))]
        assert_close(found[0], found[1].detach())


# C51


def slow_projection(probs: list[float], returns: list[float]) -> list[float]:
    """Algorithm 1 of Bellemare et al.: each mass is split between the atoms around its return."""
    out, step = [0.0] * ATOMS, ATOM_VALUES[1] - ATOM_VALUES[0]
    for p, t in zip(probs, returns, strict=True):
        place = (min(max(t, LOW), HIGH) - LOW) / step
        low = min(math.floor(place + 1e-12), ATOMS - 1)
        share = place - low
        out[low] += p * (1 - share)
        if share > 0 and low + 1 < ATOMS:
            out[low + 1] += p * share
    return out


def test_projection_by_hand() -> None:
    """Atoms 0, 1, 2: 0.25 and on 1 stay or split; what lies outside goes to the ends."""
    support, probs = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.3, 0.2])
    assert_close(project_distribution(probs, torch.tensor([0.25, 1.0, 9.0]), support),
                 [0.375, 0.425, 0.2])  # fmt: skip
    assert_close(project_distribution(probs, torch.tensor([-4.0, 1.5, 2.0]), support),
                 [0.5, 0.15, 0.35])  # fmt: skip


def test_projection_onto_other_spacings() -> None:
    """Of atoms -1, -0.5, 0 and 1, 4, 7: -0.6 is a fifth of the way down from -0.5, 2 a third up."""
    wide, narrow = torch.tensor([1.0, 4.0, 7.0]), torch.tensor([-1.0, -0.5, 0.0])
    one = torch.ones(1)
    assert_close(project_distribution(one, torch.tensor([-0.6]), narrow), [0.2, 0.8, 0.0])
    assert_close(project_distribution(one, torch.tensor([2.0]), wide), [2 / 3, 1 / 3, 0.0])


def test_projection_by_loop() -> None:
    probs = torch.rand(40, ATOMS).softmax(-1)
    returns = 3 * torch.randn(40, ATOMS)
    returns[0] = torch.tensor(ATOM_VALUES)
    found = project_distribution(probs, returns, torch.tensor(ATOM_VALUES))
    pairs = zip(probs.tolist(), returns.tolist(), strict=True)
    assert_close(found, [slow_projection(p, t) for p, t in pairs])
    assert_close(found.sum(-1), [1.0] * 40)
    assert_close(found[0], probs[0])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_projection_keeps_the_mean_inside_the_support(kind: torch.dtype) -> None:
    probs, support = torch.rand(9, ATOMS).float().softmax(-1), torch.tensor(ATOM_VALUES)
    returns = ((HIGH - LOW) * torch.rand(9, ATOMS) + LOW).to(kind)
    found = project_distribution(probs, returns, support).double()
    torch.testing.assert_close((found * support).sum(-1), (probs * returns).double().sum(-1))


def test_projection_of_a_return_that_is_not_finite() -> None:
    """It shows in the loss and breaks no index; infinities are clipped."""
    bad = torch.tensor([[float("nan"), HIGH], [float("inf"), LOW]])
    found = project_distribution(torch.full((2, 2), 0.5), bad, torch.tensor(ATOM_VALUES))
    assert found[0].isnan().any() and found[1, [0, -1]].tolist() == [0.5, 0.5]


def c51(space: str = "one_hot", **kwargs: object) -> LossModule:
    loss = DistributionalDQNLoss(discrete.c51_actor(space), gamma=GAMMA, **kwargs)
    return cases.perturb(loss)


def distributions(net: tuple[list, list], observation: list[float]) -> list[list[float]]:
    """``[action][atom]``."""
    logits = linear(net, observation)
    actions = discrete.ACTIONS
    return [
        discrete.softmax([logits[i * actions + a] for i in range(ATOMS)]) for a in range(actions)
    ]


def mean(probs: list[float]) -> float:
    return sum(p * z for p, z in zip(probs, ATOM_VALUES, strict=True))


def slow_c51(loss: LossModule, data: TensorDict, space: str, steps: list[int]) -> list[float]:
    (online,), (target,) = (numbers(loss, f"{p}value_network_params") for p in ("", "target_"))
    out, met = [], set()
    for row, k in zip(discrete.rows(data, space), steps, strict=True):
        means = [[mean(p) for p in distributions(net, row["s2"])] for net in (online, target)]
        best = means[0].index(max(means[0]))
        discount = 0.0 if row["end"] else GAMMA**k
        returns = [row["r"] + discount * z for z in ATOM_VALUES]
        goal = slow_projection(distributions(target, row["s2"])[best], returns)
        now = distributions(online, row["s"])[row["a"][0]]
        out.append(-sum(m * math.log(p) for m, p in zip(goal, now, strict=True)))
        met |= {("same", best == means[1].index(max(means[1]))), ("end", row["end"])}
        met |= {("outside", max(returns) > HIGH or min(returns) < LOW)}
    assert len(met) == 6, "the batch does not exercise every branch"
    return out


@pytest.mark.parametrize("space", ["one_hot", "categorical"])
@pytest.mark.parametrize("n_step", [False, True])
def test_c51_by_loop(space: str, n_step: bool) -> None:
    loss, each = (c51(space, reduction=r) for r in ("mean", "none"))
    data, steps = discrete.batch(space, n=24), [1] * 24
    data["next", "reward"] *= 0.3
    if n_step:
        steps = [1 + i % 3 for i in range(24)]
        data["steps_to_next_obs"] = torch.tensor(steps).unsqueeze(-1)
    expected = slow_c51(loss, data, space, steps)
    assert_close(each.qvalue_loss(data)[0], expected)
    assert_close(loss(data)["loss"], sum(expected) / 24)
    assert_close(data["td_error"], torch.tensor(expected).unsqueeze(-1))


def test_c51_without_termination() -> None:
    """``done`` stands in where the batch does not tell how an episode ended."""
    loss, data = c51(), discrete.batch()
    ended = data.clone()
    ended["next", "terminated"] = data["next", "done"]
    expected = loss.qvalue_loss(ended)[1]["target"]
    assert (loss.qvalue_loss(data)[1]["target"] - expected).abs().max() > 1e-3
    assert_close(loss.qvalue_loss(data.exclude(("next", "terminated")))[1]["target"], expected)


def test_c51_gradient() -> None:
    loss, data = c51(), discrete.batch()
    at = cases.leaves(loss)

    def compute(**replaced: Tensor) -> Tensor:
        with loss.bind({**at, **{k.replace("__", "."): v for k, v in replaced.items()}}):
            return loss.qvalue_loss(data)[0].sum()

    grads = torch.autograd.grad(compute(), list(at.values()), allow_unused=True)
    found = {k: g for k, g in zip(at, grads, strict=True) if g is not None}
    layer = "value_network_params.module.0.module.lin"
    assert set(found) == {f"{layer}.weight", f"{layer}.bias"}
    for name, grad in found.items():
        key = name.replace(".", "__")
        slope = cases.central_difference(
            lambda x, key=key: compute(**{key: x}).item(), at[name], 1e-5
        )
        torch.testing.assert_close(grad, slope, rtol=1e-5, atol=1e-7)


def test_discount_is_a_buffer_that_can_be_assigned() -> None:
    loss, data = c51(), discrete.batch()
    tensor, before = loss.gamma, loss.qvalue_loss(data)[1]["target"]
    loss.gamma = 0.5
    assert loss.gamma is tensor
    assert loss.state_dict()["gamma"] == 0.5
    assert (loss.qvalue_loss(data)[1]["target"] - before).abs().max() > 1e-3
    loss.make_value_estimator(gamma=GAMMA)
    assert_close(loss.qvalue_loss(data)[1]["target"], before)


def test_windows_of_time() -> None:
    """A batch [B, T] is B T transitions."""
    for loss in (dqn(reduction="none"), c51(reduction="none")):
        flat = discrete.batch(n=6)
        assert_close(
            loss.qvalue_loss(flat.reshape(2, 3))[0].reshape(6), loss.qvalue_loss(flat)[0].detach()
        )


# errors


def test_unknown_action_spaces() -> None:
    net = TensorDictModule(nn.Linear(3, 5), in_keys=["observation"], out_keys=["action_value"])
    with pytest.raises(ValueError, match="cannot tell the action space"):
        DQNLoss(net)
    with pytest.raises(ValueError, match="is no discrete action space"):
        DQNLoss(net, action_space="continuous")
    with pytest.raises(ValueError, match="action space is unknown"):
        DQNLoss(nn.Linear(3, 5))
    with pytest.raises(ValueError, match="'categorical' is not the network's, 'one_hot'"):
        DQNLoss(discrete.q_actor(), action_space="categorical", double_dqn=True)
    net.spec = None
    with pytest.warns(UserWarning, match="one-hot is assumed"):
        assert DQNLoss(net).action_space == "one_hot"


@pytest.mark.parametrize("known", [{"spec": OneHot(5)}, {"action_space": "one_hot"}])
def test_action_space_of_the_network(known: dict) -> None:
    """Its spec or its name is enough."""
    net = TensorDictModule(nn.Linear(3, 5), in_keys=["observation"], out_keys=["action_value"])
    for name, value in known.items():
        setattr(net, name, value)
    assert DQNLoss(net).action_space == "one_hot"


def test_a_network_that_writes_no_greedy_value_is_named() -> None:
    net = TensorDictModule(nn.Linear(3, 5), in_keys=["observation"], out_keys=["action_value"])
    loss = DQNLoss(net, action_space="one-hot")
    loss.mark_updated()
    with pytest.raises(KeyError, match="chosen_action_value"):
        loss(discrete.batch())


def test_arguments_that_moved() -> None:
    with pytest.raises(TypeError, match="make_value_estimator"):
        DQNLoss(discrete.q_actor(), gamma=0.9)
    for build in (DQNLoss, lambda net, **kw: DistributionalDQNLoss(net, gamma=0.9, **kw)):
        with pytest.raises(RuntimeError, match="set_keys"):
            build(discrete.c51_actor(), priority_key="p")
    with pytest.raises(ValueError, match=r"double_dqn=True requires delay_value=True"):
        DQNLoss(discrete.q_actor(), double_dqn=True, delay_value=False)


def test_estimators_that_do_not_fit() -> None:
    for name in ("gae", "vtrace", ValueEstimators.MAGAE):
        with pytest.raises(NotImplementedError, match="DQNLoss cannot use"):
            dqn().make_value_estimator(name)
    dqn().make_value_estimator("tdlambda", lmbda=0.5)
    with pytest.raises(NotImplementedError, match="cannot use"):
        c51().make_value_estimator("td1")
    with pytest.raises(KeyError):
        c51().make_value_estimator("nonsense")


@pytest.mark.parametrize("support", [[0.0, 1.0, 3.0], [2.0, 1.0, 0.0], [1.0]])
def test_uneven_support_is_refused(support: list[float]) -> None:
    net = discrete.c51_actor()
    net.support = torch.tensor(support)
    with pytest.raises(ValueError, match="ascending in even steps"):
        DistributionalDQNLoss(net, gamma=0.9)


def test_c51_refuses_what_it_cannot_learn() -> None:
    with pytest.raises(TypeError, match="DistributionalQValueActor"):
        DistributionalDQNLoss(discrete.q_actor(), gamma=0.9)
    with pytest.raises(NotImplementedError, match="mult_one_hot"):
        DistributionalDQNLoss(discrete.c51_actor("mult_one_hot"), gamma=0.9)


# seeds, tracing, examples


@pytest.mark.parametrize("name", DISCRETE)
def test_seeds_can_be_vmapped_and_an_update_traced(name: str) -> None:
    losses = [cases.perturb(DISCRETE[name](), seed) for seed in (1, 2)]
    data = discrete.batch(SPACE_OF.get(name, "one_hot"))
    keys = [k for k in losses[0].out_keys if k.startswith("loss")]

    def compute(tensors: dict[str, Tensor], given: TensorDict) -> Tensor:
        with losses[0].bind(tensors):
            out = losses[0](given.clone())
        return torch.stack([out[k] for k in keys])

    alone = [compute(x.tensors(), data).detach() for x in losses]
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    each = [{k: v.detach() for k, v in x.tensors().items()} for x in losses]
    stacked = {k: torch.stack([t[k] for t in each]) for k in each[0]}
    assert_close(torch.func.vmap(compute, (0, None))(stacked, data), torch.stack(alone))

    def of_batch(*entries: Tensor) -> Tensor:
        return compute(each[0], TensorDict(dict(zip(names, entries, strict=True)), data.batch_size))

    names = list(data.keys(True, True))
    other = discrete.batch(SPACE_OF.get(name, "one_hot"), seed=5)
    traced = make_fx(of_batch)(*(data[k] for k in names))
    assert_close(traced(*(other[k] for k in names)), compute(each[0], other))


def test_example_of_the_documentation() -> None:
    spec = OneHot(4)
    actor = QValueActor(nn.Linear(3, 4), in_keys=["observation"], action_space=spec)
    loss = DQNLoss(actor, action_space=spec)
    loss.mark_updated()
    flag = torch.zeros(10, 1, dtype=torch.bool)
    data = TensorDict(
        {
            "observation": torch.randn(10, 3),
            "action": spec.rand([10]),
            "next": {"observation": torch.randn(10, 3), "done": flag, "terminated": flag,
                     "reward": torch.randn(10, 1)},
        },
        [10],
    )  # fmt: skip
    assert loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.9, lmbda=0.9) is loss
    out = loss(data)
    assert list(out.keys()) == ["loss"]
    assert out["loss"].shape == ()
