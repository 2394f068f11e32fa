"""Every public name is where a script written for torchrl looks for it.

``torchrl.objectives`` is ``rlobj``, ``torchrl.modules``, ``.envs`` are below it, and
``torchrl.data`` is ``rlobj.specs``. The names are listed in ``names.toml``.
"""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

LISTED = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
PLACES = [(module, name) for module, names in LISTED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_importable(module: str, name: str) -> None:
    found = getattr(import_module(module), name)
    assert found.__module__.split(".")[0] in ("rlobj", "tensordict")


@pytest.mark.parametrize("name", sorted({name for _, name in PLACES}))
def test_one_name_one_thing(name: str) -> None:
    """The same class wherever it is imported from, or isinstance would tell them apart."""
    found = {id(getattr(import_module(m), n)) for m, n in PLACES if n == name}
    assert len(found) == 1


@pytest.mark.parametrize("module", ["rlobj", "rlobj.modules", "rlobj.value", "rlobj.specs"])
def test_exported(module: str) -> None:
    assert set(LISTED[module]) <= set(import_module(module).__all__)
