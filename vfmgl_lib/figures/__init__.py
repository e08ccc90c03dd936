"""One function per figure: tidy tables in, a matplotlib Figure out; no file is read, nothing is trained.

`style` holds what all figures share (widths, colours of the centres and methods, saving), `samples` the tables that are made from images,
`heterogeneity`, `method.hgkt`, `method.ddbl` and `rounds` the figures themselves and the reductions of a study's tables they draw;
`comparison`, `generalization` and `overlays` draw several studies side by side; `escaping` keeps names in tables from being HTML.
"""
