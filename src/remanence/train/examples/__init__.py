"""Training examples: corpora, tokenizers, and how texts become batches."""
