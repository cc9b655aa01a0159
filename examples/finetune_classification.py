"""Train a classifier of texts, for example of the sentiment of reviews, with transformers' Trainer.

    python examples/finetune_classification.py --data reviews.csv --model your-name/your-checkpoint
    python examples/finetune_classification.py --data reviews.csv --model gla --num_train_epochs 5   # a fresh model

The CSV file has a column `text` and a column `label`, whose values may be numbers or words. A checkpoint may be that of
a language model: the head of the classifier starts anew. Every option of transformers' `TrainingArguments` is one of
this script: --bf16, --activation_checkpointing, --learning_rate and so on.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from finetuning import DecayTrainer, Options, load, parse, read_texts
from transformers import AutoModelForSequenceClassification, EvalPrediction, pipeline, set_seed


@dataclass
class ClassifierOptions(Options):
    """What is trained, on what, and what is classified at the end."""

    label_column: str = field(default="label", metadata={"help": "column of the CSV file that holds the classes"})
    sentence: str = field(
        default="One of the best films I have ever seen, with a wonderful cast.",
        metadata={"help": "what the trained model classifies at the end"},
    )


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of texts whose class has the highest logit."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main(arguments: list[str] | None = None) -> dict:
    """Train, evaluate, save, load again, classify; return the accuracies and the class of the sentence."""
    options, training = parse(
        __doc__,
        ClassifierOptions,
        arguments,
        output_dir="classifier",
        learning_rate=1e-3,
        save_strategy="no",
    )
    set_seed(training.seed)

    # Texts and classes, a tenth of them held out, and what always naming the most frequent class would reach.
    data = read_texts(options, options.label_column)
    classes = sorted(set(data["train"][options.label_column]) | set(data["test"][options.label_column]))
    majority = Counter(data["test"][options.label_column]).most_common(1)[0][1] / len(data["test"])

    # The model knows the names of its classes, so that whoever loads it does.
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    model, tokenizer = load(AutoModelForSequenceClassification, options, data["train"]["text"], **names)

    def encode(batch: dict) -> dict:
        labels = [names["label2id"][name] for name in batch[options.label_column]]
        return tokenizer(batch["text"], truncation=True, max_length=options.max_length) | {"labels": labels}

    tokens = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters, {len(tokens['train']):,} texts")

    # Given a tokenizer, Trainer pads each batch to its longest text. The head reads the last token that is no pad.
    trainer = DecayTrainer(
        model,
        training,
        train_dataset=tokens["train"],
        eval_dataset=tokens["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    after = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy on held-out texts {before:.1%} -> {after:.1%}; most frequent class: {majority:.1%}")

    # Save model and tokenizer, load both by their path, and classify.
    trainer.save_model()
    answer = pipeline("text-classification", model=training.output_dir)(options.sentence, truncation=True)[0]
    print(
        f"saved in {training.output_dir}, which says {answer['label']} ({answer['score']:.1%}) of: {options.sentence}"
    )
    return {"before": before, "after": after, "majority": majority, "answer": answer["label"]}


if __name__ == "__main__":
    main()
