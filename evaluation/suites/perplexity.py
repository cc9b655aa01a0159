"""Perplexity of documents: bits per byte and per word, with the tokens that the context gives away apart from the rest.

A document is read as its tokenizer writes it, behind the beginning-of-text token where the tokenizer puts one. Without
one nothing predicts the first token, which is paid for at the uniform distribution, log V. The end of text is scored.

    bits per byte = sum of -log2 p over all tokens of all documents / their bytes of UTF-8
    perplexity    = exp(mean of -log p over the scored tokens)

A document of more tokens than the window W is read in windows that start S tokens apart: each scores the tokens that
none before it has scored, so that all but those of the first window have at least W - S tokens of context.

A token is one of recall where it completes a repeated bigram: where the pair (x_{t-1}, x_t) stands earlier in what
the model reads. Source: S. Arora et al., "Zoology", arXiv:2312.04927, whose recall tokens ("AR hits") are, besides, of
pairs that are rare in the training data, which are not known here.

Letters: n tokens of a document, d documents, b windows, t positions, v vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsf_models.hub.metric import Metric
from dsf_models.hub.usage import UsageError
from dsf_models.tasks.counter_rng import Floats, Ints
from dsf_models.tasks.text import TextError, file_documents, load_tokenizer
from evaluation.checkpoints import load_tokenizer_of
from evaluation.config import EvaluationConfig, TextOptions
from evaluation.intervals import bootstrap
from evaluation.results import Curve, Point, measured
from evaluation.suites.base import Suite
from evaluation.suites.task import looks_ahead, state_facts

INTERVAL = "Percentile bootstrap over documents at 95 %, 1,000 resamples: of the choice of documents alone."
_CHOICE_SEED = 0
"""Of the choice of documents."""
_TEXT_OPTIONS = tuple(f"text.{field.name}" for field in fields(TextOptions) if field.name != "label")
_STATE_AFTER = 1024
"""Tokens behind which the state is measured, where a document has as many."""
_BINS = 24
"""Bins of positions: 1, 2–3, 4–7, … tokens of context."""


@dataclass(frozen=True)
class Window:
    """A part of a document that is read at once.

    Attributes:
        document: index of the document.
        ids: (t,), what is read.
        first: position in `ids` of the first token that is scored, at least 1.
        start: position of the window in its document.
    """

    document: int
    ids: Ints
    first: int
    start: int


@dataclass(frozen=True)
class Tokens:
    """Sums over the scored tokens of each document.

    Attributes:
        nats: (d, 2), of the other tokens and of those of recall.
        count: (d, 2), their numbers.
        nats_at: (d, bins), by the position in the document.
        count_at: (d, bins).
    """

    nats: Floats
    count: Floats
    nats_at: Floats
    count_at: Floats


class Perplexity(Suite):
    """How well language models predict documents of local files."""

    uses = frozenset({*_TEXT_OPTIONS, "num_examples", "batch_size"})
    interval = INTERVAL

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config)
        self.texts = read_texts(config.text, config.num_examples)
        self.bytes = np.array([len(text.encode()) for text in self.texts], np.float64)
        self.words = np.array([len(text.split()) for text in self.texts], np.float64)
        self.facts = {
            "name": "perplexity",
            "dataset": config.text.name,
            "split": "given",
            "seed": None if config.num_examples is None else _CHOICE_SEED,
            "data_hash": texts_hash(self.texts),
            "documents": len(self.texts),
            "bytes": int(self.bytes.sum()),
            "words": int(self.words.sum()),
        }

    def evaluate(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """Metrics, the loss by position, and bytes, words, tokens and nats of each document."""
        check_predicts(model, name)
        text = self.config.text
        tokenizer = _tokenizer(text, name)
        check_tokenizer(model, tokenizer, name)
        ids, has_start = encode(tokenizer, self.texts, text.end_of_text)
        limit = text.window or max_positions(model)
        stride = check_stride(text.stride, limit)
        try:
            tokens = score(model, list(windows(ids, limit, stride)), len(ids), self.config.batch_size)
        except (ValueError, IndexError) as error:
            raise UsageError(f"--model {name} does not take these documents: {error}") from error
        unscored = 0.0 if has_start else math.log(len(tokenizer))
        longest = max(ids, key=len)[: min(_STATE_AFTER, limit or _STATE_AFTER)]
        return {
            "state": state_facts(model, np.array([longest])),
            "reading": {
                "tokenizer_size": len(tokenizer),
                "window": limit,
                "stride": stride,
                "start_token": has_start,
                "end_of_text": text.end_of_text and tokenizer.eos_token_id is not None,
            },
            **measured(self._metrics(tokens, unscored), [position_curve(tokens)]),
            "documents": self._documents(tokens, unscored),
        }

    def _metrics(self, tokens: Tokens, unscored: float) -> list[Metric]:
        """All metrics; `unscored` are the nats of each document's first token where nothing predicts it."""
        total = tokens.nats.sum(axis=1) + unscored
        sums = np.column_stack([total, self.bytes, self.words, tokens.nats, tokens.count])
        counts = {"documents": len(self.texts)}

        def metric(name: str, kind: str, statistic: Any, **more: Any) -> Metric | None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                value = float(statistic(sums.sum(axis=0)[None])[0])
            if not math.isfinite(value):
                return None
            counted = counts | more.pop("counts", {})
            interval = bootstrap(sums, statistic)
            more = {"is_fraction": False} | more
            return Metric(name=name, kind=kind, split="given", value=value, interval=interval, counts=counted, **more)

        rest, hits = (int(count) for count in tokens.count.sum(axis=0))
        found = [
            metric("bits per byte", "bits_per_byte", lambda s: s[:, 0] / s[:, 1] / math.log(2)),
            metric("bits per word", "bits_per_word", lambda s: s[:, 0] / s[:, 2] / math.log(2)),
            metric("word perplexity", "word_perplexity", lambda s: np.exp(s[:, 0] / s[:, 2])),
            metric(
                "token perplexity",
                "perplexity",
                lambda s: np.exp((s[:, 3] + s[:, 4]) / (s[:, 5] + s[:, 6])),
                counts={"tokens": rest + hits},
            ),
            metric(
                "token perplexity, recall",
                "perplexity",
                lambda s: np.exp(s[:, 4] / s[:, 6]),
                counts={"tokens": hits},
            ),
            metric(
                "token perplexity, other", "perplexity", lambda s: np.exp(s[:, 3] / s[:, 5]), counts={"tokens": rest}
            ),
            metric("share of recall tokens", "share", lambda s: s[:, 6] / (s[:, 5] + s[:, 6]), is_fraction=True),
        ]
        return [entry for entry in found if entry is not None]

    def _documents(self, tokens: Tokens, unscored: float) -> dict[str, list[float]]:
        return {
            "bytes": self.bytes.astype(int).tolist(),
            "words": self.words.astype(int).tolist(),
            "tokens": tokens.count.sum(axis=1).astype(int).tolist(),
            "nats": (tokens.nats.sum(axis=1) + unscored).round(4).tolist(),
        }


