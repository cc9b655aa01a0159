"""Text as the data of a run: documents, a tokenizer, packed rows, and a 3-gram to compare with."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dsf_models.hub.files import new_folder
from dsf_models.hub.usage import UsageError
from dsf_models.tasks.text import (
    KneserNey,
    PackedStream,
    TextError,
    deduplicate,
    end_of_text_id,
    file_documents,
    hub_documents,
    load_tokenizer,
    pack,
    split_documents,
    train_tokenizer,
)
from dsf_models.version import __version__
from training.config import TextConfig
from training.data import Delivery, Examples, RunData, Share, TrainingSource
from training.readout import EachReadout
from training.score import Score


class TextExamples(Examples):
    """Packed rows of a split."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self._rows = rows.with_format("numpy")
        super().__init__(len(rows), len(rows[0]["input_ids"]))

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these indices (b,): arrays of shape (b, t)."""
        return dict(self._rows[indices])


@dataclass(frozen=True)
class TextStream(TrainingSource):
    """Packed rows that are made while the model learns."""

    documents: datasets.IterableDataset
    """Column `text`."""

    tokenizer: PreTrainedTokenizerBase
    """Has an end-of-text token."""

    block_size: int
    """Tokens of a row."""

    window: int
    """Rows that are brought into a random order together."""

    def deliveries(self, step: int, share: Share, position: Mapping[str, Any]) -> Iterator[Delivery]:
        """As every source; the position is that of the stream."""
        stream = PackedStream(
            self.documents,
            self.tokenizer,
            self.block_size,
            seed=share.seed,
            window=self.window,
            rank=share.process,
            world_size=share.num_processes,
        )
        if position:
            stream.load_state_dict(dict(position))
        while True:
            rows = stream.next_rows(share.batch_size // share.num_processes)
            chunks = {name: column.chunk(share.parts) for name, column in rows.items()}
            parts = [{name: chunk[i] for name, chunk in chunks.items()} for i in range(share.parts)]
            yield Delivery(parts, stream.state_dict())


@dataclass(frozen=True, kw_only=True)
class TextData(RunData):
    """Text in three splits that share no document."""

    tokenizer: PreTrainedTokenizerBase
    """Between the text and its token ids."""

    bytes_per_token: float
    """Bytes of UTF-8 behind each token of the validation split."""

    ngram_nats: Mapping[str, float]
    """Nats per token of a Kneser-Ney 3-gram, by split; empty where it was not asked for."""

    def report(self, score: Score) -> dict[str, float]:
        """Loss, perplexity, estimated bits per byte and accuracy of the next token."""
        return {
            "loss": score.loss,
            "perplexity": math.exp(min(score.loss, 700.0)),
            "bits_per_byte": score.loss / math.log(2) / self.bytes_per_token,
            "accuracy": score.accuracy,
        }

    def best_trivial(self, split: str) -> float | None:
        """The loss of the 3-gram."""
        return self.ngram_nats.get(split)

    def summary(self, score: Score, split: str) -> str:
        """The numbers beside the 3-gram's loss."""
        numbers = self.report(score)
        beside = f"  (3-gram {self.ngram_nats[split]:.4f})" if self.ngram_nats else ""
        return (
            f"loss {score.loss:.4f}{beside}  perplexity {numbers['perplexity']:.2f}  "
            f"bits per byte {numbers['bits_per_byte']:.4f}"
        )


def load_text_data(config: TextConfig, accelerator: Accelerator) -> TextData:
    """Read, split, tokenise and pack the text of a run; what is made stays in the cache of `datasets`.

    Raises:
        UsageError: naming what cannot be read, and how to put it right.
    """
    try:
        # The first process fills the cache that the others then read.
        with accelerator.main_process_first():
            return _load(config)
    except TextError as error:
        raise UsageError(f"The section `text` is refused: {error}") from error


def _load(config: TextConfig) -> TextData:
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    splits = split_documents(_documents(config), fractions, config.seed)
    tokenizer = _tokenizer(config, splits["train"])
    evaluated = {split: _evaluation_rows(config, splits[split], tokenizer) for split in fractions}
    if config.streaming:
        train: TrainingSource = TextStream(splits["train"], tokenizer, config.block_size, config.shuffle_window)
    else:
        train = TextExamples(pack(splits["train"], tokenizer, config.block_size).rows)
    return TextData(
        name=config.name,
        sequence_length=config.block_size,
        readout=EachReadout(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_of_text_id(tokenizer),
            label_alignment="next",
        ),
        train=train,
        **evaluated,
        selected_by="loss",
        tokenizer=tokenizer,
        bytes_per_token=_bytes_per_token(evaluated["validation"], tokenizer),
        ngram_nats=_ngram_nats(train, evaluated, len(tokenizer)) if config.ngram_baseline else {},
    )


def _documents(config: TextConfig) -> datasets.Dataset | datasets.IterableDataset:
    if config.dataset is None:
        found = file_documents(
            config.files, column=config.column, separator=config.separator, streaming=config.streaming
        )
    else:
        found = hub_documents(
            config.dataset,
            config=config.dataset_config,
            split=config.dataset_split,
            column=config.column,
            revision=config.revision,
            streaming=config.streaming,
        )
    return deduplicate(found) if config.deduplicate else found


def _tokenizer(config: TextConfig, documents: datasets.Dataset | datasets.IterableDataset) -> PreTrainedTokenizerBase:
    if config.tokenizer != "train":
        return load_tokenizer(config.tokenizer)
    texts = [document["text"] for document in islice(documents, config.tokenizer_documents)]
    digest = sha256(f"{__version__}/{config.vocab_size}".encode())
    for text in texts:
        digest.update(f"/{len(text)}/{text}".encode("utf-8", "surrogatepass"))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dsf_models_tokenizers" / digest.hexdigest()[:16]
    if not folder.exists():
        tokenizer = train_tokenizer(texts, config.vocab_size)
        with new_folder(folder) as unfinished:
            tokenizer.save_pretrained(unfinished)
    return AutoTokenizer.from_pretrained(folder)


def _evaluation_rows(
    config: TextConfig, documents: datasets.Dataset | datasets.IterableDataset, tokenizer: PreTrainedTokenizerBase
) -> TextExamples:
    most = config.evaluation_rows
    if config.streaming:
        stream = PackedStream(documents, tokenizer, config.block_size, seed=config.seed, window=1)
        columns = {name: column.numpy() for name, column in stream.next_rows(most).items()}
        if stream.epoch > 0:
            raise UsageError(f"text.evaluation_rows is {most}, and there are fewer: give a smaller number.")
        return TextExamples(datasets.Dataset.from_dict(columns))
    rows = pack(documents, tokenizer, config.block_size).rows
    return TextExamples(rows if most is None else rows.select(range(min(most, len(rows)))))


def _bytes_per_token(examples: TextExamples, tokenizer: PreTrainedTokenizerBase) -> float:
    ids = examples.rows(np.arange(min(len(examples), 1000)))["input_ids"]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return sum(len(text.encode()) for text in texts) / ids.numel()


def _ngram_nats(train: TextExamples, evaluated: Mapping[str, TextExamples], vocab_size: int) -> dict[str, float]:
    def ids_and_positions(examples: TextExamples) -> tuple[np.ndarray, np.ndarray]:
        rows = examples.rows(np.arange(len(examples)))
        return rows["input_ids"].numpy(), rows["position_ids"].numpy()

    model = KneserNey.fit(*ids_and_positions(train), vocab_size)
    return {split: model.nats_per_token(*ids_and_positions(examples)) for split, examples in evaluated.items()}
