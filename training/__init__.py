"""Training of the zoo's models with Accelerate; `train.py` is the entry point."""
