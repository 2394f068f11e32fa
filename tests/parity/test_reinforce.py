"""ReinforceLoss against torchrl."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

from tests.parity import on_policy
from tests.parity.harness import Config, compare, compare_keywords, hard, soft
from tests.parity.on_policy import COMMON, FIXED

pytestmark = pytest.mark.parity

TABLE: dict[str, dict] = {
    **COMMON,
    "delayed value": {"delay_value": True, "updater": soft()},
    "delayed value, hard updates": {"delay_value": True, "updater": hard(1)},
    "delayed value, clipped": {"delay_value": True, "clip_value": 0.2, "updater": soft(0.3)},
    "trunk called once": {"trunk": "once", **FIXED},
    "composite": {"policy": "composite"},
    "composite tanh": {"policy": "composite tanh", "reduction": "none"},
}
LEFT = ("logits", "params", "unused", ("next", "state_value"), ("next", "worth"))
CONFIGS = [
    on_policy.config(name, loss="ReinforceLoss", **{**kwargs, "skip": LEFT})
    for name, kwargs in TABLE.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("options", [{}, {"clip_value": 0.2}])
def test_call_with_keywords(options: dict) -> None:
    compare_keywords(on_policy.config("keywords", shape=(8,), loss="ReinforceLoss", **options))
