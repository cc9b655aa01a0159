"""First steps with dsf_models: build, train, adapt, share and inspect a small language model.

Run it cell by cell in an editor that knows `# %%`, or as a script:

    python examples/first_steps.py --data reviews.csv
    python examples/first_steps.py --data reviews.csv --push your-name/first-steps

It needs the extra `dev` (peft and accelerate).
"""

# %%
import argparse
import csv
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

import dsf_models  # registers every architecture with the Auto classes
from dsf_models.analysis import BINS, initial_spectrum

# %% What to run. In a notebook, change the defaults below.
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True, help="text file, or a CSV file with a column `text`")
parser.add_argument("--architecture", default="ssd", help="a name that `dsf-models list` shows")
parser.add_argument("--steps", type=int, default=200, help="optimiser steps of the training")
parser.add_argument("--lora-steps", type=int, default=20, help="optimiser steps of the adapter")
parser.add_argument("--width", type=int, default=128, help="width of the residual stream")
parser.add_argument("--vocab-size", type=int, default=2000, help="tokens of the tokenizer")
parser.add_argument("--push", metavar="REPOSITORY", help="push to this repository of the Hub (or of $HF_ENDPOINT)")
options = parser.parse_args()
set_seed(0)
folder = Path(tempfile.mkdtemp(prefix="first-steps-"))

# %% Text: one document a row, the last tenth held out.
if options.data.suffix == ".csv":
    with options.data.open(newline="", encoding="utf-8") as file:
        documents = [row["text"] for row in csv.DictReader(file)]
else:
    documents = [part for part in options.data.read_text(encoding="utf-8").split("\n\n") if part.strip()]
data = Dataset.from_dict({"text": documents}).shuffle(seed=0).train_test_split(test_size=0.1, seed=0)
print(f"{len(documents):,} documents, {len(data['test']):,} of them held out")

# %% A tokenizer of our own. `model_input_names` says what the model is given: it knows no token types.
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
special = ["<pad>", "<s>", "</s>"]
trainer = trainers.BpeTrainer(
    vocab_size=options.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
)
bpe.train_from_iterator(data["train"]["text"], trainer)
names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
inputs = ["input_ids", "attention_mask"]
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, padding_side="left", model_input_names=inputs, **names)

# %% A model by its name. Each architecture has its own configuration: `dsf-models fields ssd` lists what can be set.
print("architectures:", ", ".join(dsf_models.list_architectures()))
depth = {} if options.architecture == "hybrid" else {"num_hidden_layers": 2}  # a hybrid lists its mixers
config = AutoConfig.for_model(
    f"dsf_{options.architecture}",
    **depth,
    vocab_size=len(tokenizer),
    hidden_size=options.width,
    pad_token_id=tokenizer.pad_token_id,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
)
model = AutoModelForCausalLM.from_config(config)
print(f"{type(model).__name__} with {model.num_parameters():,} parameters")

# %% Where the eigenvalues of Λ lie before training. |λ| near 1 remembers, |λ| near 0 forgets.
text = tokenizer(data["test"]["text"][0], return_tensors="pt", truncation=True, max_length=64).input_ids


def show_spectrum(model: torch.nn.Module) -> None:
    """Print the share of the eigenvalues in each interval of |λ|."""
    for interval, share in zip(BINS, initial_spectrum(model, text).mean.tolist(), strict=True):
        print(f"  |λ| in {interval:<10} {share:7.1%}")


show_spectrum(model)


# %% Fine-tune with Trainer. The model is an ordinary transformers model, so nothing here is special.
def tokenize(batch: dict) -> dict:
    """Turn a batch of texts into token ids."""
    return tokenizer(batch["text"], truncation=True, max_length=128)


tokens = data.map(tokenize, batched=True, remove_columns=["text"])
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)


def fit(model: torch.nn.Module, name: str, steps: int, learning_rate: float) -> Trainer:
    """Train a model and print its loss on the held-out texts before and after."""
    arguments = TrainingArguments(
        output_dir=str(folder / name),
        max_steps=steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model, arguments, data_collator=collator, train_dataset=tokens["train"], eval_dataset=tokens["test"]
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    print(f"{name}: held-out loss {before:.3f} -> {trainer.evaluate()['eval_loss']:.3f}")
    return trainer


fit(model, "training", options.steps, 3e-3)
show_spectrum(model)

# %% Save, and load by path. Only safetensors files are written and read.
model.save_pretrained(folder / "model")
tokenizer.save_pretrained(folder / "model")
model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
tokenizer = AutoTokenizer.from_pretrained(folder / "model")

# %% Generate. The cache holds a state of fixed size, however long the text (of softmax attention: keys and values).
prompt = tokenizer(["The film", "I did not"], return_tensors="pt", padding=True)
for sequence in model.generate(**prompt, max_new_tokens=20, do_sample=True, top_k=20):
    print(" ", repr(tokenizer.decode(sequence, skip_special_tokens=True)))

# %% Inspect: Φ of the first layer says how much each token adds to each later output, y_i = Σ_j Φ_ij u_j.
if options.architecture != "lstm":  # the nonlinear control has no Φ
    with torch.no_grad():
        phi = model.transfer_matrix(0, input_ids=text)
    weight = phi.abs().flatten(1, -3).mean((0, 1))
    print(f"Φ of layer 0 has shape {tuple(phi.shape)}; what reaches the last token, from the nearest on:")
    print("  ", [round(value, 4) for value in weight[-1].flip(0)[:6].tolist()])

# %% LoRA: train small matrices beside every linear layer, and leave the model as it is.
lora = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
lora.print_trainable_parameters()
fit(lora, "LoRA", options.lora_steps, 1e-3)
merged = lora.merge_and_unload()

# %% Share: with a token from `hf auth login`. HF_ENDPOINT points at another Hub than huggingface.co.
if options.push:
    merged.push_to_hub(options.push, private=True)
    tokenizer.push_to_hub(options.push)
    pulled = AutoModelForCausalLM.from_pretrained(options.push)
    ids = text.to(merged.device)
    with torch.no_grad():
        same = torch.equal(pulled.to(ids.device)(ids).logits, merged.eval()(ids).logits)
    print(f"pushed to {options.push} and pulled again; equal logits: {same}")
