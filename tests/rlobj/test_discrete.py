"""Discrete CQL and IQL, and CQL's switch to torchrl's value, against loops and slopes."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import rlobj.cql
import rlobj.iql
from rlobj import CQLLoss, DiscreteCQLLoss, DiscreteIQLLoss, LossModule
from rlobj.discrete_cql import soft_maximum
from rlobj.modules import OneHotCategorical, ProbabilisticActor, SafeModule
from rlobj.specs import OneHot
from tests.rlobj import cases, discrete
from tests.rlobj.cases import assert_close, distance, linear, numbers, taped
from tests.rlobj.discrete import JOINT, SPECS

GAMMA, TAU, BETA = 0.9, 0.8, 3.0


# CQL


def cql(space: str, **kwargs: object) -> LossModule:
    loss = DiscreteCQLLoss(discrete.q_actor(space), **kwargs)
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


@pytest.mark.parametrize("space", SPECS)
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_cql_by_loop(space: str, kind: str) -> None:
    """Eq. 4: log of the sum over all joint actions, and half the Bellman error."""
    loss, each = (cql(space, loss_function=kind, reduction=r) for r in ("mean", "none"))
    data = discrete.batch(space, n=16)
    (online,), (target,) = (numbers(loss, f"{p}value_network_params") for p in ("", "target_"))
    penalty, bellman, errors, scores, goals = [], [], [], [], []
    for row in discrete.rows(data, space):
        q = linear(online, row["s"])
        total = sum(math.exp(sum(q[i] for i in action)) for action in JOINT[space])
        now = sum(q[i] for i in row["a"])
        after = max(sum(linear(target, row["s2"])[i] for i in a) for a in JOINT[space])
        goal = row["r"] + (0.0 if row["end"] else GAMMA * after)
        penalty.append(math.log(total) - now)
        bellman.append(0.5 * distance(kind, now, goal))
        errors.append((now - goal) ** 2)
        scores.append(q)
        goals.append(goal)
    assert_close(each.cql_loss(data)[0], penalty)
    value, info = each.value_loss(data)
    assert_close(value, bellman)
    assert_close(info["td_error"], errors)
    out = loss(data)
    assert_close(out["loss_cql"], sum(penalty) / 16)
    assert_close(out["loss_qvalue"], sum(bellman) / 16)
    assert_close(data["td_error"], torch.tensor(errors).unsqueeze(-1))
    assert_close(data["pred_val"], scores)
    assert_close(out["td_error"], [sum(errors) / 16])
    assert_close(out["pred_value"], sum(map(sum, scores)) / (16 * discrete.ACTIONS))
    assert_close(out["target_value"], sum(goals) / 16)
    assert not data["pred_val"].requires_grad


def test_an_old_prediction_in_the_batch_is_not_trusted() -> None:
    loss, data = cql("one_hot", reduction="none"), discrete.batch()
    fresh = loss.cql_loss(data)[0]
    data["pred_val"] = torch.zeros(discrete.N, discrete.ACTIONS)
    assert_close(loss.cql_loss(data)[0], fresh.detach())


@pytest.mark.parametrize("term", ["value_loss", "cql_loss"])
def test_cql_gradient(term: str) -> None:
    loss, data = cql("mult_one_hot"), discrete.batch("mult_one_hot")
    cases.check_gradient(loss, lambda: getattr(loss, term)(data)[0], "value_network_params")


def test_upstream_bootstraps_from_the_online_network() -> None:
    loss, data = cql("one_hot", upstream=True), discrete.batch(n=16)
    (online,) = numbers(loss, "value_network_params")
    goals = [
        row["r"] + (0.0 if row["end"] else GAMMA * max(linear(online, row["s2"])))
        for row in discrete.rows(data, "one_hot")
    ]
    assert_close(loss.value_loss(data)[1]["target_value"], goals)


def test_soft_maximum_of_equal_choices() -> None:
    """Widths as a list, or one for all: log(e + e^2) + log(e^3 + e^4) either way."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = math.log(math.e + math.e**2) + math.log(math.e**3 + math.e**4)
    for widths in (2, [2, 2]):
        assert_close(soft_maximum(values, "mult_one_hot", widths), expected)


def test_cql_errors() -> None:
    with pytest.raises(TypeError, match="make_value_estimator"):
        DiscreteCQLLoss(discrete.q_actor(), gamma=0.9)
    with pytest.raises(NotImplementedError, match="DiscreteCQLLoss cannot use"):
        cql("one_hot").make_value_estimator("gae")
    net = SafeModule(nn.Linear(3, 5), ["observation"], ["action_value"])
    with pytest.raises(ValueError, match="MultiOneHot"):
        DiscreteCQLLoss(net, action_space="mult-one-hot")
    assert not DiscreteCQLLoss(discrete.q_actor(), delay_value=False).delayed_networks()


# IQL


