"""Fine-tune a language model on texts of your own with transformers' Trainer.

    python examples/finetune_causal_lm.py --data novel.txt --model your-name/your-checkpoint
    python examples/finetune_causal_lm.py --data reviews.csv --model ssd --output_dir reviews-ssd   # a fresh model

Every option of transformers' `TrainingArguments` is one of this script: --bf16, --activation_checkpointing,
--learning_rate, --num_train_epochs, --max_steps, --resume_from_checkpoint, --report_to, --push_to_hub and so on.
"""

import math
from dataclasses import dataclass, field

from finetuning import DecayTrainer, Options, load, parse, pieces, read_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, set_seed


@dataclass
class LanguageModelOptions(Options):
    """What is trained, on what, and what is written at the end."""

    prompt: str = field(default="I saw this", metadata={"help": "what the trained model goes on from"})
    new_tokens: int = field(default=40, metadata={"help": "tokens it writes"})


def main(arguments: list[str] | None = None) -> dict:
    """Train, evaluate, save, load again, generate; return the losses and the text."""
    options, training = parse(
        __doc__, LanguageModelOptions, arguments, output_dir="fine-tuned-lm", learning_rate=1e-3, save_strategy="no"
    )
    set_seed(training.seed)

    # Texts, a tenth of them held out; a model and its tokenizer; sequences of tokens.
    data = read_texts(options)
    model, tokenizer = load(AutoModelForCausalLM, options, data["train"]["text"])
    tokens = pieces(data, tokenizer, options.max_length)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters, {len(tokens['train']):,} sequences")

    # The collator pads on the right, and makes labels of the tokens; pads are not scored.
    trainer = DecayTrainer(
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
    print(f"held-out loss {before:.3f} -> {after:.3f}, perplexity {math.exp(before):.1f} -> {math.exp(after):.1f}")

    # Save model and tokenizer, load both by their path, and let the model write.
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(training.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(training.output_dir)
    prompt = tokenizer(options.prompt, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=options.new_tokens, do_sample=True, top_k=20)
    text = tokenizer.decode(written[0], skip_special_tokens=True)
    print(f"saved in {training.output_dir}, which writes: {text!r}")
    return {"before": before, "after": after, "text": text}


if __name__ == "__main__":
    main()
