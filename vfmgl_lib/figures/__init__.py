"""One function per figure: tidy tables in, a matplotlib Figure out; no file is read, nothing is trained.

`style` holds what all figures share (widths, colours of the centres, saving), `samples` the tables that are made from images,
`heterogeneity`, `transfer`, `deduction` and `rounds` the figures themselves and the reductions of a study's tables they draw.
"""
