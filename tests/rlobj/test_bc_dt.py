"""BCLoss and DTLoss against arithmetic by hand, loops and finite differences."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
from torch import nn

from rlobj import BCLoss, DTLoss, LossModule
from rlobj.modules import Actor, TimedDTActor
from tests.rlobj import cases
from tests.rlobj.cases import ACT, OBS, assert_close, gaussian, linear, numbers, rows

KINDS = ["l1", "l2", "smooth_l1"]


def half() -> Actor:
    """pi(s) = s / 2 in one dimension."""
    actor = Actor(nn.Linear(1, 1, bias=False))
    actor.module.weight.data.fill_(0.5)
    return actor


@pytest.mark.parametrize(("kind", "expected"), [("l1", 1.375), ("l2", 3.15625), (None, 3.15625)])
def test_bc_by_hand(kind: str | None, expected: float) -> None:
    observation, action = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.25], [1.5]])
    # gaps 0.5 - 0.25 = 0.25 and -1 - 1.5 = -2.5
    loss = BCLoss(half(), loss_function=kind)
    assert_close(loss(observation=observation, action=action), expected)


@pytest.mark.parametrize("is_gaussian", [True, False])
def test_bc_likelihood_by_loop(is_gaussian: bool) -> None:
    data, actor = cases.batch(), cases.stochastic(is_gaussian)
    loss, each = (cases.perturb(BCLoss(actor, reduction=r)) for r in ("mean", "none"))
    net, expected = numbers(loss, "actor_network_params")[0], []
    for row in rows(data):
        mean, scale = gaussian(net, row["s"])
        if is_gaussian:
            expected.append(-cases.normal_log_density(row["a"], mean, scale))
        else:
            before = cases.unsquash(row["a"])
            expected.append(-cases.squashed_log_density(before, mean, scale))
    assert_close(each.actor_loss(data)[0], expected)
    assert_close(loss(data)["loss_bc"], sum(expected) / len(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_bc_distance_by_loop(kind: str) -> None:
    """A stochastic actor answers with its deterministic action."""
    data = cases.batch(n=16)
    for actor in (cases.stochastic(), cases.deterministic()):
        loss, each = (
            cases.perturb(BCLoss(actor, loss_function=kind, reduction=r)) for r in ("mean", "none")
        )
        net, expected = numbers(loss, "actor_network_params")[0], []
        for row in rows(data):
            out = linear(net, row["s"])
            action = cases.squash(out[:ACT]) if len(out) > ACT else out
            pairs = zip(action, row["a"], strict=True)
            expected.append([cases.distance(kind, a, b) for a, b in pairs])
        assert_close(each.actor_loss(data)[0], expected)
        assert_close(loss(data)["loss_bc"], sum(map(sum, expected)) / (16 * ACT))


def test_bc_is_deterministic_whatever_surrounds_it() -> None:
    """Inside a collector's "sample" mode a loss still uses its own mode."""
    loss = cases.perturb(BCLoss(cases.stochastic(), loss_function="l2", reduction="none"))
    data = cases.batch()
    expected = loss.actor_loss(data)[0].detach()
    with set_interaction_type(InteractionType.RANDOM):
        assert_close(loss.actor_loss(data)[0], expected)
        assert_close(loss(data)["loss_bc"], expected)


@pytest.mark.parametrize("name", ["bc", "bc_l2"])
def test_bc_gradient(name: str) -> None:
    loss, data = cases.build(name), cases.batch()
    cases.check_gradient(loss, lambda: loss.actor_loss(data)[0], "actor_network_params")


def test_bc_own_distance() -> None:
    observation, action = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.25], [1.5]])
    loss = BCLoss(half(), loss_function=lambda predicted, target: 2 * predicted - target)
    value = loss(observation=observation, action=action)
    assert_close(value, ((1 - 0.25) + (-2 - 1.5)) / 2)
    # 2 w s - a by w: the mean of 2 s
    assert_close(torch.autograd.grad(value, list(loss.parameters()))[0], [[-1.0]])


def scores() -> TensorDictModule:
    """Logits over three actions, without a distribution."""
    return TensorDictModule(nn.Linear(OBS, 3), in_keys=["observation"], out_keys=["action"])


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5), (1, 5, 1)])
@pytest.mark.parametrize("kind", [None, "cross_entropy"])
def test_bc_cross_entropy_by_loop(shape: tuple[int, ...], kind: str | None) -> None:
    """Integers are classes; a window of time is no class axis."""
    loss = cases.perturb(BCLoss(scores(), loss_function=kind, reduction="none"))
    data = cases.batch()
    chosen, net = torch.tensor([0, 2, 1, 1, 0]), numbers(loss, "actor_network_params")[0]
    expected = []
    for row, index in zip(rows(data), chosen.tolist(), strict=True):
        logits = linear(net, row["s"])
        expected.append(math.log(sum(map(math.exp, logits))) - logits[index])
    data = data.select("observation").reshape(1, 5) if shape[0] == 1 else data
    data["action"] = chosen.reshape(shape)
    assert_close(loss.actor_loss(data)[0].flatten(), expected)
    cases.check_gradient(loss, lambda: loss.actor_loss(data)[0], "actor_network_params")
    deep = data.reshape(1, 1, 5)
    assert_close(loss.actor_loss(deep)[0].flatten(), expected)


