"""Assisted and prompt-lookup decoding on every architecture: fewer passes, and the tokens of the model alone."""

import copy
import functools

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import StaticLayer

from dsf_models import list_architectures
from dsf_models.backbone.compat import CACHE_NAME
from tests.contract import PAD, VOCAB, every, fresh, logits_alone, place, sequences, shared

NEW = 10
assisted = pytest.mark.feature("Assisted decoding")
looked_up = pytest.mark.feature("Prompt lookup decoding")
each = pytest.mark.parametrize("name", list_architectures())


def prompt() -> Tensor:
    """Return a prompt that repeats itself, so that there is something to look up."""
    row = sequences((5,), seed=3)[0]
    return torch.cat([row, row[:4]])[None]


def complete(model: PreTrainedModel, ids: Tensor | None = None, new: int = NEW, **options) -> Tensor:
    ids = prompt() if ids is None else ids
    # Where no pad was given, transformers takes PADs among the accepted tokens for pads in the assistant.
    options = {"suppress_tokens": [PAD]} | options
    return model.generate(ids, max_new_tokens=new, min_new_tokens=new, pad_token_id=PAD, **options)


@functools.cache
def alone(name: str, case: str = "full") -> Tensor:
    """Return what the model says without help, as several tests compare."""
    return complete(shared(name, case))


@functools.cache
def weak(name: str) -> PreTrainedModel:
    """Return a model that guesses badly, and that several tests share."""
    return assistant_of(name, proposes=3, seed=1, case="bare")


def assistant_of(name: str, proposes: int = 4, seed: int | None = None, case: str = "full") -> PreTrainedModel:
    """Return the same model once more; or one that is drawn anew, which guesses badly."""
    model = fresh(name, case).double()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    model.generation_config.num_assistant_tokens = proposes
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


class Calls:
    """Counts the passes of a model, and the tokens taken back from its cache, while it generates."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.passes, self.taken_back = 0, 0
        self._handle = model.register_forward_hook(self._after, with_kwargs=True)
        self._length = 0

    def _after(self, module, args, kwargs, output) -> None:
        self.passes += 1
        seen = int(output[CACHE_NAME].get_seq_length())
        self.taken_back += max(0, self._length + kwargs["input_ids"].shape[1] - seen)
        self._length = seen

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *error) -> None:
        self._handle.remove()


@assisted
@every()
def test_a_weak_assistant_changes_nothing(name, case):
    """It is from another architecture half of the time, and most of what it proposes is taken back."""
    other = "ssd" if len(case) % 2 else name
    model = shared(name, case)
    with Calls(model) as calls:
        found = complete(model, assistant_model=weak(other))
    assert torch.equal(found, alone(name, case))
    assert calls.taken_back > 0


@looked_up
@every()
def test_prompt_lookup_changes_nothing(name, case):
    assert torch.equal(complete(shared(name, case), prompt_lookup_num_tokens=4), alone(name, case))


@assisted
@each
def test_a_perfect_assistant_saves_passes(name):
    """With itself as the assistant a model accepts all: 4 tokens and 1 of its own a pass."""
    model = shared(name, "default")
    with Calls(model) as calls:
        found = complete(model, new=15, assistant_model=assistant_of(name, case="default"))
    assert torch.equal(found, complete(model, new=15))
    assert (calls.passes, calls.taken_back) == (3, 0)


@looked_up
@each
def test_prompt_lookup_saves_passes_where_text_repeats(name):
    """A model whose head says the same token everywhere is looked up as soon as it has said it twice."""
    model = fresh(name, "default")
    model.lm_head.weight.data.zero_()
    with Calls(model) as calls:
        found = complete(model, new=15, prompt_lookup_num_tokens=4)
    assert torch.equal(found, complete(model, new=15))
    assert calls.passes < 8


@assisted
@each
def test_with_a_static_cache_and_a_padded_prompt(name):
    model, assistant, expected = shared(name, "full"), weak(name), alone(name)
    if hasattr(StaticLayer, "crop"):  # transformers 5.23 refuses static caches here
        assert torch.equal(complete(model, assistant_model=assistant, cache_implementation="static"), expected)
    for side in ("left", "right", "interior"):
        mask = torch.ones(1, 13, dtype=torch.bool)
        mask[0, {"left": range(4), "right": range(9, 13), "interior": range(2, 6)}[side]] = False
        ids = place([prompt()[0]], mask, PAD)
        found = complete(model, ids, new=6, attention_mask=mask.long(), assistant_model=assistant)
        assert torch.equal(found[:, 13:], expected[:, 9:15]), side
        assert torch.equal(found[:, :13], ids)


@assisted
@each
def test_goes_on_from_the_cache_that_it_returns(name):
    model, assistant, expected = shared(name, "full"), weak(name), alone(name)
    first = complete(model, new=4, assistant_model=assistant, return_dict_in_generate=True)
    assert not any(first[CACHE_NAME].is_recording_past(layer) for layer in range(model.config.num_hidden_layers))
    for options in ({}, {"prompt_lookup_num_tokens": 3}):
        cache = copy.deepcopy(first[CACHE_NAME])
        assert torch.equal(complete(model, first.sequences, new=6, **{CACHE_NAME: cache}, **options), expected)
        assert int(cache.get_seq_length()) == expected.shape[1] - 1
    seen = int(first[CACHE_NAME].get_seq_length())
    further, mask = first.sequences[:, seen:], torch.ones_like(first.sequences)
    with pytest.raises(ValueError, match="needs the whole sequence"):
        complete(model, further, prompt_lookup_num_tokens=3, attention_mask=mask, **{CACHE_NAME: first[CACHE_NAME]})


@assisted
@each
def test_early_exit_drafts_with_the_first_layers(name):
    model = shared(name, "full")
    assert torch.equal(complete(model, assistant_early_exit=1), alone(name))
    assert model.config.num_hidden_layers == 2


@assisted
@pytest.mark.parametrize("name", ["lru", "hybrid"])
def test_with_weights_on_disk(name, tmp_path):
    """Taking tokens back needs a mixer's own parameters, which are then loaded for it, too."""
    model = fresh(name, "full")
    model.save_pretrained(tmp_path / "model")
    places = {f"model.{child}": "disk" if child == "layers" else "cpu" for child, _ in model.model.named_children()}
    places |= {"lm_head": "cpu"}
    offloaded = type(model).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload")
    assistant = assistant_of(name, seed=1).float()
    with Calls(offloaded) as calls:
        found = complete(offloaded, assistant_model=assistant)
    assert torch.equal(found, complete(model))
    assert calls.taken_back > 0
    assert any(parameter.is_meta for parameter in offloaded.parameters())


