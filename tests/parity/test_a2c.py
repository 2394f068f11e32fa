"""A2CLoss against torchrl."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

from tests.parity import on_policy
from tests.parity.harness import Config, compare, compare_keywords
from tests.parity.on_policy import COMMON, ENTROPY, FIXED

pytestmark = pytest.mark.parity

TABLE: dict[str, dict] = {
    **COMMON,
    **ENTROPY,
    "no critic's loss": {"critic_coeff": None},
    "critic weighs 0": {"critic_coeff": 0.0, **FIXED},
}
CONFIGS = [on_policy.config(name, loss="A2CLoss", **kwargs) for name, kwargs in TABLE.items()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize(
    "options", [{}, {"entropy_coeff": 0.0}, {"critic_coeff": None}, {"clip_value": 0.2}]
)
def test_call_with_keywords(options: dict) -> None:
    compare_keywords(on_policy.config("keywords", shape=(8,), loss="A2CLoss", **options))
