"""Programs made of traced graphs: what is shared, what must not be, and how many calls remain."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.engine.merge import Merged, is_view
from bench.engine.trace import flat_graph

aten = torch.ops.aten


class Calls(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func):
            self.names[func.name().removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def run_counted(run: Any, *args: Tensor) -> tuple[list[Tensor], Counter[str]]:
    with Calls() as calls:
        found = run(*args)
    return found, calls.names


def test_work_that_two_graphs_share_is_done_once() -> None:
    weight, x = torch.randn(2, 3, 3), torch.randn(2, 4, 3)
    first = flat_graph(lambda w, x: [(x @ w).relu()], [weight, x])
    second = flat_graph(lambda w, x: [(x @ w).relu().sum()], [weight, x])
    merged = Merged()
    w, given = merged.lasting(weight), merged.given()
    results = [r for g in (first, second) for r in merged.include(g, [w, given])]
    found, names = run_counted(merged.compile(results), x)
    assert names == {"bmm": 1, "relu": 1, "sum": 1}
    torch.testing.assert_close(found[1], (x @ weight).relu().sum())


@pytest.mark.parametrize("how", ["itself", "a view", "a part", "a view of a part"])
def test_what_was_written_to_is_read_anew(how: str) -> None:
    """Catches: a value from before an optimizer step used after it, through any kind of view."""
    read = {
        "itself": lambda p: p.exp(),
        "a view": lambda p: p.transpose(0, 1).exp(),
        "a part": lambda p: p.chunk(2, 1)[1].exp(),
        "a view of a part": lambda p: p.unbind(0)[1].unsqueeze(0).exp(),
    }[how]
    tensor = torch.arange(4.0).reshape(2, 2)
    graph = flat_graph(lambda p: [read(p)], [tensor])
    merged = Merged()
    node = merged.lasting(tensor)
    before = merged.include(graph, [node])
    merged.write(aten.add_.Tensor, (node, 1))
    after = merged.include(graph, [node])
    found = merged.compile([*before, *after])()
    torch.testing.assert_close(found[0], read(torch.arange(4.0).reshape(2, 2)))
    torch.testing.assert_close(found[1], read(torch.arange(4.0).reshape(2, 2) + 1))


def test_constants_are_computed_when_the_program_is_built() -> None:
    def program(x: Tensor) -> list[Tensor]:
        scale = torch.ones_like(x) / 4 + torch.zeros(2, 2).exp()
        return [x * scale]

    x = torch.randn(2, 2)
    merged = Merged()
    run = merged.compile(merged.include(flat_graph(program, [x]), [merged.given()]))
    found, names = run_counted(run, x)
    assert names == {"mul.Tensor": 1}
    torch.testing.assert_close(found[0], 1.25 * x)


def test_numbers_that_compare_equal_are_told_apart() -> None:
    x = torch.arange(3)
    graph = flat_graph(lambda x: [x * 1.5, x + 1, x + 1.0, x + True], [x])
    merged = Merged()
    found = merged.compile(merged.include(graph, [merged.given()]))(x)
    assert [f.dtype for f in found] == [torch.float32, torch.int64, torch.float32, torch.int64]


def test_a_loss_that_draws_past_the_noise_source_is_refused() -> None:
    x = torch.randn(3)
    merged = Merged()
    graph = flat_graph(lambda x: [x + torch.rand_like(x)], [x])
    with pytest.raises(RuntimeError, match=r"rand_like.* draws"):
        merged.include(graph, [merged.given()])


WRITES = {
    "into a part": lambda y: y[0].add_(1),
    "into a piece": lambda y: y.split(1)[0].add_(1),
    "into all of it": lambda y: y.add_(1),
    "of another type": lambda y: y.add_(torch.ones(2, dtype=torch.float64)),
}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("read", [False, True], ids=["", "read before"])
def test_writes_within_a_loss_become_values(how: str, read: bool) -> None:
    def program(x: Tensor) -> list[Tensor]:
        y = x * 2
        more = [y[1:], y.sum()] if read else []
        WRITES[how](y)
        return [y, *(t + 1 for t in more)]

    x = torch.randn(2, 2)
    merged = Merged()
    run = merged.compile(merged.include(flat_graph(program, [x]), [merged.given()]))
    for found, expected in zip(run(x), program(x), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_a_loss_is_traced_once_though_autograd_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a clamp writes into a mask of its own. Tracing anew takes as long again."""
    monkeypatch.delattr("bench.engine.trace.functionalize")

    def program(x: Tensor) -> list[Tensor]:
        y = x.detach().requires_grad_()
        return list(torch.autograd.grad(y.clamp(-1, 1).sum(), [y]))

    graph = flat_graph(program, [torch.randn(3)])
    names = [n.target for n in graph.graph.nodes]
    assert aten.logical_and.default in names and aten.logical_and_.default not in names


