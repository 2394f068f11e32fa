"""QMIX and VDN against loops over agents and hidden units, against numbers worked out by hand, and
against the best of all joint actions."""

import itertools
from collections.abc import Mapping

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rlobj import LossModule, QMixerLoss, SoftUpdate, ValueEstimators
from rlobj.modules import QMixer, QValueActor, VDNMixer
from tests.rlobj import cases, teams
from tests.rlobj.cases import assert_close, distance
from tests.rlobj.teams import ACTIONS, AGENTS, TEAMS

GAMMA = 0.9
LOCAL, MIXER = "local_value_network_params", "mixer_network_params"


def team(name: str, **kwargs: object) -> LossModule:
    return cases.perturb(TEAMS[name](**kwargs)).make_value_estimator(gamma=GAMMA)


def layers(loss: LossModule, prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(weight, bias) of every layer of the mixer, by its name there."""
    own = {k: v for k, v in loss.tensors().items() if k.startswith(f"{prefix}{MIXER}.")}
    names = {k.removeprefix(f"{prefix}{MIXER}.module.").rpartition(".")[0] for k in own}
    where = f"{prefix}{MIXER}.module"
    return {n: (own[f"{where}.{n}.weight"], own[f"{where}.{n}.bias"]) for n in names}


def action_values(loss: LossModule, prefix: str, seen: list[list[float]]) -> list[list[float]]:
    """Each agent's values of its actions, by its own layer or the shared one."""
    where = f"{prefix}{LOCAL}.module.0.module.params.0"
    weight, bias = (loss.tensors()[f"{where}.{k}"] for k in ("weight", "bias"))
    shared = weight.ndim == 2
    each = [(weight, bias) if shared else (weight[i], bias[i]) for i in range(AGENTS)]
    return [teams.affine(layer, o) for layer, o in zip(each, seen, strict=True)]


def slow(loss: LossModule, data: TensorDict, kind: str, late: str = "target_") -> Mapping:
    out: dict = {"loss": [], "td_error": []}
    for row in teams.rows(data):
        chosen = [q[a] for q, a in zip(action_values(loss, "", row["o"]), row["a"], strict=True)]
        q = teams.mixed(layers(loss, ""), chosen, row["s"])
        after, mixing = action_values(loss, late, row["o2"]), layers(loss, late)
        joint = itertools.product(range(ACTIONS), repeat=AGENTS)
        picked = ([q[a] for q, a in zip(after, acts, strict=True)] for acts in joint)
        best = max(teams.mixed(mixing, values, row["s2"]) for values in picked)
        goal = row["r"] + (0.0 if row["end"] else GAMMA * best)
        out["loss"].append(distance(kind, q, goal))
        out["td_error"].append((q - goal) ** 2)
    return out


@pytest.mark.parametrize("name", TEAMS)
@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_by_loop(name: str, kind: str) -> None:
    """The target is the best of all joint actions, which no agent looks for (eq. 4 and 6)."""
    data = teams.batch(name, n=24)
    each, mean = (team(name, reduction=r, loss_function=kind) for r in ("none", None))
    expected = slow(each, data, kind)
    value, info = each.qvalue_loss(data)
    assert_close(value, expected["loss"])
    assert_close(info["td_error"], expected["td_error"])
    assert_close(mean(data)["loss"], sum(expected["loss"]) / 24)
    assert_close(data["td_error"], torch.tensor(expected["td_error"]).unsqueeze(-1))


@pytest.mark.parametrize("name", TEAMS)
def test_without_delay_the_targets_are_the_online_networks(name: str) -> None:
    loss, data = team(name, delay_value=False), teams.batch(name)
    assert loss.delayed_networks() == []
    assert_close(loss(data)["loss"], sum(slow(loss, data, "l2", late="")["loss"]) / len(data))


class Fixed(nn.Module):
    """Action values of two agents that see nothing: the parameters."""

    def __init__(self, *values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, observation: Tensor) -> Tensor:
        return self.values * observation


def by_hand(mixer: nn.Module, *read: str) -> tuple[LossModule, TensorDict]:
    """Agents value their actions (1, 2) and (3, -1) now, (10, 20) and (30, -10) at s', where
    they see ten times as much. They take the second and the first."""
    actor = QValueActor(
        TensorDictModule(Fixed([1.0, 2.0], [3.0, -1.0]), ["o"], ["v"]),
        action_space="categorical", action_key="a", action_value_key="v",
        chosen_action_value_key="q",
    )  # fmt: skip
    mixer = TensorDictModule(mixer, ["q", *read], ["total"])
    loss = QMixerLoss(actor, mixer, loss_function="l1", delay_value=False)
    loss.set_keys(action="a", action_value="v", local_value="q", global_value="total")
    flag = torch.zeros(1, 1, dtype=torch.bool)
    after = {"o": torch.full((1, 2, 1), 10.0), "reward": torch.tensor([[7.0]])}
    after |= {"done": flag, "terminated": flag, "s": torch.tensor([[-2.0]])}
    now = {"o": torch.ones(1, 2, 1), "a": torch.tensor([[1, 0]]), "s": torch.tensor([[3.0]])}
    return loss.make_value_estimator(gamma=0.5), TensorDict({**now, "next": after}, [1])


def test_vdn_by_hand() -> None:
    """Q = 2 + 3 = 5; the target is 7 + 0.5 (20 + 30) = 32."""
    loss, data = by_hand(VDNMixer(2, "cpu"))
    assert_close(loss(data)["loss"], 27.0)
    assert_close(data["td_error"], [[729.0]])
    loss(data)["loss"].backward()
    grad = loss.local_value_network_params["module", "0", "module", "values"].grad
    assert_close(grad, [[0.0, -1.0], [-1.0, 0.0]])


def test_qmix_by_hand() -> None:
    """One hidden unit, all hyper-networks without bias. s = 3: weights |3 * (1, -2)| = (3, 6),
    bias 3, so x = 3 * 2 + 6 * 3 + 3 = 27 = elu(x); final weight |3 * -1| = 3; V = relu(3) * 2 = 6;
    Q_tot = 87. s' = -2: weights (2, 4), bias -2, x = 2 * 20 + 4 * 30 - 2 = 158; weight 2, V = 0;
    Q_tot = 316, target 7 + 158 = 165."""
    mixer = QMixer((1,), 1, 2, "cpu")
    for layer, weight in (
        (mixer.hyper_w_1, [[1.0], [-2.0]]), (mixer.hyper_b_1, [[1.0]]),
        (mixer.hyper_w_final, [[-1.0]]), (mixer.V[0], [[1.0]]), (mixer.V[2], [[2.0]]),
    ):  # fmt: skip
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.zeros(len(weight))
    loss, data = by_hand(mixer, "s")
    assert_close(loss(data)["loss"], 78.0)
    loss(data)["loss"].backward()
    grad = loss.local_value_network_params["module", "0", "module", "values"].grad
    assert_close(grad, [[0.0, -9.0], [-18.0, 0.0]])


@pytest.mark.parametrize("name", TEAMS)
def test_gradients(name: str) -> None:
    loss, data = team(name, reduction="sum"), teams.batch(name)
    trained = [LOCAL, *([] if name == "qmixer_vdn" else [MIXER])]
    cases.check_gradient(loss, lambda: loss.qvalue_loss(data)[0], *trained)


def test_targets_move() -> None:
    loss = TEAMS["qmixer"]()
    updater = SoftUpdate(loss, tau=0.25)
    assert set(loss.delayed_networks()) == {"local_value_network", "mixer_network"}
    for p in loss.parameters():
        p.data += 1
    before = {k: v.clone() for k, v in loss.state_dict().items() if k.startswith("target_")}
    updater.step()
    for key, value in before.items():
        assert_close(loss.state_dict()[key], value + 0.25)


def test_renamed_entries() -> None:
    loss, data = team("qmixer"), teams.batch()
    expected = loss(data.clone())["loss"].item()
    loss.set_keys(reward="pay", terminated=("flags", "over"), done="stop", priority=("p", "q"))
    after = data["next"]
    after["pay"], after["stop"] = after.pop("reward"), after.pop("done")
    after["flags", "over"] = after.pop("terminated")
    assert {("next", "pay"), ("next", "flags", "over"), ("next", "stop")} < set(loss.in_keys)
    assert_close(loss(data)["loss"], expected)
    assert data["p", "q"].shape == (len(data), 1)
    keys = loss.value_estimator.tensor_keys
    assert (keys.reward, keys.value) == ("pay", "chosen_action_value")
    loss.set_keys(global_value="total")
    assert loss.value_estimator.tensor_keys.value == "total"


def test_a_mixer_that_reads_what_the_agents_write() -> None:
    """A message of the local network, beside its values, is no input of the loss."""

    class Talking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(teams.OBS, ACTIONS)

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(observation), observation.sum((-1, -2), keepdim=True).squeeze(-1)

    class Shifted(VDNMixer):
        def forward(self, values: Tensor, message: Tensor) -> Tensor:
            return super().forward(values) + message

    write = [("agents", "action_value"), "message"]
    actor = QValueActor(
        TensorDictModule(Talking(), [("agents", "observation")], write),
        action_space="categorical",
        action_key=("agents", "action"),
        action_value_key=write[0],
        chosen_action_value_key=("agents", "chosen_action_value"),
    )
    read = [("agents", "chosen_action_value"), "message"]
    mixer = TensorDictModule(Shifted(AGENTS, "cpu"), read, ["chosen_action_value"])
    loss, data = QMixerLoss(actor, mixer), teams.batch("qmixer_vdn")
    loss.mark_updated()
    assert set(loss.in_keys) == teams.IN_KEYS["qmixer_vdn"]
    plain = QMixerLoss(actor, VDNMixer(AGENTS, "cpu"), reduction="none")
    plain.mark_updated()
    _, info = plain.qvalue_loss(data)
    shift = data["agents", "observation"].sum((-1, -2))
    shift = shift - 0.99 * (data["next", "agents", "observation"].sum((-1, -2)))
    shift[1] = data["agents", "observation"][1].sum()  # terminated
    error = info["pred_value"] - info["target_value"] + shift
    assert_close(loss(data)["loss"], error.square().mean().detach())


@pytest.mark.parametrize("name", TEAMS)
def test_what_the_policy_left_in_the_batch_does_not_count(name: str) -> None:
    loss, data = team(name), teams.batch(name)
    expected = loss(data.clone())["loss"].detach()
    for part in (data, data["next"]):
        for key in ("chosen_action_value", ("agents", "chosen_action_value")):
            agents = () if isinstance(key, str) else (AGENTS,)
            part[key] = torch.full((len(data), *agents, 1), 9.0)
        part["agents", "action_value"] = torch.full((len(data), AGENTS, ACTIONS), 9.0)
    assert_close(loss(data)["loss"], expected)


def test_actions_in_a_column() -> None:
    loss, data = team("qmixer_vdn"), teams.batch("qmixer_vdn")
    expected = loss(data)["loss"].detach()
    data["agents", "action"] = data["agents", "action"].unsqueeze(-1)
    assert_close(loss(data)["loss"], expected)


def test_windows_of_time() -> None:
    """Under TD(lambda) with lambda = 0 each step is a transition of its own."""
    loss, flat = team("qmixer", reduction="none"), teams.batch(n=12)
    expected = loss(flat)["loss"].detach()
    data = flat.reshape(3, 4)
    data.names = [None, "time"]
    data["next", "done"] |= torch.arange(4).eq(3).unsqueeze(-1)
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=GAMMA, lmbda=0.0)
    assert_close(loss(data)["loss"], expected.reshape(3, 4))


