"""Long-term memory for language models."""
