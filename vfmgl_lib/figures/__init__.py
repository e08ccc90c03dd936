"""One function per figure: tidy tables in, a matplotlib Figure out; no file is read, nothing is trained or computed.

A module has the figures of one subject. `style` holds what all share: widths, colours of centres and methods, the heat map, saving.
`overview` draws what applies to a task or says why nothing does; `words` has the sentences that several figures need; `escaping` keeps
names in tables from being HTML.
"""
