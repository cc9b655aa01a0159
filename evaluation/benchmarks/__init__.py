"""Benchmarks: this project's models beside their peers, in one process, with the same weights. Not timed tests."""