def read_texts(options: TextOptions, most: int | None) -> list[str]:
    """Read the documents of local files.

    Args:
        options: where they are.
        most: how many of them to choose at random; None for all.

    Raises:
        UsageError: no files are given, or they cannot be read.
    """
    if not options.files:
        raise UsageError("--text.files is missing: give files, folders or globs of documents.")
    try:
        documents = file_documents(options.files, column=options.column, separator=options.separator)
    except TextError as error:
        raise UsageError(f"--text.files is refused: {error}") from error
    if most is None or most >= len(documents):
        return documents["text"][:]
    # Files are often sorted, by class or by date: the first documents are like each other.
    chosen = np.random.default_rng(_CHOICE_SEED).choice(len(documents), most, replace=False)
    return documents.select(np.sort(chosen))["text"][:]


def texts_hash(texts: Sequence[str]) -> str:
    """SHA-256 of all documents, each behind its number of bytes."""
    digest = sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)}/".encode() + content)
    return digest.hexdigest()


def check_predicts(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose outputs do not predict the next token."""
    if looks_ahead(model):
        raise UsageError(f"--model {name} looks ahead: a model that sees the next token cannot be asked to predict it.")
    if getattr(model.config, "label_alignment", "next") == "same":
        raise UsageError(
            f"--model {name} was trained to answer at each position, not to predict the next one: evaluate its task."
        )


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer with ids that the model does not know."""
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise UsageError(f"--model {name} knows {size} tokens, its tokenizer {len(tokenizer)}: give its own tokenizer.")


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], end_of_text: bool) -> tuple[list[Ints], bool]:
    """The ids of each document.

    Args:
        tokenizer: of the model.
        texts: documents.
        end_of_text: whether the end-of-text token is put behind each, where the tokenizer has one.

    Returns:
        The ids (n,), and whether they begin with the beginning-of-text token, as the tokenizer itself would write it.
    """
    start = tokenizer("").input_ids[:1]
    has_start = start == [tokenizer.bos_token_id]
    tail = [tokenizer.eos_token_id] if end_of_text and tokenizer.eos_token_id is not None else []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    ).input_ids
    return [np.array([*(start if has_start else []), *ids, *tail]) for ids in encoded], has_start