def iql(space: str, **kwargs: object) -> LossModule:
    loss = discrete.discrete_iql(space, expectile=TAU, temperature=BETA, **kwargs)
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def slow_iql(loss: LossModule, data: TensorDict, space: str) -> dict:
    actor, v = (numbers(loss, f"{n}_network_params")[0] for n in ("actor", "value"))
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    out: dict = {k: [] for k in ("actor", "value", "qvalue", "td_error", "log_prob")}
    met = set()
    for row in discrete.rows(data, space):
        (a,) = row["a"]
        old = [linear(q, row["s"])[a] for q in target]
        u = min(old) - linear(v, row["s"])[0]
        log_prob = math.log(discrete.softmax(linear(actor, row["s"]))[a])
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(v, row["s2"])[0])
        now = [linear(q, row["s"])[a] for q in online]
        out["value"].append((TAU if u > 0 else 1 - TAU) * u * u)
        out["actor"].append(-min(math.exp(BETA * u), 100.0) * log_prob)
        out["log_prob"].append(log_prob)
        out["qvalue"].append(sum(distance("smooth_l1", q, goal) for q in now))
        out["td_error"].append(max((q - goal) ** 2 for q in now))
        met |= {("above", u > 0), ("end", row["end"]), ("smaller", old.index(min(old)))}
        met |= {("capped", math.exp(BETA * u) > 100.0)}
    assert len(met) == 8, "the batch does not exercise every branch"
    return out


@pytest.mark.parametrize(
    ("space", "column"), [("one_hot", False), ("categorical", False), ("categorical", True)]
)
def test_iql_by_loop(space: str, column: bool) -> None:
    loss, each, data = iql(space), iql(space, reduction="none"), discrete.batch(space, n=40)
    expected = slow_iql(loss, data, space)
    if column:
        data["action"] = data["action"].unsqueeze(-1)
    for term in ("actor", "value", "qvalue"):
        assert_close(getattr(each, f"{term}_loss")(data)[0], expected[term])
    out = loss(data)
    for term in ("actor", "value", "qvalue"):
        assert_close(out[f"loss_{term}"], sum(expected[term]) / 40)
    assert_close(out["entropy"], -sum(expected["log_prob"]) / 40)
    assert_close(data["td_error"], expected["td_error"])
    assert_close(data["_log_prob"], expected["log_prob"])


def test_iql_on_batches_that_end_in_an_axis_of_one() -> None:
    loss, data = iql("categorical", reduction="none"), discrete.batch("categorical", n=6)
    flat = loss.actor_loss(data)[0].detach()
    assert_close(loss.actor_loss(data.reshape(6, 1))[0], flat.unsqueeze(-1))


@pytest.mark.parametrize("space", ["mult_one_hot", "binary"])
def test_iql_critics_add_up_composed_actions(space: str) -> None:
    loss, data = iql("one_hot", action_space=space), discrete.batch(space)
    v, critics = numbers(loss, "value_network_params")[0], numbers(loss, "qvalue_network_params")
    errors = []
    for row in discrete.rows(data, space):
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(v, row["s2"])[0])
        now = [sum(linear(q, row["s"])[i] for i in row["a"]) for q in critics]
        errors.append([(q - goal) ** 2 for q in now])
    assert_close(loss.qvalue_loss(data)[1]["td_error"].T, errors)


@pytest.mark.parametrize("term", ["actor", "value", "qvalue"])
@pytest.mark.parametrize("space", ["one_hot", "categorical"])
def test_iql_gradients(term: str, space: str) -> None:
    loss, data = iql(space), discrete.batch(space)
    method = getattr(loss, f"{term}_loss")
    cases.check_gradient(loss, lambda: method(data)[0], f"{term}_network_params")


def test_iql_action_space() -> None:
    networks = discrete.policy("categorical"), discrete.critic(), cases.value()
    assert DiscreteIQLLoss(*networks).action_space == "categorical"
    assert DiscreteIQLLoss(*networks, action_space=OneHot(5)).action_space == "one_hot"
    networks[0].spec = None
    with pytest.warns(UserWarning, match="DiscreteIQLLoss: action_space is unknown, one-hot"):
        assert DiscreteIQLLoss(*networks).action_space == "one_hot"
    with pytest.raises(ValueError, match="expectile must lie"):
        discrete.discrete_iql(expectile=1.0)
    with pytest.raises(TypeError, match="make_value_estimator"):
        discrete.discrete_iql(gamma=0.9)
    with pytest.raises(RuntimeError, match="set_keys"):
        discrete.discrete_iql(priority_key="p")


