"""Trains models that read and write memory: recipes, examples, the loop, and a trainer for each class of recipes."""
