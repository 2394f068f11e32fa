"""Corners of the distributions: tolerances of a point, edges of tanh, shapes, no dropout."""

import math

import pytest
import torch

from rlobj import noise
from rlobj.modules import TruncatedNormal
from rlobj.modules.distributions import (
    Delta,
    Dropout,
    IndependentNormal,
    TanhDelta,
    TanhNormal,
)
from tests.rlobj.cases import assert_close


def test_shapes() -> None:
    loc, scale = torch.zeros(4, 2, 3), torch.ones(3)
    kinds = (TanhNormal, IndependentNormal, TruncatedNormal)
    for dist in (*(kind(loc, scale) for kind in kinds), Delta(loc), TanhDelta(loc)):
        assert (dist.batch_shape, dist.event_shape) == ((4, 2), (3,))
        assert dist.log_prob(dist.sample((5,))).shape == (5, 4, 2)
    for wide in (IndependentNormal(loc, scale, event_dim=2), TanhNormal(loc, scale, event_dims=2)):
        assert (wide.batch_shape, wide.event_shape) == ((4,), (2, 3))
        assert wide.log_prob(0.1 + loc).shape == (4,)


@pytest.mark.parametrize("point", [-2.0, 2.0])
def test_tolerance_of_a_point(point: float) -> None:
    """0.1 and a tenth of the point: 0.3 on either side."""
    dist = Delta(torch.tensor([point]), atol=0.1, rtol=0.1)
    for off, expected in ((0.29, 0.0), (-0.29, 0.0), (0.31, -math.inf), (-0.31, -math.inf)):
        assert dist.log_prob(torch.tensor([point + off])) == expected
    exact = Delta(torch.tensor([point, 0.5]), atol=0.0, rtol=0.0)
    assert exact.log_prob(torch.tensor([point, 0.5])) == 0
    assert exact.log_prob(torch.tensor([point, 0.6])) == -math.inf


@pytest.mark.parametrize(("safe", "edge"), [(True, 1 - 1e-6), (False, math.tanh(8.0))])
def test_edges_of_tanh(safe: bool, edge: float) -> None:
    far = torch.tensor([8.0, -8.0])
    assert_close(TanhNormal(far, torch.ones(2), safe_tanh=safe).mode, [edge, -edge])
    assert_close(TanhDelta(far, safe=safe).mode, [edge, -edge])


def test_no_dropout_draws_nothing() -> None:
    x = torch.randn(3)
    with noise.using(noise.Tape([])):
        assert torch.equal(Dropout(0.0).train()(x), x)
        assert torch.equal(Dropout(0.5).eval()(x), x)
