"""Target updates, distances and frozen networks."""

import pytest
import torch
from torch import nn

from rlobj import HardUpdate, LossModule, SoftUpdate, distance_loss, hold_out_net, hold_out_params
from rlobj.utils import weight_like
from tests.rlobj import cases
from tests.rlobj.cases import assert_close


def both(loss: LossModule, network: str) -> tuple[dict, dict]:
    """Copies of the online and the target tensors of a network."""
    found = []
    for prefix in (f"{network}_params.", f"target_{network}_params."):
        tensors = {k: v for k, v in loss.tensors().items() if k.startswith(prefix)}
        found.append({k.removeprefix(prefix): v.detach().clone() for k, v in tensors.items()})
    return found[0], found[1]


def shift(loss: LossModule, by: float) -> None:
    for p in loss.parameters():
        p.data.add_(by)


@pytest.mark.parametrize("given", [{"tau": 0.1}, {"eps": 0.9}])
@pytest.mark.parametrize(
    ("name", "networks"),
    [("td3_bc", ["actor_network", "qvalue_network"]), ("sac", ["qvalue_network"]),
     ("iql", ["qvalue_network"]), ("cql", ["qvalue_network"])],
)  # fmt: skip
def test_soft_update(given: dict, name: str, networks: list[str]) -> None:
    loss = cases.build(name)
    assert loss.delayed_networks() == networks
    updater = SoftUpdate(loss, **given)
    start = {n: both(loss, n) for n in networks}
    for online, target in start.values():
        assert online.keys() == target.keys()
        for key, value in target.items():
            assert_close(value, online[key])  # building an updater copies
    shift(loss, 1.0)
    for share in (0.1, 0.19):  # 0.1, then 0.1 + 0.9 * 0.1
        updater.step()
        for network, (online, _) in start.items():
            now, target = both(loss, network)
            for key, value in online.items():
                assert_close(now[key], value + 1)
                assert_close(target[key], value + share)


@pytest.mark.parametrize(
    ("given", "error"), [({}, RuntimeError), ({"tau": 0.1, "eps": 0.9}, ValueError)]
)
def test_soft_update_takes_one_of_tau_and_eps(given: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match="exactly one of eps and tau"):
        SoftUpdate(cases.build("sac"), **given)


def test_soft_update_suspects_a_small_eps() -> None:
    with pytest.warns(UserWarning, match="is it meant as tau"):
        updater = SoftUpdate(cases.build("sac"), eps=0.4)
    assert_close(torch.tensor(updater.eps), 0.4)
    updater.eps = 0.75
    assert updater.tau == 0.25


@pytest.mark.parametrize("given", [{"tau": 1.5}, {"eps": -0.1}, {"tau": -0.1}])
def test_soft_update_checks_its_range(given: dict) -> None:
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\]"):
        SoftUpdate(cases.build("sac"), **given)


def test_hard_update_acts_on_every_third_step() -> None:
    """An interval of 2 lets two steps pass, as upstream."""
    loss = cases.build("sac")
    updater, copied = HardUpdate(loss, value_network_update_interval=2), []
    for _ in range(7):
        shift(loss, 1.0)
        updater.step()
        online, target = both(loss, "qvalue_network")
        copied.append(all(torch.equal(online[k], target[k]) for k in online))
    assert copied == [False, False, True, False, False, True, False]


def test_updaters_resume() -> None:
    loss = cases.build("sac")
    one = HardUpdate(loss, value_network_update_interval=2)
    one.step()
    assert one.state_dict() == {"initialized": True, "counter": 1}
    two = HardUpdate(loss, value_network_update_interval=2)
    two.load_state_dict(one.state_dict())
    assert two.counter == 1
    soft = SoftUpdate(loss, tau=0.5)
    soft.load_state_dict({"initialized": False})
    assert soft.state_dict() == {"initialized": False}
    with pytest.raises(RuntimeError, match=r"call init_\(\)"):
        soft.step()
    soft.init_()
    soft.step()


def test_update_after_a_change_of_type() -> None:
    """The updater holds the loss's own tensors, wherever they are moved."""
    loss = cases.build("sac")
    updater = SoftUpdate(loss, tau=1.0)
    loss.to(torch.float32)
    shift(loss, 1.0)
    updater.step()
    online, target = both(loss, "qvalue_network")
    for key, value in online.items():
        assert torch.equal(value, target[key])


def test_no_targets_no_updater() -> None:
    with pytest.raises(NotImplementedError, match="no target networks"):
        SoftUpdate(cases.build("bc"), tau=0.1)
    with pytest.raises(ValueError, match="needs a LossModule"):
        SoftUpdate(nn.Linear(1, 1), tau=0.1)


@pytest.mark.parametrize(
    ("kind", "expected"), [("l1", [0.5, 3.0]), ("l2", [0.25, 9.0]), ("smooth_l1", [0.125, 2.5])]
)
def test_distance_by_hand(kind: str, expected: list[float]) -> None:
    a, b = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])
    assert_close(distance_loss(a, b, kind), expected)
    assert_close(distance_loss(b, a, kind), expected)


def test_distance_is_strict() -> None:
    a, b = torch.zeros(2), torch.zeros(2, 1)
    with pytest.raises(RuntimeError, match="compares shapes"):
        distance_loss(a, b, "l1")
    with pytest.warns(UserWarning, match="target size"):
        assert distance_loss(a, b, "l1", strict_shape=False).shape == (2, 2)
    with pytest.raises(NotImplementedError, match="unknown loss 'huber'"):
        distance_loss(a, a, "huber")


def test_hold_out_net() -> None:
    net = nn.Linear(1, 1)
    net.bias.requires_grad_(False)
    with pytest.raises(KeyError), hold_out_net(net):
        assert not net.weight.requires_grad
        raise KeyError
    assert net.weight.requires_grad
    assert not net.bias.requires_grad  # frozen before, frozen after

    @hold_out_net(net)
    def frozen() -> bool:
        return not net.weight.requires_grad

    assert frozen()
    assert frozen()
    assert net.weight.requires_grad


def test_hold_out_params() -> None:
    loss = cases.build("sac")
    with hold_out_params(loss.actor_network_params) as frozen:
        assert not any(v.requires_grad for v in frozen.values(True, True))
    assert all(v.requires_grad for v in loss.actor_network_params.values(True, True))
    weight = torch.ones(2, requires_grad=True)
    with hold_out_params([weight]) as (constant,):
        assert not constant.requires_grad
        assert constant.data_ptr() == weight.data_ptr()


def test_weight_like() -> None:
    w = torch.tensor([1.0, 2.0])
    assert_close(weight_like(w, torch.zeros(2, 3)), [[1.0] * 3, [2.0] * 3])
    assert_close(weight_like(w.reshape(2, 1), torch.zeros(2)), [1.0, 2.0])
    assert_close(weight_like(w.reshape(2, 1), torch.zeros(2, 3)), [[1.0] * 3, [2.0] * 3])
    with pytest.raises(RuntimeError, match="expand"):
        weight_like(torch.ones(2, 3), torch.zeros(2))
