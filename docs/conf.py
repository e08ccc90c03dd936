"""Sphinx's settings for the site. `vfmgl docs` puts the sources together and calls Sphinx with them; docs/site.md says how and why."""

from pathlib import Path

from docutils.utils.math.latex2mathml import tex2mathml

from vfmgl_lib import __version__, cli
from vfmgl_lib.tools.docs.docstrings import to_rst
from vfmgl_lib.tools.docs.reference import commands_of

project = "VFMGL Workbook"
version = release = __version__
author = "the maintainers of VFMGL Workbook"
copyright = "VFMGL Workbook, Apache-2.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the outputs are those of a run
nb_ipywidgets_js = {}  # would come from another site
nb_merge_streams = True

html_theme = "furo"
html_title = f"VFMGL Workbook {__version__}"
html_static_path = [str(Path(__file__).parent / "_static")]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_permalinks_icon = "#"
pygments_style = "default"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config, forward"}
maximum_signature_line_length = 100


def _read_docstring(app, what, name, obj, options, lines):
    lines[:] = to_rst(lines)


def _add_commands(app, docname, source):
    if docname == "commands":
        help_texts = commands_of(cli.main, {name: about for name, (_, about) in cli.COMMANDS.items()})
        source[0] = source[0].replace("<!-- the help of every command -->", help_texts)


def _inline_math(self, node):
    self.body.append(tex2mathml(node.astext(), as_block=False))
    raise _skip()


def _block_math(self, node):
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise _skip()


def _skip():
    from docutils.nodes import SkipNode

    return SkipNode()


def setup(app):
    """Mathematics as MathML, which browsers show by themselves: no script and no font from elsewhere."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("autodoc-process-docstring", _read_docstring)
    app.connect("source-read", _add_commands)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["commands"])  # its text is not in its file