def max_positions(model: PreTrainedModel) -> int | None:
    """Most tokens that a model says it can read, or None where it names no limit."""
    names = ("max_position_embeddings", "n_positions", "n_ctx")
    return next((value for name in names if (value := getattr(model.config, name, None)) is not None), None)


def check_stride(stride: int | None, window: int | None) -> int | None:
    """The stride of windows of a size, None where there are none.

    Raises:
        UsageError: it leaves no context.
    """
    if window is None:
        if stride is not None:
            raise UsageError("--text.stride is given, but the model has no limit: give --text.window too.")
        return None
    chosen = max(1, window // 2) if stride is None else stride
    if window < 2 or chosen >= window:
        raise UsageError(f"--text.stride {chosen} and --text.window {window}: use a stride below the window.")
    return chosen


def windows(documents: Sequence[Ints], window: int | None, stride: int | None) -> Iterator[Window]:
    """Cut documents into windows that score each token but the first of a document once; see the module."""
    for index, ids in enumerate(documents):
        if len(ids) < 2:
            continue
        start, scored = 0, 1
        while scored < len(ids):
            stop = len(ids) if window is None else min(start + window, len(ids))
            yield Window(index, ids[start:stop], scored - start, start)
            scored, start = stop, start + (stride or 0)


def completes_bigram(ids: Ints) -> np.ndarray:
    """Where (x_{t-1}, x_t) has stood before: booleans (t,), False at position 0."""
    pairs = ids[:-1].astype(np.int64) * (int(ids.max()) + 1) + ids[1:]
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return np.concatenate([[False], first[inverse] < np.arange(len(pairs))])


@torch.no_grad()
def score(model: PreTrainedModel, parts: Sequence[Window], num_documents: int, batch_size: int) -> Tokens:
    """Score the windows, those of one length together; pads stand at the right, where a causal model never reads them.

    Args:
        model: a causal language model.
        parts: windows of all documents.
        num_documents: d.
        batch_size: windows per forward pass.
    """
    sums = [np.zeros((num_documents, 2)) for _ in range(2)] + [np.zeros((num_documents, _BINS)) for _ in range(2)]
    order = sorted(range(len(parts)), key=lambda i: -len(parts[i].ids))
    for begin in range(0, len(order), batch_size):
        batch = [parts[i] for i in order[begin : begin + batch_size]]
        ids = np.zeros((len(batch), len(batch[0].ids)), np.int64)
        for row, part in zip(ids, batch, strict=True):
            row[: len(part.ids)] = part.ids
        logits = model(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False).logits
        for row, part in zip(logits, batch, strict=True):
            predicted = row[part.first - 1 : len(part.ids) - 1].float()
            targets = torch.from_numpy(part.ids[part.first :]).long().to(predicted.device)
            nats = cross_entropy(predicted, targets, reduction="none").double().cpu().numpy()
            _add(sums, part, nats)
    return Tokens(*sums)


def position_curve(tokens: Tokens) -> Curve:
    """Nats per token by the number of tokens in front of it in its document, in bins that double."""
    points = []
    for index in range(_BINS):
        pair = np.column_stack([tokens.nats_at[:, index], tokens.count_at[:, index]])
        if pair[:, 1].sum() == 0:
            continue
        first, last = 2**index, 2 ** (index + 1) - 1
        points.append(
            Point(
                x=str(first) if first == last else f"{first}–{last}",
                value=float(pair[:, 0].sum() / pair[:, 1].sum()),
                interval=bootstrap(pair[pair[:, 1] > 0], lambda s: s[:, 0] / s[:, 1]),
                count=int((pair[:, 1] > 0).sum()),
            )
        )
    return Curve(
        name="loss by position",
        y="nats per token",
        x="tokens before it in the document",
        points=points,
        is_fraction=False,
    )


def _tokenizer(options: TextOptions, name: str) -> PreTrainedTokenizerBase:
    if options.tokenizer is None:
        return load_tokenizer_of(name)
    try:
        return load_tokenizer(options.tokenizer)
    except TextError as error:
        raise UsageError(f"--text.tokenizer is refused: {error}") from error


def _add(sums: Sequence[Floats], part: Window, nats: Floats) -> None:
    nats_of, count_of, nats_at, count_at = sums
    recall = completes_bigram(part.ids)[part.first :].astype(int)
    position = part.start + np.arange(part.first, len(part.ids))
    # frexp(v) = (m, e) with v = m 2^e and 1/2 <= m < 1, so that e - 1 is the bin of 2^(e-1) <= v < 2^e.
    bins = np.frexp(position.astype(np.float64))[1] - 1
    for target, where, values in (
        (nats_of, recall, nats),
        (count_of, recall, 1.0),
        (nats_at, bins, nats),
        (count_at, bins, 1.0),
    ):
        np.add.at(target[part.document], where, values)
