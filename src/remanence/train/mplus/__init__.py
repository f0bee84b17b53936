"""Training of M+: its pool, its retriever and its stages."""