def layer(weight: Tensor, bias: Tensor, x: Tensor) -> list[Tensor]:
    """A stacked layer and the gradient of its weights, laid out like them."""
    y = x @ weight.transpose(-1, -2) + bias.unsqueeze(-2)
    return [y, (x.transpose(-1, -2) @ y).transpose(-1, -2).contiguous()]


@pytest.mark.parametrize("networks", [(1,), (2,), (3, 2)])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(64, 17, 128), (256, 256, 256)])
def test_fused_products_keep_their_values(
    networks: tuple[int, ...], rows: int, inputs: int, outputs: int
) -> None:
    """Catches: a bias added twice or to the wrong axis, factors in the wrong order."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((outputs, inputs), (outputs,), (rows, inputs))
    given = [torch.randn(*networks, *s, generator=generator) for s in shapes]
    merged = Merged()
    nodes = [merged.lasting(given[0]), merged.lasting(given[1]), merged.given()]
    run = merged.compile(merged.include(flat_graph(layer, given), nodes))
    found, names = run_counted(run, given[2])
    assert names == {"baddbmm": 1, "bmm": 1}
    for mine, expected in zip(found, layer(*given), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-3)
        assert mine.is_contiguous()


def test_a_product_used_elsewhere_is_left_alone() -> None:
    a, b, bias = torch.randn(2, 4, 3), torch.randn(2, 3, 5), torch.randn(2, 1, 5)

    def program(a: Tensor, b: Tensor, bias: Tensor) -> list[Tensor]:
        y = a @ b
        return [y + bias, y.relu()]

    merged = Merged()
    nodes = [merged.given() for _ in range(3)]
    run = merged.compile(merged.include(flat_graph(program, [a, b, bias]), nodes))
    found, names = run_counted(run, a, b, bias)
    assert names == {"bmm": 1, "add.Tensor": 1, "relu": 1}
    torch.testing.assert_close(found[0], a @ b + bias)


@pytest.mark.parametrize("axes", [(4,), (3, 4)])
def test_an_input_is_laid_out_once_for_all_critics(axes: tuple[int, ...]) -> None:
    """Catches: parts in the wrong order or repeated along the wrong axis."""
    parts = [torch.randn(2, *axes, 3), torch.randn(2, *axes, 5)]

    def program(*parts: Tensor) -> list[Tensor]:
        pair = torch.cat(parts, -1).reshape(2, 1, -1, 8)
        return [pair.expand(2, 3, -1, 8).contiguous() * 2]

    merged = Merged()
    run = merged.compile(
        merged.include(flat_graph(program, parts), [merged.given(), merged.given()])
    )
    found, names = run_counted(run, *parts)
    assert names == {"cat": 1, "mul.Tensor": 1}
    assert torch.equal(found[0], program(*parts)[0])


@pytest.mark.parametrize(
    "case", ["shared bias", "members of one product", "after a turn", "strides"]
)
def test_what_looks_alike_is_left_as_it_is(case: str) -> None:
    """Catches: rewrites of what has other shapes or strides than a stacked layer."""
    a, b, bias = torch.randn(2, 1, 4, 3), torch.randn(2, 1, 3, 5), torch.randn(2, 3, 1, 5)
    program = {
        "shared bias": lambda a, b, bias: [a @ b + bias[:, :1, :, :1].expand(2, 1, 1, 5)],
        "members of one product": lambda a, b, bias: [a @ b + bias],
        "after a turn": lambda a, b, bias: [
            (a @ b).transpose(-1, -2).contiguous() + bias[:, :1].transpose(-1, -2)
        ],
        "strides": lambda a, b, bias: [torch.zeros_like(a[0, 0].t()).t().view(-1)],
    }[case]
    merged = Merged()
    graph = flat_graph(program, [a, b, bias])
    run = merged.compile(merged.include(graph, [merged.given() for _ in range(3)]))
    torch.testing.assert_close(run(a, b, bias)[0], program(a, b, bias)[0])


def test_zeros_of_both_signs_are_told_apart() -> None:
    x = torch.ones(2)
    graph = flat_graph(lambda x: [1 / (x * 0.0), 1 / (x * -0.0)], [x])
    merged = Merged()
    found = merged.compile(merged.include(graph, [merged.given()]))(x)
    assert found[0][0] == float("inf") and found[1][0] == -float("inf")
