"""Every loss compiles as one graph, with its backward pass, to the same numbers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rlobj import LossModule
from tests.rlobj import dreams
from tests.rlobj.cases import CASES, batch_for, build


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()  # the code of one method is compiled anew for each loss
    yield
    torch._dynamo.reset()


def terms_and_gradients(loss: LossModule, forward: object, name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    out = dreams.terms(forward(batch_for(name)))
    found = {k: v for k, v in out.items() if isinstance(v, Tensor)}
    total = sum(v.sum() for k, v in found.items() if k.startswith("loss"))
    params = {k: p for k, p in loss.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    return {**found, **{k: g for k, g in zip(params, grads, strict=True) if g is not None}}


def check(name: str, backend: str) -> None:
    loss = build(name)
    expected = terms_and_gradients(loss, loss, name)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    found = terms_and_gradients(loss, compiled, name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_one_graph(name: str) -> None:
    check(name, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inductor(name: str) -> None:
    torch._inductor.config.fallback_random = True  # eager's random numbers
    check(name, "inductor")
