"""Users' own losses on top of shipped ones: parts called in their ``forward``, or overridden."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from tensordict import TensorDict

from tests.parity import deterministic as nets
from tests.parity.harness import Library, compare

pytestmark = pytest.mark.parity


def own_forward(base: type) -> type:
    class Own(base):
        def forward(self, tensordict):
            actor, _ = self.actor_loss(tensordict)
            value, _ = self.value_loss(tensordict)
            return TensorDict({"loss_actor": actor, "loss_qvalue": value})

    return Own


def with_penalty(base: type) -> type:
    class Penalised(base):
        def actor_loss(self, tensordict):
            loss, info = super().actor_loss(tensordict)
            return loss + 0.1 * tensordict["action"].pow(2).sum(), info

    return Penalised


def of_its_own(base: type) -> type:
    class Scalar(base):
        def value_loss(self, tensordict):
            loss, info = super().value_loss(tensordict)
            return loss.sum() * 0.5, info

    return Scalar


KINDS = {"forward": own_forward, "penalty": with_penalty, "scalar": of_its_own}


def build(kind, lib: Library, **kwargs):
    """``nets.smoothed`` of the user's class."""
    own = SimpleNamespace(TD3Loss=kind(lib.losses.TD3Loss))
    return nets.smoothed("TD3Loss", replace(lib, losses=own), **kwargs)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torchrl(kind: str, reduction: str, weights: bool) -> None:
    build_own = partial(build, KINDS[kind])
    data = {"weights": weights}
    compare(nets.config(build_own, kind, reduction=reduction, data=data))
