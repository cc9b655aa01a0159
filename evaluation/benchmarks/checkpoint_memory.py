"""Memory of one checkpoint in a process of its own: checkpoint_memory.py MODEL MEASURE BATCH LENGTH prints bytes."""

import sys

import torch

from evaluation.benchmarks.measure import MEASURES, extra_memory
from evaluation.checkpoints import load_model


def main() -> None:
    """Print the bytes that a measurement adds at its peak to what the process held before."""
    name, measure, batch, length = sys.argv[1:]
    torch.set_num_threads(1)
    model = load_model(name)
    size = model.get_input_embeddings().num_embeddings
    print(extra_memory(model, torch.randint(size, (int(batch), int(length))), MEASURES[measure]))


if __name__ == "__main__":
    main()