def test_what_is_refused() -> None:
    local, mixer = teams.local(), teams.mixer("vdn")
    with pytest.raises(TypeError, match="make_value_estimator"):
        QMixerLoss(local, mixer, gamma=0.9)
    with pytest.raises(RuntimeError, match="set_keys"):
        QMixerLoss(local, mixer, priority_key="p")
    with pytest.raises(ValueError, match="QMixerLoss cannot tell the action space"):
        QMixerLoss(TensorDictModule(nn.Linear(2, 2), ["o"], ["action_value"]), mixer)
    for estimator in ("gae", ValueEstimators.VTrace):
        with pytest.raises(NotImplementedError, match="QMixerLoss cannot use"):
            team("qmixer").make_value_estimator(estimator)
    for estimator in ("td0", "td1", "tdlambda"):
        assert team("qmixer").make_value_estimator(estimator).value_estimator is not None


def test_plain_modules() -> None:
    """A bare local network becomes a QValueActor of default names, a bare mixer adds up."""
    net = nn.Linear(teams.OBS, ACTIONS)
    loss = QMixerLoss(net, VDNMixer(AGENTS, "cpu"), action_space="categorical")
    assert isinstance(loss.local_value_network, QValueActor)
    assert loss.local_value_network.out_keys == ["action", "action_value", "chosen_action_value"]
    assert loss.mixer_network.in_keys == [("agents", "chosen_action_value")]
    assert loss.mixer_network.out_keys == ["chosen_action_value"]
