"""The documentation site: `make docs` writes it to runs/docs.

Its pages need no network: equations are MathML, which docutils writes and browsers draw, and
pictures are files of `docs/images/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "dmtg"
html_title = "dmtg"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
nitpicky = True
default_role = "code"  # docstrings have names in single backticks

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # `Attributes:` of a class whose members are listed, too

# Types of other libraries have no page here, and their inventories would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(accelerate|collections|PIL|np|numpy|os|pathlib|torch|typing|nn)\..*"),
    ("py:.*", r"[A-Z_][A-Za-z_]*"),  # names without a module: builtins, and aliases such as `Path`
]

html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False


def _visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    mathml = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{mathml}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write equations as MathML."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
