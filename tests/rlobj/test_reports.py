"""What losses write into the batch, and report beside their terms, is constant: it would otherwise
keep the graph of an update alive for as long as somebody holds the batch or a log."""

import pytest
from torch import Tensor

from rlobj import LossModule
from rlobj._parts import part
from tests.rlobj.cases import CASES, batch_for, build

WITH_VALUE = {"qvalue_v1_loss", "value_loss"}  # of SAC's first version


def parts(loss: LossModule) -> list[str]:
    """The names of the methods under ``@part``."""
    wrapper = part(lambda self, tensordict: None).__code__
    found = []
    for name in dir(type(loss)):
        method = getattr(type(loss), name)
        while method is not None:
            if getattr(method, "__code__", None) is wrapper:
                found.append(name)
            method = getattr(method, "__wrapped__", None)
    return found


@pytest.mark.parametrize("name", CASES)
def test_reports_are_constants(name: str) -> None:
    loss, data = build(name), batch_for(name)
    out = loss(data)
    out = out[0] if isinstance(out, tuple) else out  # of Dreamer
    found = {k: v for k, v in out.items() if not k.startswith("loss")}
    found |= dict(data.items(True, True))
    without = set() if getattr(loss, "has_value_network", True) else WITH_VALUE
    for method in set(parts(loss)) - without:
        _, *reports = getattr(loss, method)(batch_for(name))
        for n, report in enumerate(reports):
            items = report.items() if hasattr(report, "items") else [(n, report)]
            found |= {(method, k): v for k, v in items}
    assert {k for k, v in found.items() if isinstance(v, Tensor) and v.requires_grad} == set()
