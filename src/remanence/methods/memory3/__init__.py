"""Memory³ (arXiv 2407.01178): explicit memory, sparse attention keys and values of reference texts."""
