"""What LossModule gives to a loss that a user writes, against torchrl."""

import warnings
from dataclasses import asdict
from typing import Any

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType

from tests.parity.harness import (
    Config,
    assert_same,
    compare,
    hard,
    leaves,
    libraries,
    seeded,
    soft,
    tensors_of,
    transitions,
)
from tests.parity.user_loss import user_class, user_loss

pytestmark = pytest.mark.parity
THEIRS, OURS = libraries()
LIBRARIES = pytest.mark.parametrize("lib", [THEIRS, OURS], ids=lambda x: x.name)


def batch(*shape: int) -> TensorDict:
    return transitions(*(shape or (8,)))


def renamed() -> TensorDict:
    data = batch()
    data["next", "pay"], data["act"] = data["next"].pop("reward"), data.pop("action")
    return data


def with_keys(loss: Any, **keys: Any) -> Any:
    loss.set_keys(**keys)
    return loss


def sampling(loss: Any) -> Any:
    loss.deterministic_sampling_mode = InteractionType.RANDOM
    return loss


def config(name: str, updater: Any = None, data: Any = batch, after: Any = None, **options: Any):
    own = options.pop("own_modules", True)

    def build(lib: Any) -> Any:
        loss = user_loss(lib, **options)
        return after(loss) if after else loss

    return Config(name, build, data, updater, own)


SPLIT = {"shared": True, "separate": True, "delay_critic": False}
CONFIGS = [
    config("default", soft()),
    config("no targets", delay_critic=False),
    config("both delayed", soft(), delay_actor=True),
    config("only the actor delayed", soft(), delay_actor=True, delay_critic=False),
    config("hard updates", hard()),
    config("slow hard updates", hard(5)),
    config("half of it", soft(0.5)),
    config("by eps", lambda lib, loss: lib.losses.SoftUpdate(loss, eps=0.8)),
    config("two copies", soft(), copies=2),
    config("five copies, no targets", copies=5, delay_critic=False),
    config("one copy", soft(), copies=1),
    config("two critics", soft(), members=2),
    config("three critics, no targets", members=3, delay_critic=False),
    config("shared trunk", delay_critic=False, shared=True),
    config("shared trunk, separate losses", **SPLIT),
    config("copies on a shared trunk", copies=3, **SPLIT),
    config("gamma 0.5", soft(), gamma=0.5),
    config("no coefficient", soft(), coefficient=None),
    config("coefficient 2", soft(), coefficient=2.0),
    config("[B, T]", soft(), lambda: batch(3, 4)),
    config("[B, T, N], copies", soft(), lambda: batch(2, 3, 2), copies=2),
    config("renamed", soft(), renamed, lambda x: with_keys(x, action="act", reward="pay")),
    config("sampling", soft(), after=sampling),
    config("dropout", soft(), dropout=0.5),
    config("torchrl's modules", soft(), own_modules=False),
    config("torchrl's modules, copies", soft(), own_modules=False, copies=2),
    config("torchrl's modules, two critics", hard(1), own_modules=False, members=2),
    config("torchrl's modules, shared trunk", own_modules=False, **SPLIT),
]


