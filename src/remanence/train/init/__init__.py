"""Initial weights: induction heads, word vectors, and the layers of a shallower model."""
