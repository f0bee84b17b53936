"""Question answering with and without memory: tasks, systems, figures."""
