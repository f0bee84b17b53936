"""Evaluations: question answering and retention with memory, without it, and with references as text."""