def test_iql_example_of_the_documentation() -> None:
    spec = OneHot(4)
    module = SafeModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(
        module=module,
        in_keys=["logits"],
        out_keys=["action"],
        spec=spec,
        distribution_class=OneHotCategorical,
    )
    qvalue = SafeModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["state_action_value"])
    value = SafeModule(nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
    loss = DiscreteIQLLoss(actor, qvalue, value)
    loss.mark_updated()
    given = {
        "observation": torch.randn(2, 3),
        "action": spec.rand([2]).long(),
        "next_done": torch.zeros(2, 1, dtype=torch.bool),
        "next_terminated": torch.zeros(2, 1, dtype=torch.bool),
        "next_observation": torch.zeros(2, 3),
        "next_reward": torch.randn(2, 1),
    }
    loss_actor, _, _, entropy = loss(**given)
    loss_actor.backward()
    assert entropy > 0
    loss.select_out_keys("loss_actor", "loss_qvalue", "loss_value")
    assert len(loss(**given)) == 3


def test_losses_are_found_where_upstream_has_them() -> None:
    assert rlobj.cql.DiscreteCQLLoss is DiscreteCQLLoss
    assert rlobj.iql.DiscreteIQLLoss is DiscreteIQLLoss


# CQL with torchrl's value of the penalty

SAMPLES, TEMPERATURE, WEIGHT = 4, 0.7, 5.0


def continuous(**kwargs: object) -> LossModule:
    settings = {"num_random": SAMPLES, "temperature": TEMPERATURE, "min_q_weight": WEIGHT}
    loss = CQLLoss(cases.stochastic(), cases.critic(), **settings, upstream=True, **kwargs)
    return cases.perturb(loss)


def noise_of_rows() -> list[Tensor]:
    """Uniform actions, then pi(s), then pi(s'): upstream's order, each [states, rows, a]."""
    shape = (cases.N, SAMPLES, cases.ACT)
    return [torch.rand(shape), 0.5 * torch.randn(shape), 0.5 * torch.randn(shape)]


def slow_upstream(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> list[list[list]]:
    """``[critic][state][row]``: T log of the sum over the three actions of a row, of every row of
    every state, less Q(s, a) of the one state."""
    actor, gaps = numbers(loss, "actor_network_params")[0], []
    uniform, here, there = (x.tolist() for x in tape)
    for net in numbers(loss, "qvalue_network_params"):
        soft = []
        for i, row in enumerate(cases.rows(data)):
            for j in range(SAMPLES):
                pi, log_pi = cases.draw_action(actor, row["s"], here[i][j])
                pi2, log_pi2 = cases.draw_action(actor, row["s2"], there[i][j])
                terms = [
                    (row["s"], [2 * u - 1 for u in uniform[i][j]], math.log(0.5**cases.ACT)),
                    (row["s"], pi, log_pi),
                    (row["s2"], pi2, log_pi2),
                ]
                total = sum(
                    math.exp((linear(net, s, a)[0] - log_mu) / TEMPERATURE)
                    for s, a, log_mu in terms
                )
                soft.append(TEMPERATURE * math.log(total))
        q = [linear(net, row["s"], row["a"])[0] for row in cases.rows(data)]
        gaps.append([[WEIGHT * (x - q_i) for x in soft] for q_i in q])
    return gaps


@pytest.mark.parametrize("lagrange", [False, True])
def test_upstream_penalty_by_loop(lagrange: bool) -> None:
    """alpha' leaves the penalty as it is, and is itself tuned as in the paper's form."""
    loss = continuous(with_lagrange=lagrange, lagrange_thresh=1.5, reduction="none")
    data, tape = cases.batch(), noise_of_rows()
    expected = slow_upstream(loss, data, tape)
    value, info = taped(tape, loss.cql_loss, data)
    means = [[sum(rows) / len(rows) for rows in states] for states in expected]
    assert_close(value, [a + b for a, b in zip(*means, strict=True)])
    assert_close(info["cql_gap"], expected)
    if lagrange:
        loss.log_alpha_prime.data.fill_(0.4)
        assert_close(taped(tape, loss.cql_loss, data)[0], value.detach())
        dual = loss.alpha_prime_loss(info["cql_gap"])[0]
        mean = [(a + b) / 2 - 1.5 for a, b in zip(*means, strict=True)]
        assert_close(dual.mean(-1), [-math.exp(0.4) * m for m in mean])


def test_upstream_penalty_gradient() -> None:
    loss, data, tape = continuous(), cases.batch(), noise_of_rows()
    cases.check_gradient(loss, lambda: taped(tape, loss.cql_loss, data)[0], "qvalue_network_params")


def test_the_papers_penalty_is_the_default() -> None:
    theirs, data = continuous(reduction="none"), cases.batch()
    ours = CQLLoss(cases.stochastic(), cases.critic(), num_random=SAMPLES, reduction="none")
    assert theirs.upstream and not ours.upstream
    cases.perturb(ours)
    flat = taped(noise_of_rows(), theirs.cql_loss, data)[0]
    tape = cases.tape_for(ours, data)[1:4]
    assert (taped(tape, ours.cql_loss, data)[0] - flat).abs().min() > 1e-3


def test_upstream_penalty_on_windows_of_time() -> None:
    loss, flat = continuous(reduction="none"), cases.batch(n=6)
    tape = [torch.rand(6, SAMPLES, cases.ACT) for _ in range(3)]
    split = [x.reshape(2, 3, SAMPLES, cases.ACT) for x in tape]
    value = taped(split, loss.cql_loss, flat.reshape(2, 3))[0]
    assert_close(value.reshape(6), taped(tape, loss.cql_loss, flat)[0].detach())