@pytest.mark.parametrize("case", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(case: Config) -> None:
    compare(case)


def pair(**options: Any) -> tuple[Any, Any]:
    theirs, ours = (seeded(lambda lib: user_loss(lib, **options), lib) for lib in (THEIRS, OURS))
    return theirs, ours


def quietly(loss: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return loss(*args, **kwargs)


@LIBRARIES
def test_keys(lib: Any) -> None:
    loss = seeded(user_loss, lib)
    assert loss.tensor_keys == type(loss)._AcceptedKeys()
    assert loss.default_keys is type(loss)._AcceptedKeys
    loss.set_keys(action=("agent", "act"), reward="pay")
    assert asdict(loss.tensor_keys)["action"] == ("agent", "act")
    assert ("next", "pay") in loss.in_keys
    loss.set_keys(action=None)
    assert loss.tensor_keys.action == "action"
    with pytest.raises(ValueError, match="deed"):
        loss.set_keys(deed="action")
    assert loss.functional


@LIBRARIES
def test_keys_reach_the_estimator_when_they_are_set(lib: Any) -> None:
    """A built estimator keeps its own keys until then."""
    loss = seeded(user_loss, lib)
    estimator = lib.value.TD0Estimator(gamma=0.5, value_network=None)
    estimator.set_keys(reward="pay", advantage="adv")
    assert loss.make_value_estimator(estimator) is loss
    assert loss.value_estimator is estimator
    assert loss.value_type is lib.value.TD0Estimator
    assert (estimator.reward_key, estimator.advantage_key) == ("pay", "adv")
    loss.set_keys(reward="wage")
    assert (estimator.reward_key, estimator.advantage_key) == ("wage", "advantage")
    assert "_value_estimator.gamma" in loss.state_dict()


@LIBRARIES
def test_estimator_of_a_class(lib: Any) -> None:
    loss = seeded(user_loss, lib)
    given = loss.get_stateful_net("critic_network")
    loss.make_value_estimator(lib.value.GAE, gamma=0.5, lmbda=0.3, value_network=given)
    assert loss.value_type is lib.value.GAE
    assert loss.value_estimator.value_network is given


@LIBRARIES
def test_calls(lib: Any) -> None:
    """By keywords, and with fewer outputs."""
    loss, data = seeded(user_loss, lib), batch()
    whole = quietly(loss, data)
    words = {"_".join(k) if isinstance(k, tuple) else k: data[k] for k in loss.in_keys}
    found = quietly(loss, **words)
    for value, key in zip(found, loss.out_keys, strict=True):
        assert torch.equal(value, whole[key])
    loss.select_out_keys("loss_critic")
    assert loss.out_keys == ["loss_critic"]
    assert torch.equal(quietly(loss, **words), whole["loss_critic"])


@LIBRARIES
def test_keys_that_are_assigned(lib: Any) -> None:
    """A class may name its inputs, or an instance set them."""

    class Plain(lib.losses.LossModule):
        in_keys = ["observation"]
        out_keys = ["loss"]

    class Late(lib.losses.LossModule):
        def __init__(self) -> None:
            super().__init__()
            self.in_keys, self.out_keys = ["observation", ("next", "reward")], ["loss_late"]

    assert (Plain().in_keys, Plain().out_keys) == (["observation"], ["loss"])
    assert Late().in_keys == ["observation", ("next", "reward")]
    assert Late().out_keys == ["loss_late"]
    with pytest.raises(NotImplementedError):
        Plain()(batch())


@LIBRARIES
def test_warning_about_targets(lib: Any) -> None:
    """At each call, until an updater is built."""
    loss = seeded(user_loss, lib)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"(?i)target"):
            loss(batch())
    lib.losses.SoftUpdate(loss, tau=0.1)
    loss(batch())  # warnings are errors
    without = seeded(lambda: user_loss(lib, delay_critic=False))
    without(batch())


def test_layout_of_parameters() -> None:
    """Kinds, shapes and trainability of what a user reads from a loss."""
    for options in ({}, {"copies": 3}, {"members": 2}, {"delay_actor": True}, SPLIT):
        theirs, ours = pair(**options)
        for name in ("actor_network", "critic_network"):
            assert name in vars(ours)
            assert name not in ours._modules
            for prefix in ("", "target_"):
                a, b = (seeded(getattr, x, f"{prefix}{name}_params") for x in (ours, theirs))
                assert type(a).__name__ == type(b).__name__
                assert a.batch_size == b.batch_size
                assert_same(leaves(a), leaves(b), f"{prefix}{name}")
                trained = [{k for k, v in leaves(x).items() if v.requires_grad} for x in (a, b)]
                assert trained[0] == trained[1]
        named = [{k: v.shape for k, v in x.named_parameters()} for x in (ours, theirs)]
        assert named[0] == named[1]
        assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


@LIBRARIES
def test_without_a_copy_the_target_follows(lib: Any) -> None:
    loss = seeded(lambda: user_loss(lib, delay_critic=False))
    before = {k: v.clone() for k, v in leaves(loss.target_critic_network_params).items()}
    for p in loss.parameters():
        p.data.add_(1.0)
    for key, value in leaves(loss.target_critic_network_params).items():
        torch.testing.assert_close(value, before[key] + 1.0)
        assert not value.requires_grad
    with pytest.raises(AttributeError):
        loss.target_other_params  # noqa: B018


@LIBRARIES
def test_stateful_networks(lib: Any) -> None:
    loss = seeded(user_loss, lib)
    net = loss.get_stateful_net("critic_network")
    held = dict(loss.named_parameters())
    for name, p in net.named_parameters():
        assert p is held[f"critic_network_params.{name}"]
    data = batch()
    expected = loss.values(data, loss.critic_network_params)
    torch.testing.assert_close(net(data.clone())["state_value"], expected)
    assert loss.get_stateful_net("critic_network", copy=False) is loss.critic_network
    other = seeded(user_loss, lib, seed=11)
    other.from_stateful_net("critic_network", net)
    mine = {k: v for k, v in tensors_of(loss).items() if k.startswith("critic_network_params")}
    assert_same({k: tensors_of(other)[k] for k in mine}, mine, "loaded")
    assert dict(other.named_parameters())["critic_network_params.module.0.weight"].requires_grad
    with pytest.raises(RuntimeError, match=r"not in the module|one only"):
        other.from_stateful_net("critic_network", loss.get_stateful_net("actor_network"))


def test_reset_of_parameters() -> None:
    """The same draws where nothing is delayed or stacked. torchrl draws targets anew, different
    from the networks they follow, and members of an ensemble as one tensor, whose fan-in is
    that of no layer."""
    plain = pair(delay_critic=False)
    for loss in plain:
        seeded(loss.reset_parameters_recursive, seed=8)
    assert_same(tensors_of(plain[1]), tensors_of(plain[0]), "reset")
    apart = []
    for loss in pair():
        seeded(loss.reset_parameters_recursive, seed=8)
        target = leaves(seeded(getattr, loss, "target_critic_network_params"))
        online = leaves(loss.critic_network_params)
        apart.append(not all(torch.equal(v, online[k]) for k, v in target.items()))
    assert apart == [True, False]
    key, bound = ("module", "0", "weight"), 4**-0.5
    theirs, ours = pair(copies=400, delay_critic=False)
    for loss in (theirs, ours):
        seeded(loss.reset_parameters_recursive, seed=8)
    assert theirs.critic_network_params[key].abs().max() < 0.5 * bound
    assert 0.9 * bound < ours.critic_network_params[key].abs().max() <= bound


@LIBRARIES
def test_coefficients(lib: Any) -> None:
    loss = seeded(lambda: user_loss(lib, coefficient=None))
    assert loss.coefficient is None
    assert "coefficient" not in loss.state_dict()
    loss = seeded(user_loss, lib)
    held = loss.coefficient
    loss.coefficient = 0.25
    assert loss.coefficient is held
    assert loss.state_dict()["coefficient"] == 0.25
    for given in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        loss = user_class(lib).__mro__[1]()
        loss.register_coeff_buffer("c", given)
        assert loss.state_dict()["c"].shape == getattr(given, "shape", ())
        assert loss.c == 0.5
    loss.register_coeff_buffer("d", 1.0, dtype=torch.float64, device="cpu")
    assert loss.d.dtype == torch.float64
    for wrong in (True, "1", torch.ones(2), [1.0]):
        with pytest.raises(ValueError, match="scalar tensor"):
            loss.register_coeff_buffer("e", wrong)


@LIBRARIES
def test_mask_keys(lib: Any) -> None:
    loss = seeded(user_loss, lib)
    assert loss.loss_mask_key == "auto"
    for key in (None, "valid", ("my", "mask"), "auto"):
        loss.loss_mask_key = key
        assert loss.loss_mask_key == key
    with pytest.raises(ValueError, match="loss_mask_key must be"):
        loss.loss_mask_key = 3


@LIBRARIES
def test_wrong_networks(lib: Any) -> None:
    critics = [seeded(user_loss, lib).get_stateful_net("critic_network") for _ in range(2)]
    with pytest.raises(RuntimeError):
        user_class(lib)(seeded(user_loss, lib).get_stateful_net("actor_network"), critics, copies=3)
    loss = seeded(user_loss, lib)
    with pytest.raises(TypeError):
        loss.convert_to_functional(critics[0], "critic_network", colour="red")


def test_vmap_randomness() -> None:
    """torchrl's is "error" unless it knows a random layer, and only its own losses can set it."""
    theirs, ours = pair()
    for loss in (theirs, ours):
        with pytest.raises(ValueError, match=r"'error'.*'different'|'different'.*'error'"):
            loss.set_vmap_randomness("often")
    assert (theirs.vmap_randomness, ours.vmap_randomness) == ("error", "different")
    assert pair(dropout=0.5)[0].vmap_randomness == "different"
    with pytest.raises(NotImplementedError):
        theirs.set_vmap_randomness("same")
    ours.set_vmap_randomness("same")
    assert ours.vmap_randomness == "same"


def test_estimators_by_name() -> None:
    """torchrl leaves names to its subclasses; ours builds them for every loss."""
    theirs, ours = pair()
    for name in ("TD0", "TD1", "TDLambda", "GAE", "VTrace"):
        with pytest.raises(NotImplementedError):
            theirs.make_value_estimator(getattr(THEIRS.losses.ValueEstimators, name))
        ours.make_value_estimator(getattr(OURS.losses.ValueEstimators, name))
        assert ours.value_type is getattr(OURS.losses.ValueEstimators, name)
