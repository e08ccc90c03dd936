"""The site: pages of `docs/` and of other folders, executed notebooks, commands and library, built offline by Sphinx.

`pages` puts the sources together in one folder, `notebooks` those of a run, `reference` the commands and the library, `docstrings` says how
docstrings are read, `gallery` makes the figures of README.md, and `links` checks what has been built. `docs/conf.py` is Sphinx's part.
"""
