"""DDPGLoss against torchrl."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

from tests.parity import deterministic as nets
from tests.parity.harness import (
    Config,
    assert_same,
    compare,
    compare_keywords,
    compare_methods,
    gradients,
    leaves,
    pair,
    seeded,
)

pytestmark = pytest.mark.parity


def build(lib, *, keys=None, shared=False, buffers=False, estimator=None, **kwargs):
    actor, critic = nets.networks(lib, keys=keys, shared=shared, buffers=buffers)
    return nets.finish(lib, lib.losses.DDPGLoss(actor, critic, **kwargs), keys, estimator)


KEYS = {k: v for k, v in nets.KEYS.items() if k != "action"}
RENAME = {k: v for k, v in nets.RENAME.items() if k != "action"}
STILL = {"delay_value": False, "updater": None}
OWN = {  # shared trunks: see below for delayed ones
    "renamed": {"keys": KEYS, "data": {"rename": RENAME, "weights": True}},
    "critic not delayed": {"delay_value": False, "delay_actor": True},
    "nothing delayed": STILL,
    "shared trunk": {"shared": True, **STILL},
    "separate losses": {"shared": True, "separate_losses": True, **STILL},
    "weights off, none given": {"use_prioritized_weights": False},
}
CONFIGS = [
    nets.config(build, name, **kwargs)
    for name, kwargs in {**nets.OPTIONS, **nets.MASKS, **OWN}.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("delay_actor", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_delayed_shared_trunk(delay_actor: bool, separate: bool) -> None:
    """torchrl's target critic runs on the target actor's trunk, not on its own delayed one
    (docs/deviations.md): the same once the two are equal."""
    options = {"shared": True, "separate_losses": separate, "delay_actor": delay_actor}
    theirs, ours = pair(nets.config(build, "shared", **options))
    acting = "target_actor_network_params" if delay_actor else "actor_network_params"
    found = []
    for loss in (ours, theirs):
        state = loss.state_dict()
        for name in ("module.0.module.0.weight", "module.0.module.0.bias"):
            state[f"target_value_network_params.{name}"].copy_(state[f"{acting}.{name}"])
        output = seeded(loss, nets.data(8))
        found.append({**leaves(output), **gradients(loss, output)})
    assert_same(*found, "with one target trunk")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_parts_called_alone(reduction: str) -> None:
    config = nets.config(build, "alone", reduction=reduction, shape=(4, 3))
    compare_methods(config, "loss_actor", "loss_value")


def test_call_with_keywords() -> None:
    compare_keywords(nets.config(build, "keywords"))
