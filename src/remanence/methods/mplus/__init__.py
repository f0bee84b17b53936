"""M+ (arXiv 2502.00592): a pool of memory tokens that the model updates as it reads, and a long-term memory.

Words and letters of this package. A *row* is one memory token of the paper: a hidden state of width C that belongs to
one layer. Settings and files use the same word (`write_rows`, `row_LNC`). Entries of a batch are *prompts* here, never
rows. The *pool* holds N rows per layer, a *write* adds K of them, and rows that the pool drops enter the *long-term
memory* (M rows per layer). E is the width of a search key, P the number of pools that a batch reads, W of writes.
"""
