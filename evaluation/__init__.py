"""Evaluation of checkpoints on the tasks of the zoo; `evaluate.py` is the entry point."""
