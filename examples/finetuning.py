"""What the three fine-tuning examples share: texts from a file, a model with its tokenizer, and weight decay."""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import dsf_models  # registers every architecture with the Auto classes


@dataclass
class Options:
    """What is trained, and on what. Everything else is an option of transformers' `TrainingArguments`."""

    data: Path = field(metadata={"help": "CSV file with a header, or a text file with empty lines between documents"})
    model: str = field(
        default="ssd", metadata={"help": "folder or Hub id of a checkpoint; or an architecture, for a fresh model"}
    )
    text_column: str = field(default="text", metadata={"help": "column of a CSV file that holds the texts"})
    max_length: int = field(default=256, metadata={"help": "tokens in a training sequence"})
    held_out: float = field(default=0.1, metadata={"help": "share of the documents that only evaluation sees"})
    add_tokens: list[str] = field(
        default_factory=list, metadata={"help": "special tokens to add to the tokenizer; the model grows with it"}
    )
    width: int = field(default=128, metadata={"help": "fresh model: width of the residual stream"})
    layers: int | None = field(default=None, metadata={"help": "fresh model: layers, by default the architecture's"})
    vocab_size: int = field(default=2000, metadata={"help": "fresh model: tokens of a tokenizer trained on the texts"})


def parse(
    description: str, options: type[Options], arguments: list[str] | None, **defaults: object
) -> tuple[Options, TrainingArguments]:
    """Read the command line, or `arguments`, into options and TrainingArguments, with `defaults` of one's own."""
    parser = HfArgumentParser((options, TrainingArguments), description=description)
    parser.set_defaults(disable_tqdm=True, use_cpu=not torch.accelerator.is_available(), **defaults)
    return parser.parse_args_into_dataclasses(arguments)


def read_texts(options: Options, *columns: str) -> DatasetDict:
    """Read the texts, and further columns of a CSV file, and hold a share of them out.

    Returns:
        The splits "train" and "test", with the column "text" and the further ones.

    Raises:
        SystemExit: there is no such file, it lacks a column, or it holds fewer than two texts.
    """
    if not options.data.is_file():
        sys.exit(f"{options.data} is no file: --data takes a CSV or text file.")
    if options.data.suffix == ".csv":
        csv.field_size_limit(sys.maxsize)  # a novel fits into a field
        with options.data.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for column in (options.text_column, *columns):
                if column not in (found := reader.fieldnames or []):
                    sys.exit(f"{options.data} has no column {column!r}, only {found}: name the right one.")
            rows = [{"text": row[options.text_column]} | {name: row[name] for name in columns} for row in reader]
    elif columns:
        sys.exit(f"{options.data} has no columns: a CSV file with the column {columns[0]!r} is needed.")
    else:
        rows = [{"text": part} for part in options.data.read_text(encoding="utf-8").split("\n\n")]
    rows = [row for row in rows if (row["text"] or "").strip()]
    if len(rows) < 2:
        sys.exit(f"{options.data} holds {len(rows)} texts: at least one to train on and one to hold out are needed.")
    return Dataset.from_list(rows).train_test_split(test_size=options.held_out, seed=0)


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. `model_input_names` says what the model is given: it knows no token types."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_input_names=inputs, **special)


def load(
    auto_class: type, options: Options, texts: list[str], **fields: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint, or build a fresh model where `options.model` is the name of an architecture.

    The weights are in float32, whatever they were saved in: small steps get lost in bfloat16; `--bf16` only computes in
    it. A tokenizer without a padding token is given one. Where the tokenizer has more tokens than the model, the
    embeddings grow, and the rows of the added tokens start at the mean of the others.

    Args:
        auto_class: `AutoModelForCausalLM` or a sibling.
        options: the checkpoint or architecture, and the tokens to add.
        texts: what the tokenizer of a fresh model is trained on.
        fields: further fields of the configuration.
    """
    if options.model in dsf_models.list_architectures():
        tokenizer = train_tokenizer(texts, options.vocab_size)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        sizes = {"vocab_size": len(tokenizer), "hidden_size": options.width}
        if options.layers is not None:
            sizes["num_hidden_layers"] = options.layers
        model = auto_class.from_config(AutoConfig.for_model(f"dsf_{options.model}", **sizes, **special, **fields))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = auto_class.from_pretrained(options.model, dtype=torch.float32, **fields)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(options.add_tokens, special_tokens=True)
    tokenizer.padding_side = "right"
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


def pieces(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Cut the texts, each with an end-of-text token, into sequences of at most `max_length` tokens."""

    def cut(batch: dict) -> dict:
        texts = [text + (tokenizer.eos_token or "") for text in batch["text"]]
        tokens = tokenizer(texts, truncation=True, max_length=max_length, return_overflowing_tokens=True)
        return {"input_ids": tokens.input_ids}

    return data.map(cut, batched=True, remove_columns=data["train"].column_names)


class DecayTrainer(Trainer):
    """Trainer whose `--weight_decay` leaves alone what the model says: Λ, norms and biases."""

    def get_decay_parameter_names(self, model: PreTrainedModel) -> list[str]:
        spared = model.no_weight_decay()
        return [name for name, _ in model.named_parameters() if name not in spared]
