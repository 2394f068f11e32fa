"""TD3BCLoss against arithmetic by hand, against loops, and against finite differences."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rlobj import LossModule, TD3BCLoss
from rlobj.modules import Actor, ValueOperator
from tests.rlobj import cases
from tests.rlobj.cases import HIGH, LOW, assert_close, linear, numbers, rows, taped

POLICY_NOISE, NOISE_CLIP, ALPHA, GAMMA = 0.7, 0.5, 2.5, 0.9


def built(**kwargs: object) -> LossModule:
    settings = {"policy_noise": POLICY_NOISE, "noise_clip": NOISE_CLIP, "alpha": ALPHA}
    loss = cases.build("td3_bc", **{**settings, **kwargs})
    return loss.make_value_estimator(gamma=GAMMA)


class Scalar(nn.Module):
    """Q(s, a) = x s + y a for one-dimensional s and a."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[x, y]]))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return nn.functional.linear(torch.cat([observation, action], -1), self.w)


def by_hand() -> tuple[LossModule, TensorDict]:
    """pi(s) = s/2; Q1 = s + 2a, Q2 = 3s - a; two transitions, the second terminal."""
    actor = Actor(nn.Linear(1, 1, bias=False))
    actor.module.weight.data.fill_(0.5)
    critics = [
        ValueOperator(Scalar(*w), ["observation", "action"]) for w in [(1.0, 2.0), (3.0, -1.0)]
    ]
    settings = {"loss_function": "l2", "alpha": 2.5, "reduction": "none"}
    loss = TD3BCLoss(actor, critics, bounds=(-1.0, 1.0), **settings)
    loss.make_value_estimator(gamma=0.9).mark_updated()
    column = {k: torch.tensor(v).unsqueeze(-1) for k, v in {
        "s": [1.0, -2.0], "a": [0.25, 1.0], "r": [1.0, 5.0], "s2": [4.0, 2.0],
        "end": [False, True],
    }.items()}  # fmt: skip
    after = {"observation": column["s2"], "reward": column["r"], "terminated": column["end"]}
    after["done"] = column["end"]
    data = {"observation": column["s"], "action": column["a"], "next": TensorDict(after, [2])}
    return loss, TensorDict(data, [2])


def test_actor_by_hand() -> None:
    loss, data = by_hand()
    value, info = loss.actor_loss(data)
    # pi = (0.5, -1), Q1 = (1 + 1, -2 - 2), lambda = 2.5 / 3, bc = (0.25^2 + 2^2) / 2
    bc, lmbd = (0.0625 + 4.0) / 2, 2.5 / 3
    assert_close(info["lmbd"], lmbd)
    assert_close(info["bc_loss"], bc)
    assert_close(value, [-lmbd * 2 + bc, lmbd * 4 + bc])
    assert_close(info["state_action_value_actor"], [2.0, -4.0])


