"""Adapt a language model to texts of your own with LoRA: y = W x + (alpha / r) B A x, where only A and B are trained.

    python examples/finetune_lora.py --data reviews.csv --model your-name/your-checkpoint

The model stays as it is; the adapter is saved alone, in a small fraction of its size. `--train_mixers` trains the
mixers whole beside it, with Λ, which has no low-rank update. Every option of transformers' `TrainingArguments` is one
of this script: --bf16, --activation_checkpointing, --learning_rate and so on.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685).
"""

import sys
from dataclasses import dataclass, field

import torch
from finetuning import Options, load, parse, pieces, read_texts
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    set_seed,
)

from dsf_models import list_architectures, lora_config


@dataclass
class LoraOptions(Options):
    """What is adapted, to what, and how large the adapter is."""

    rank: int = field(default=8, metadata={"help": "r, the rank of the update of each projection"})
    alpha: int = field(default=16, metadata={"help": "alpha: the update is multiplied by alpha / r"})
    train_mixers: bool = field(default=False, metadata={"help": "train the mixers whole, Λ included"})
    prompt: str = field(default="I saw this", metadata={"help": "what the adapted model goes on from"})


def main(arguments: list[str] | None = None) -> dict:
    """Train an adapter, evaluate, save it, load it again, generate; return the losses, and whether logits are equal."""
    options, training = parse(
        __doc__, LoraOptions, arguments, output_dir="adapter", learning_rate=1e-3, save_strategy="no"
    )
    if options.model in list_architectures():
        sys.exit(
            "An adapter belongs to a saved model: give --model a folder, as finetune_causal_lm.py makes, or a Hub id."
        )
    set_seed(training.seed)

    # Texts, the model and its tokenizer.
    data = read_texts(options)
    base, tokenizer = load(AutoModelForCausalLM, options, data["train"]["text"])
    tokens = pieces(data, tokenizer, options.max_length)

    # The adapter. Of the embeddings, only the rows of added tokens are trained, and saved with it.
    known = AutoConfig.from_pretrained(options.model).vocab_size
    added = sorted({*range(known, len(tokenizer)), *tokenizer.convert_tokens_to_ids(options.add_tokens)})
    tables = ["embed_tokens"] if base.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    rows = {"trainable_token_indices": dict.fromkeys(tables, added)} if added else {}
    config = lora_config(base, options.train_mixers, r=options.rank, lora_alpha=options.alpha, **rows)
    if added and "embed_tokens" in config.target_modules:  # what lora_config adapts where there is no channel mixer
        sys.exit("--train_mixers with added tokens takes a model with channel mixers: leave one of the two out.")
    model = get_peft_model(base, config)
    model.print_trainable_parameters()

    trainer = Trainer(
        model,
        training,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=tokens["train"],
        eval_dataset=tokens["test"],
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    after = trainer.evaluate()["eval_loss"]
    print(f"held-out loss {before:.3f} -> {after:.3f}")

    # Save the adapter alone; loading it finds the model that it belongs to, and makes room for added tokens.
    model.save_pretrained(training.output_dir, save_embedding_layers=False)
    tokenizer.save_pretrained(training.output_dir)
    loaded = AutoPeftModelForCausalLM.from_pretrained(training.output_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(training.output_dir)

    prompt = tokenizer(options.prompt, return_tensors="pt")
    with torch.no_grad():
        equal = torch.equal(loaded(**prompt).logits, model.eval().cpu()(**prompt).logits)
    text = tokenizer.decode(loaded.generate(**prompt, max_new_tokens=40, do_sample=True, top_k=20)[0])
    print(f"saved in {training.output_dir} and loaded again; equal logits: {equal}; writes {text!r}")
    return {"before": before, "after": after, "equal": equal, "text": text}


if __name__ == "__main__":
    main()
