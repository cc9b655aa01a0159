"""Splice junctions: 60 nucleotides of DNA whose class rests on two of them; classifiers trained with random masks."""

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

import dsf_models  # noqa: F401  registers the architectures with the Auto classes
from dsf_models.hub.files import new_folder
from dsf_models.hub.usage import UsageError

NUCLEOTIDES = "ACGT"
MASK = len(NUCLEOTIDES)
CLASSES = ("ei", "ie", "n")
MOTIFS = {"ei": (30, 31), "ie": (28, 29)}
"""Positions, from 0, that make a donor (GT) and an acceptor (AG)."""

_MASKED_AT_MOST = 0.3
_TRAINING_SHARE = 0.8
_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "channel_mixer": "mlp", "intermediate_size": 128}
MODELS = {
    "s4d": {"model_type": "dsf_s4d", "state_size": 32, **_SHAPE},
    "s4d_two_sided": {"model_type": "dsf_s4d", "state_size": 32, "bidirectional": True, **_SHAPE},
    "softmax_attention": {
        "model_type": "dsf_softmax_attention",
        "state_size": 16,
        "num_heads": 4,
        "position_embedding": "rope",
        **_SHAPE,
    },
}
"""Configurations of what is compared: width, layers and networks are the same."""


@dataclass(frozen=True)
class Sequences:
    """Encoded sequences and their classes."""

    input_ids: Tensor
    """(b, 60)."""

    labels: Tensor
    """(b,)."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def load(path: Path) -> tuple[Sequences, Sequences]:
    """Read what scripts/splice.py writes, each sequence once, shuffled from a fixed seed.

    Returns:
        Four fifths to learn from, and the rest to test on.

    Raises:
        UsageError: the file is missing, or no such file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["sequence"]: row["label"] for row in reversed(list(csv.DictReader(file)))}
        ids = [[NUCLEOTIDES.index(letter) for letter in sequence] for sequence in rows]
        labels = [CLASSES.index(label) for label in rows.values()]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"--data {path} cannot be read ({error}): make it with scripts/splice.py.") from error
    order = list(range(len(ids)))
    random.Random(0).shuffle(order)
    encoded, classes = torch.tensor(ids)[order], torch.tensor(labels)[order]
    split = int(_TRAINING_SHARE * len(order))
    return Sequences(encoded[:split], classes[:split]), Sequences(encoded[split:], classes[split:])


def mask_at_random(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Make a batch in which each sequence has lost a share of its tokens, uniform between none and three tenths."""
    ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    rates = _MASKED_AT_MOST * torch.rand(len(ids), 1)
    return {"input_ids": ids.masked_fill(torch.rand(ids.shape) < rates, MASK), "labels": labels}


def train(name: str, seed: int, steps: int, data: Sequences, folder: Path) -> PreTrainedModel:
    """Train a classifier, or load the one that was trained here before.

    Args:
        name: of `MODELS`.
        seed: of the initial weights, the order of the examples and the masks.
        steps: optimiser steps of 64 sequences.
        data: to learn from.
        folder: of the checkpoint.

    Returns:
        The model in evaluation mode.
    """
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        fields = dict(MODELS[name])
        model_type = fields.pop("model_type")
        config = AutoConfig.for_model(model_type, vocab_size=MASK + 1, num_labels=len(CLASSES), **fields)
        arguments = TrainingArguments(
            output_dir=str(folder.with_name(f"{folder.name}.training")),
            per_device_train_batch_size=64,
            max_steps=steps,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            weight_decay=0.05,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_steps=steps,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        model = AutoModelForSequenceClassification.from_config(config)
        Trainer(model, arguments, train_dataset=data, data_collator=mask_at_random).train()
        with new_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()
