"""The formats that a policy is written in, and how each is read without this project."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from bench.errors import ConfigError
from bench.trained.modules import Standalone
from bench.trained.program import exported, given, quiet, tensors_of

_OPSET = 18  # of ONNX: the oldest that torch writes without converting


def _pt2(graph: GraphModule, policy: Standalone) -> bytes:
    sink = io.BytesIO()
    with quiet():
        torch.export.save(exported(graph, policy), sink)
    return sink.getvalue()


def _torchscript(graph: GraphModule, policy: Standalone) -> bytes:
    sink = io.BytesIO()
    example, _ = given(policy)
    with quiet():
        torch.jit.save(torch.jit.trace(graph, example), sink)
    return sink.getvalue()


def _onnx(graph: GraphModule, policy: Standalone) -> bytes:
    names = [slot.name for slot in (*policy.inputs, *policy.state)]
    made = ["action", *(f"next_{slot.name}" for slot in policy.state)]
    example, sizes = given(policy)
    with quiet():
        program = torch.onnx.export(
            graph,
            example,
            dynamic_shapes=sizes,
            dynamo=True,
            input_names=names,
            output_names=made,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def _safetensors(graph: GraphModule, policy: Standalone) -> bytes:
    from safetensors.torch import save

    return save(tensors_of(graph))


@dataclass(frozen=True)
class Format:
    """``reader`` is Python that defines ``policy(*inputs, *state)``, which gives a list of action
    and state, of files in the working directory, with ``array``, the arrays that it takes.
    ``needs`` are packages beyond torch that writing and reading it take."""

    suffix: str
    write: Callable[[GraphModule, Standalone], bytes]
    needs: tuple[str, ...]
    reader: str

    @property
    def file(self) -> str:
        return f"policy.{self.suffix}"


def format_of(name: str) -> Format:
    """Raises ConfigError when a package is missing that it needs."""
    chosen = FORMATS[name]
    missing = [package for package in chosen.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--format {name} needs {', '.join(missing)}: pip install 'rlobj-bench[export]'"
        )
    return chosen


FORMATS = {
    "pt2": Format(
        "pt2",
        _pt2,
        (),
        """\
import numpy, torch

policy = torch.export.load("policy.pt2").module()
array = torch.as_tensor
""",
    ),
    "torchscript": Format(
        "pt",
        _torchscript,
        (),
        """\
import numpy, torch

policy = torch.jit.load("policy.pt")
array = torch.as_tensor
""",
    ),
    "onnx": Format(
        "onnx",
        _onnx,
        ("onnx", "onnxscript", "onnxruntime"),
        """\
import numpy, onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
names = [given.name for given in session.get_inputs()]
policy = lambda *given: session.run(None, dict(zip(names, given)))
array = numpy.asarray
""",
    ),
    "safetensors": Format(
        "safetensors",
        _safetensors,
        ("safetensors",),
        """\
import json, numpy, torch
from safetensors.torch import load_file

tensors, program = load_file("policy.safetensors"), json.load(open("policy.json"))["program"]
array = torch.as_tensor

def policy(*given):
    known = {**tensors, **dict(zip(program["inputs"], given))}
    def value(x):
        if isinstance(x, list):
            return [value(part) for part in x]
        if isinstance(x, dict):
            return getattr(torch, x["dtype"])
        return known[x] if isinstance(x, str) else x
    for name, operation, positional, named in program["operations"]:
        if operation == "getitem":
            run = list.__getitem__
        else:
            run, overload = torch.ops.aten, operation.split(".")
            run = getattr(getattr(run, overload[0]), overload[1])
        known[name] = run(*value(positional), **{k: value(v) for k, v in named.items()})
    return [known[name] for name in program["outputs"]]
""",
    ),
}