@pytest.mark.parametrize("per_entry", [True, False])
def test_bc_padding_does_not_count(per_entry: bool) -> None:
    loss, data = cases.perturb(BCLoss(cases.deterministic())), cases.batch()
    loss.set_keys(pad_mask="padded")
    assert "padded" in loss.in_keys
    per_sample = cases.perturb(BCLoss(cases.deterministic(), reduction="none"))
    each = per_sample.actor_loss(data)[0].detach()
    data["padded"] = torch.rand(each.shape if per_entry else each.shape[:1]) < 0.5
    data["padded"][0], data["padded"][1] = True, False
    data["action"][0] = math.nan
    keep = ~(data["padded"] if per_entry else data["padded"].unsqueeze(-1).expand_as(each))
    assert_close(loss(data)["loss_bc"], each[keep].mean())
    data["shifted_valid"] = torch.tensor([True, True, False, False, True])
    keep &= data["shifted_valid"].unsqueeze(-1)
    assert_close(loss(data)["loss_bc"], each[keep].mean())


def test_bc_action_that_the_actor_writes_elsewhere() -> None:
    loss, data = cases.perturb(BCLoss(cases.deterministic())), cases.batch()
    expected = loss(data)["loss_bc"].detach()
    loss.set_keys(action="move")
    data["move"] = data.pop("action")
    with pytest.warns(FutureWarning, match="the actor writes 'action' where the loss reads 'move'"):
        assert_close(loss(data)["loss_bc"], expected)
    with pytest.raises(RuntimeError, match="the actor writes no 'action'"):
        BCLoss(cases.deterministic("move"))(cases.batch())


def test_bc_unknown_distance() -> None:
    with pytest.raises(ValueError, match="unknown loss 'l3'"):
        BCLoss(cases.deterministic(), loss_function="l3")


# Decision Transformer


def built(**kwargs: object) -> LossModule:
    return cases.build("dt", **kwargs)


def mask() -> torch.Tensor:
    """Windows padded by 2, 0 and 3 of 4 steps, at the front as in the authors' code."""
    keep = torch.ones(3, cases.STEPS, dtype=torch.bool)
    keep[0, :2], keep[2, :3] = False, False
    return keep


def slow(loss: LossModule, data: TensorDict, kind: str, keep: torch.Tensor) -> list[float]:
    """Distances of the valid steps, one number per action entry (section 4)."""
    net, found = numbers(loss, "actor_network_params")[0], []
    for i in range(data.shape[0]):
        for t in range(data.shape[1]):
            step = {k: data[k][i, t].tolist() for k in ("observation", "action", "return_to_go")}
            action = linear(net, *step.values())
            if keep[i, t]:
                pairs = zip(action, step["action"], strict=True)
                found += [cases.distance(kind, a, b) for a, b in pairs]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_dt_by_loop(kind: str, padded: bool, column: bool) -> None:
    """The mask is [B, T] or [B, T, 1]."""
    loss, data = built(loss_function=kind), cases.windows()
    keep = mask() if padded else torch.ones(3, cases.STEPS, dtype=torch.bool)
    if padded:
        data["collector", "mask"] = keep.unsqueeze(-1) if column else keep
    expected = slow(loss, data, kind, keep)
    assert len(expected) == ACT * int(keep.sum())
    assert_close(loss(data)["loss"], sum(expected) / len(expected))


def test_dt_sum_and_none() -> None:
    data, keep = cases.windows(), mask()
    data["collector", "mask"] = keep
    expected = slow(built(), data, "l2", keep)
    assert_close(built(reduction="sum")(data)["loss"], sum(expected))
    each = built(reduction="none")(data)["loss"]
    assert each.shape == data["action"].shape
    assert_close(each[keep].flatten(), expected)
    assert not each[~keep].any()


def test_dt_gradient_is_the_slope_and_spares_the_target() -> None:
    loss, data = built(), cases.windows()
    data["collector", "mask"] = mask()
    cases.check_gradient(loss, lambda: loss(data)["loss"], "actor_network_params")
    recorded = torch.randn(3, cases.STEPS, ACT, requires_grad=True)
    loss.set_keys(action_target="recorded")
    assert set(loss.in_keys) == {"observation", "action", "return_to_go", "recorded"}
    del data["collector"]
    data["recorded"] = recorded
    value = loss(data)["loss"]
    value.backward()
    assert recorded.grad is None
    predicted = loss.run_network("actor_network", data)["action"]
    assert_close(value, (predicted - recorded).detach().pow(2).mean())


