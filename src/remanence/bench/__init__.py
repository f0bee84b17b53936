"""Benchmarks: costs of recall, the bank and M+, side by side with alternatives."""
