"""The site: `make docs` builds it into docs/_build/html. Every warning is an error there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "rlobj / bench"
author = "The rlobj/bench developers"
copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "api",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["api.css"]
html_show_sphinx = False
html_copy_source = False

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
    "exclude-members": "default_keys, DTConfig",  # classes that are attributes of others
}
autodoc_inherit_docstrings = False  # torch's words about forward say nothing about a loss
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_param = False  # would take "low, high: bounds" for one parameter of type "low,"
napoleon_use_rtype = False
default_role = "code"
smartquotes = False  # quotes belong to strings of code
python_maximum_signature_line_length = 100
python_trailing_comma_in_multi_line_signatures = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# References must lead somewhere. The build reads nothing from the network, so what belongs to
# other packages is named without a link.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|contextlib|enum|numpy|pathlib|tensordict|torch|typing)\..*"),
    (
        "py:class",
        r"(nn\.Module|Coeff|InteractionType|NestedKey|Options|Path|Tensor|TensorDict)"
        r"|ActionSpec|Behaviour|Offline|envs\.EnvInfo",
    ),  # annotations as written
    ("py:class", r"bench\..*|rlobj\._networks\.Networks"),  # types of inner workings
]
