"""TD3Loss against torchrl."""

from functools import partial

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")


from tests.parity import deterministic as nets
from tests.parity.harness import Config, compare, compare_keywords, compare_methods

pytestmark = pytest.mark.parity

build = partial(nets.smoothed, "TD3Loss")
CONFIGS = [
    nets.config(build, name, **kwargs)
    for name, kwargs in {**nets.OPTIONS, **nets.CRITICS, **nets.SMOOTHING, **nets.MASKS}.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_parts_called_alone(reduction: str) -> None:
    config = nets.config(build, "alone", reduction=reduction, shape=(4, 3))
    compare_methods(config, "actor_loss", "value_loss")


def test_call_with_keywords() -> None:
    compare_keywords(nets.config(build, "keywords"))