@assisted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_in_the_precisions_of_practice(dtype):
    """Logits of several tokens at once round otherwise than of one by one: the greatest may change where two are close.

    So the tokens are held against the model's own logits: each is the greatest up to that rounding.
    """
    for name in list_architectures():
        model, assistant = fresh(name).to(dtype), assistant_of(name, seed=1).to(dtype)
        found = complete(model, new=6, assistant_model=assistant)
        logits = model(found, use_cache=False).logits[0, 8:-1].float()
        logits[:, PAD] = -9  # suppressed
        chosen = logits.gather(1, found[0, 9:, None])[:, 0]
        rounding = 64 * torch.finfo(dtype).eps * logits.abs().amax()
        assert bool((logits.amax(1) - chosen <= rounding).all()), name


@assisted
@pytest.mark.parametrize("name", ["gla", *(pytest.param(x, marks=pytest.mark.slow) for x in ("hybrid", "lstm"))])
@torch.no_grad()
def test_sampling_keeps_its_distribution(name):
    """The second and third token, drawn with an assistant of another mind, follow the model's own probabilities."""
    draws, words = 300, 3
    model, assistant = (fresh(name, "bare").double() for _ in range(2))
    for parameter in assistant.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for each_model in (model, assistant):
        # A bias by hand: only a few words are likely, so that few draws tell.
        each_model.lm_head.weight.data[words + 1 :] = 0
        each_model.lm_head.weight.data[0] = 0
    assistant.generation_config.num_assistant_tokens = 2
    ids, options = prompt(), {"do_sample": True, "top_k": 0, "suppress_tokens": [0, *range(words + 1, VOCAB)]}
    found = torch.cat([complete(model, ids, new=2, assistant_model=assistant, **options) for _ in range(draws)])
    found = found[:, ids.shape[1] :] - 1
    expected = torch.zeros(words, words, dtype=torch.float64)
    for first in range(words):
        row = torch.cat([ids, torch.tensor([[first + 1]])], dim=1)
        probabilities = logits_alone(model, [row[0]])[-2:, 1 : words + 1].softmax(-1)
        expected[first] = probabilities[0, first] * probabilities[1]
    counts = torch.bincount(found[:, 0] * words + found[:, 1], minlength=words**2).double()
    chi_squared = float(((counts - draws * expected.flatten()) ** 2 / (draws * expected.flatten())).sum())
    assert chi_squared < 26.1, "a chance of one in a thousand, with 8 degrees of freedom"


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single letters, or of some longer words too, for the same text."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *words])}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[(w[0], w[1]) for w in words if len(w) == 2], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


@assisted
@each
def test_an_assistant_with_another_vocabulary(name):
    letters = [chr(ord("a") + number) for number in range(20)]
    tokenizer, other = tokenizer_of([*letters, " "]), tokenizer_of([*letters, " ", "ab", "cd", "ef"])
    model = fresh(name, "default", vocab_size=len(tokenizer)).double()
    assistant = fresh(name, "bare", vocab_size=len(other)).double()
    ids = tokenizer("abcdefgabc abcd", return_tensors="pt").input_ids
    tokenizers = {"tokenizer": tokenizer, "assistant_tokenizer": other}
    assert torch.equal(complete(model, ids, assistant_model=assistant, **tokenizers), complete(model, ids))
    sampled = complete(model, ids, assistant_model=assistant, do_sample=True, **tokenizers)
    assert sampled.shape[1] == ids.shape[1] + NEW
