"""REDQLoss against torchrl."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

from tests.parity import continuous as stochastic
from tests.parity import deterministic as nets
from tests.parity.continuous import SKEWED, UNIT
from tests.parity.harness import Config, compare, compare_keywords

pytestmark = pytest.mark.parity

KEYS = {k: v for k, v in nets.KEYS.items() if k != "priority_weight"}
RENAME = {k: v for k, v in nets.RENAME.items() if k != "priority_weight"}


def build(
    lib,
    *,
    keys=None,
    shared=False,
    critics=0,
    estimator=None,
    box=UNIT,
    tanh=True,
    spec=True,
    **kwargs,
):
    keys = keys or {}
    action, out = (keys.get(k, k) for k in ("action", "state_action_value"))
    common = stochastic.trunk() if shared else None
    actor = stochastic.stochastic(lib, box=box, tanh=tanh, action=action, common=common, spec=spec)
    made = [
        stochastic.critic(lib, action=action, out=out, common=common) for _ in range(critics or 1)
    ]
    if not spec:
        kwargs.setdefault("action_spec", stochastic.bounded(lib, box))
    kwargs = {"num_qvalue_nets": 4, **kwargs}
    loss = lib.losses.REDQLoss(actor, made if critics else made[0], **kwargs)
    return nets.finish(lib, loss, keys, estimator)


OWN = {
    "three of five": {"num_qvalue_nets": 5, "sub_sample_len": 3},
    "one of four": {"sub_sample_len": 1},
    "ten critics": {"num_qvalue_nets": 10},
    "list of critics": {"critics": 4},
    "no vmap": {"deactivate_vmap": True},
    "critics not delayed": {"delay_qvalue": False, "updater": None},
    "renamed": {"keys": KEYS, "data": {"rename": RENAME}},
    "none, excluded": {"reduction": "none", "scalar_output_mode": "exclude"},
    "none, non-tensor": {"reduction": "none", "scalar_output_mode": "non_tensor"},
    "mask": {"data": {"mask": True}},
    "mask, sum, time": {"reduction": "sum", "shape": (4, 3), "data": {"mask": True}},
    "mask, none": {"reduction": "none", "data": {"mask": True}},
    "two masks": {"data": {"mask": True, "valid": True}},
    "weights have no say": {"data": {"weights": True}},
    "skewed bounds": {"box": SKEWED},
    "normal": {"tanh": False},
    "alpha": {"alpha_init": 0.3},
    "alpha fixed": {"alpha_init": 0.3, "fixed_alpha": True},
    "alpha too low": {"alpha_init": 0.3, "min_alpha": 0.5},
    "alpha too high": {"alpha_init": 3.0, "max_alpha": 2.0},
    "alpha fixed outside": {"alpha_init": 3.0, "max_alpha": 2.0, "fixed_alpha": True},
    "target entropy": {"target_entropy": -7.0, "alpha_init": 0.7},
    "action_spec": {"spec": False},
}
NOT_HERE = {
    "n-step transitions",
    "delayed actor",
    "actor not delayed",
    "buffers and frozen layers",
    "one column",
}
SHARED = {
    k: v for k, v in nets.OPTIONS.items() if k not in NOT_HERE and not k.startswith("weights")
}
CONFIGS = [
    nets.config(build, name, skip=("target_entropy_buffer",), **kwargs)
    for name, kwargs in {**SHARED, **OWN}.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


def test_call_with_keywords() -> None:
    compare_keywords(nets.config(build, "keywords"))