def test_dt_moves_to_a_device() -> None:
    assert DTLoss(cases.window(), device=torch.device("meta")).device.type == "meta"


def test_dt_default_is_l2() -> None:
    assert DTLoss(cases.window()).loss_function == "l2"


def transformer(**kwargs: object) -> TimedDTActor:
    settings = {"width": 8, "layers": 2, "heads": 2, "dropout": 0.0, "max_timestep": 10}
    net = TimedDTActor(OBS, ACT, **{**settings, **kwargs})
    for p in net.parameters():  # the usual initialisation is too small to see differences
        nn.init.normal_(p, std=0.5)
    return net


def inputs(**kwargs: torch.Tensor) -> dict[str, torch.Tensor]:
    data = cases.windows()
    steps = torch.arange(cases.STEPS).expand(3, cases.STEPS)
    found = {k: data[k] for k in ("observation", "action", "return_to_go")}
    return {**found, "timestep": steps, **kwargs}


@pytest.mark.parametrize(
    ("what", "first"),  # the first prediction that may depend on step 2's token
    [("return_to_go", 2), ("observation", 2), ("action", 3)],
)
def test_transformer_is_causal(what: str, first: int) -> None:
    net, given = transformer(), inputs()
    moved = given[what].clone()
    moved[:, 2] += 1
    changed = (net(**given) - net(**{**given, what: moved})).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [t >= first for t in range(cases.STEPS)]


def test_transformer_does_not_see_padding() -> None:
    net, keep = transformer(), mask()
    given = inputs(mask=keep)
    noisy = {
        k: torch.where(keep.unsqueeze(-1), v, 7.0) if v.ndim == 3 else v for k, v in given.items()
    }
    assert_close(net(**noisy)[keep], net(**given)[keep])
    short = {k: v[:1, 2:] for k, v in inputs().items()}
    assert_close(net(**given)[:1, 2:], net(**short))


def test_transformer_reads_the_time_step() -> None:
    net = transformer()
    later = inputs()["timestep"] + 3
    assert (net(**inputs()) - net(**inputs(timestep=later))).abs().min() > 1e-9
    beyond, last = (net(**inputs(timestep=torch.full((3, cases.STEPS), t))) for t in (99, 10))
    assert_close(beyond, last)


def test_attention_by_loop() -> None:
    """softmax(q k / sqrt(width of a head)) v per head over the tokens so far."""
    block, x = transformer().blocks[0], torch.randn(1, 3, 8)
    allowed = torch.ones(3, 3, dtype=torch.bool).tril().expand(1, 1, 3, 3)
    parts = block.qkv(x)[0].reshape(3, 3, 2, 4).tolist()  # token, q/k/v, head, entry
    rows_ = []
    for t in range(3):
        joined = []
        for h in range(2):
            scores = [
                math.exp(
                    sum(a * b for a, b in zip(parts[t][0][h], parts[u][1][h], strict=True)) / 2
                )
                for u in range(t + 1)
            ]
            joined += [
                sum(s * parts[u][2][h][e] for u, s in enumerate(scores)) / sum(scores)
                for e in range(4)
            ]
        rows_.append(joined)
    assert_close(block.attend(x, allowed), block.out(torch.tensor([rows_])))


def slow_block(block: nn.Module, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """x + attention(norm(x)), then x + MLP(norm(x)) with a ReLU."""
    x = x + block.attend(block.norm1(x), allowed)
    up = block.up(block.norm2(x))
    return x + block.down(torch.where(up > 0, up, 0.0))


def test_transformer_by_loop() -> None:
    """Tokens R_0 s_0 a_0 R_1 s_1 a_1 ..., each with its step's time; a_t is read at s_t."""
    net, given = transformer(low=None, high=None), inputs()
    predicted = net(**given)
    for b in range(3):
        tokens = []
        for t in range(cases.STEPS):
            time = net.embed_time.weight[given["timestep"][b, t]]
            tokens.append(net.embed_return(given["return_to_go"][b, t]) + time)
            tokens.append(net.embed_state(given["observation"][b, t]) + time)
            tokens.append(net.embed_action(given["action"][b, t]) + time)
        x = net.norm_in(torch.stack(tokens)).unsqueeze(0)
        allowed = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()[None, None]
        for block in net.blocks:
            x = slow_block(block, x, allowed)
        for t in range(cases.STEPS):
            assert_close(predicted[b, t], net.head(net.norm_out(x[0, 3 * t + 1])).detach())


def test_transformer_bounds_its_actions() -> None:
    net, free = transformer(low=-0.5, high=1.0), transformer(low=None, high=None)
    free.load_state_dict(net.state_dict(), strict=False)
    assert_close(net(**inputs()), 0.25 + 0.75 * free(**inputs()).tanh())


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 attention heads do not divide a width of 8"):
        transformer(heads=3)
