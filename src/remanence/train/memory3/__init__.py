"""Training with explicit memory (Memory³): nano, and stored sequences of running text."""