def test_critic_by_hand() -> None:
    loss, data = by_hand()
    # noise 0.2 * (-1, 9) = (-0.2, 1.8 -> 0.5); pi(s') = (2, 1): actions clipped to (1, 1)
    value, info = taped([torch.tensor([[-1.0], [9.0]])], loss.qvalue_loss, data)
    # Q' = (4 + 2, 2 + 2) and (12 - 1, 6 - 1): the smaller is 6 and 4
    assert_close(info["next_state_value"], [6.0, 4.0])
    assert_close(info["target_value"], [1 + 0.9 * 6, 5.0])
    assert_close(info["pred_value"], [[1.5, 0.0], [2.75, -7.0]])
    assert_close(value, [(1.5 - 6.4) ** 2 + (2.75 - 6.4) ** 2, 5.0**2 + 12.0**2])
    assert_close(info["td_error"], [[4.9**2, 5.0**2], [3.65**2, 12.0**2]])


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def slow_critic(loss: LossModule, data: TensorDict, eps: list[list[float]], kind: str) -> dict:
    """Per-sample loss by loops (Fujimoto et al. 2018, algorithm 1), and what the loop met."""
    actor = numbers(loss, "target_actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    met, losses, errors = set(), [], []
    for row, noise in zip(rows(data), eps, strict=True):
        action = []
        for j, mean in enumerate(linear(actor, row["s2"])):
            e = clip(POLICY_NOISE * noise[j], -NOISE_CLIP, NOISE_CLIP)
            action.append(clip(mean + e, LOW[j], HIGH[j]))
            met |= {("noise", e > 0)} if abs(e) == NOISE_CLIP else set()
            met |= {("bound", mean + e > HIGH[j])} if action[-1] != mean + e else {"inside"}
        after = [linear(q, row["s2"], action)[0] for q in target]
        met.add(("smaller", after.index(min(after))))
        goal = row["r"] + (0.0 if row["end"] else GAMMA * min(after))
        now = [linear(q, row["s"], row["a"])[0] for q in online]
        losses.append(sum(cases.distance(kind, q, goal) for q in now))
        errors.append([(q - goal) ** 2 for q in now])
        met |= {("far", abs(q - goal) > 1) for q in now}
    return {"loss": losses, "td_error": errors, "met": met}


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_critic_by_loop(kind: str) -> None:
    loss, data = built(loss_function=kind, reduction="none"), cases.batch(n=24)
    eps = torch.randn(24, cases.ACT)
    value, info = taped([eps], loss.qvalue_loss, data)
    slow = slow_critic(loss, data, eps.tolist(), kind)
    assert_close(value, slow["loss"])
    assert_close(info["td_error"].T, slow["td_error"])
    pairs = {(what, which) for what in ("noise", "bound", "smaller", "far") for which in (0, 1)}
    assert pairs | {"inside"} <= slow["met"], "the batch does not exercise every branch"


def slow_actor(actor: tuple, q1: tuple, data: TensorDict, lmbd: float | None = None) -> list[float]:
    actions = [linear(actor, row["s"]) for row in rows(data)]
    values = [linear(q1, row["s"], a)[0] for row, a in zip(rows(data), actions, strict=True)]
    squares = [
        (p - b) ** 2
        for row, a in zip(rows(data), actions, strict=True)
        for p, b in zip(a, row["a"], strict=True)
    ]
    bc = sum(squares) / len(squares)
    lmbd = ALPHA / (sum(abs(v) for v in values) / len(values)) if lmbd is None else lmbd
    return [-lmbd * v + bc for v in values]


def test_actor_by_loop() -> None:
    loss, data = built(reduction="none"), cases.batch(n=12)
    actor = numbers(loss, "actor_network_params")[0]
    q1 = numbers(loss, "qvalue_network_params")[0]
    assert_close(loss.actor_loss(data)[0], slow_actor(actor, q1, data))


def test_forward_reduces_terms_and_writes_priority() -> None:
    loss, each, data = built(), built(reduction="none"), cases.batch()
    tape = cases.tape_for(loss, data)
    out = taped(tape, loss, data)
    critic, info = taped(tape, each.qvalue_loss, data)
    actor, actor_info = each.actor_loss(data)
    assert_close(out["loss_qvalue"], critic.mean())
    assert_close(out["loss_actor"], actor.mean())
    assert_close(data["td_error"], info.pop("td_error").max(0).values)
    for name, expected in {**info, **actor_info}.items():
        assert_close(out[name], expected)
        assert not out[name].requires_grad


def test_critic_gradient() -> None:
    loss, data = built(), cases.batch()
    tape = cases.tape_for(loss, data)
    cases.check_gradient(
        loss, lambda: taped(tape, loss.qvalue_loss, data)[0], "qvalue_network_params"
    )


def test_actor_gradient_holds_lambda_and_critic_fixed() -> None:
    loss, data = built(reduction="none"), cases.batch()
    at = cases.leaves(loss)
    with loss.bind(at):
        value, info = loss.actor_loss(data)
    grads = torch.autograd.grad(value.sum(), list(at.values()), allow_unused=True)
    found = {k: g for k, g in zip(at, grads, strict=True) if g is not None}
    weight, bias = (f"actor_network_params.module.{k}" for k in ("weight", "bias"))
    assert set(found) == {weight, bias}
    q1, lmbd = numbers(loss, "qvalue_network_params")[0], info["lmbd"].item()

    def total(w: Tensor, b: Tensor) -> float:
        return sum(slow_actor((w.tolist(), b.tolist()), q1, data, lmbd))

    by_weight = cases.central_difference(lambda w: total(w, at[bias]), at[weight])
    by_bias = cases.central_difference(lambda b: total(at[weight], b), at[bias])
    torch.testing.assert_close(found[weight], by_weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[bias], by_bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("which", ["actor", "qvalue"])
def test_without_delay_the_target_is_the_online_network(which: str) -> None:
    loss, data, twin = built(**{f"delay_{which}": False}), cases.batch(), built()
    assert not any(k.startswith(f"target_{which}") for k in loss.state_dict())
    own = {k: v.detach() for k, v in loss.tensors().items()}
    for name, tensor in twin.tensors().items():
        tensor.data.copy_(own[name] if name in own else own[name.removeprefix("target_")])
    tape, results = cases.tape_for(loss, data), []
    for module in (loss, twin):
        value = taped(tape, module.qvalue_loss, data)[0].sum()
        online = [v for k, v in module.named_parameters() if k.startswith("qvalue")]
        results.append([value, *torch.autograd.grad(value, online)])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


def test_padding_has_no_say_in_the_actor_loss() -> None:
    """lambda and the cloning term are means over the batch: over its valid part."""
    loss, data = built(), cases.batch(n=8)
    valid = torch.tensor([True, True, False, True, False, True, True, True])
    alone = taped([torch.zeros(6, 2)], loss, data[valid])
    data["observation"][~valid] = 100.0
    data["collector", "mask"] = valid
    masked = taped([torch.zeros(8, 2)], loss, data)
    for name in ("loss_actor", "loss_qvalue", "bc_loss", "lmbd"):
        assert_close(masked[name], alone[name])


def test_default_noise_is_normal_and_drawn_anew() -> None:
    loss, data = cases.build("td3_bc", bounds=(-50.0, 50.0), action_spec=None), cases.batch(n=4000)
    loss.noise_clip = math.inf
    for k, v in loss.tensors().items():
        if k.startswith("target_qvalue") and k.endswith("weight"):
            v.data.zero_()[..., -1] = 1.0
    q = torch.stack([loss.qvalue_loss(data)[1]["next_state_value"] for _ in range(2)])
    spread = (q[0] - q[1]).std().item()
    assert spread == pytest.approx(0.2 * math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [((1.0, 1.0), "low must be below high"), ((1.0,), r"must be \(low, high\)"),
     (3.0, r"must be \(low, high\)")],
)  # fmt: skip
def test_bounds_are_checked(bounds: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases.CASES["td3_bc"](action_spec=None, bounds=bounds)


@pytest.mark.parametrize("given", [{}, {"action_spec": cases.spec(), "bounds": (-1.0, 1.0)}])
def test_exactly_one_of_spec_and_bounds(given: dict) -> None:
    with pytest.raises(ValueError, match="exactly one of action_spec and bounds"):
        TD3BCLoss(cases.deterministic(), cases.critic(), **given)


def test_spec_without_bounds() -> None:
    with pytest.raises(ValueError, match="action_spec has no bounds"):
        cases.CASES["td3_bc"](action_spec=object())
