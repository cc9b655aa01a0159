"""The contract that every registered architecture owes: small configurations of each, and what must hold for them.

A new architecture is in `CASES` as soon as it is registered, so that every test over them runs for it too.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, DynamicCache, PreTrainedModel

from dsf_models import DSFConfig, engine, list_architectures
from dsf_models.backbone import DSFMixer, TimeInvariantConfig, get_architecture
from dsf_models.backbone.compat import CACHE_NAME
from dsf_models.filters import FilterSystem
from dsf_models.system import SoftmaxSystem, apply_transfer_matrix

VOCAB = 41
PAD = 0
LENGTHS = (12, 7, 9)
"""Lengths of the sequences that batches and packed rows are made of."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PADDING = ("left", "right", "interior")
HEADS = ("model", "causal_lm", "sequence_classification", "token_classification")

# Large weights, so that what a mixer does to the past is no rounding error beside the residual stream.
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "state_size": 4,
    "initializer_range": 0.3,
}
_VARIANTS = {
    "default": {},
    "bare": {"conv_kernel": 0, "gate": "none", "output_norm": "none"},
    "full": {
        "conv_kernel": 3,
        "gate": "silu",
        "output_norm": "rmsnorm",
        "use_bias": True,
        "expand": 2,
        "channel_mixer": "swiglu",
        "mlp_bias": True,
        "norm": "layernorm",
        "embedding_scale": 2.0,
        "logit_softcap": 5.0,
        "position_embedding": "learned",
        "max_position_embeddings": 24,
        "tie_word_embeddings": True,
    },
    "mlp": {
        "conv_kernel": 2,
        "conv_bias": False,
        "gate": "gelu",
        "output_norm": "none",
        "channel_mixer": "mlp",
        "channel_mixer_depth": [1, 2, 0],
        "pre_channel_mixer": True,
        "residual": False,
        "norm": "none",
        "hidden_act": "relu",
    },
}
_OF_SOME = {
    "n_groups": 2,
    "num_key_value_heads": 2,
    "reversed_sigmoid": True,
    "merge_symmetric": False,
    "normalizer": "exp_softplus",
    "feature_map": "elu+1",
    "scale_keys": True,
    "offset": "exp",
    "conv_channels": "qk",
    "allow_negative_eigenvalues": True,
}
"""Fields that some architectures have, at a value that differs from their default; set in "full" and "rope"."""
_OWN_VARIANTS = {
    "ssd": {"channel": {"time_step_bias": "channel", "n_groups": 2}, "constant": {"decay": "constant", "n_groups": 2}}
}
"""Forms of single architectures that take another path through their mixer."""


NEEDED = {"hybrid": {"mixers": ["ssd", "softmax_attention"]}}
"""What a hybrid is made of in tests: two layers, since its default has four."""
_GROUPED = {"ssd": {"n_groups": 2}, "softmax_attention": {"num_key_value_heads": 2}}
_WINDOWED = {"softmax_attention": {"sliding_window": 4}}
HYBRIDS = {
    "default": {"mixers": ["linear_attention", "ssd"]},
    "bare": {"mixers": ["ssd", "softmax_attention"]},
    "full": {"mixer_options": _GROUPED},
    "mlp": {"mixers": ["lstm", "normalized_attention"]},
    "rope_bare": {"mixers": ["softmax_attention", "taylor_attention"]},
    "sliding": {
        "mixers": ["rg_lru", "softmax_attention"],
        "mixer_options": _WINDOWED,
        "position_embedding": "rope",
        "conv_kernel": 3,
    },
}
"""What the cases of hybrids are made of, where it is not the above."""


def variants(name: str) -> dict[str, dict[str, Any]]:
    """Return the fields of every small configuration of an architecture."""
    config_class = get_architecture(name).config_class
    own = {field: value for field, value in _OF_SOME.items() if field in config_class.__dataclass_fields__}
    small = _SMALL | config_class.fixed_fields
    found = {case: small | fields for case, fields in _VARIANTS.items()}
    found["full"] |= own
    if config_class.uses_rope:
        found["rope"] = small | own | {"position_embedding": "rope", "conv_kernel": 3}
        found["rope_bare"] = small | own | {"position_embedding": "rope"}
    if issubclass(config_class, TimeInvariantConfig):
        found["windowed"] = small | {"window": 3, "channel_mixer": "geglu"}
    if "sliding_window" in config_class.__dataclass_fields__:
        found["sliding"] = small | own | {"sliding_window": 4, "position_embedding": "rope", "conv_kernel": 3}
        found["sliding_bare"] = small | {"sliding_window": 5}
    if name in NEEDED:
        found["sliding"] = small
        found = {case: NEEDED[name] | fields | HYBRIDS.get(case, {}) for case, fields in found.items()}
    if hasattr(config_class, "minimal"):
        found["minimal"] = small | {"num_heads": 1}
    found |= {case: small | fields for case, fields in _OWN_VARIANTS.get(name, {}).items()}
    return found


REPRESENTATIVES = ("ssd", "softmax_attention", "hybrid")
"""Architectures that stand for all in the fast suite, where a test of each would take too long."""


def every(*only: str, slowly: bool = False) -> Any:
    """Parametrise a test over the configurations of every architecture, or over those named.

    Args:
        only: names of cases.
        slowly: leave all but the representatives to the slow suite.
    """
    pairs = [(name, case) for name in list_architectures() for case in variants(name) if not only or case in only]
    params = [
        pytest.param(name, case, id=f"{name}-{case}", marks=_slow(slowly and name not in REPRESENTATIVES))
        for name, case in pairs
    ]
    return pytest.mark.parametrize(("name", "case"), params)


def _slow(is_slow: bool) -> Any:
    return pytest.mark.slow if is_slow else ()


def others_slowly(*representatives: str) -> Any:
    """Parametrise a test over the architectures: all in the slow suite, three or those named in the fast one too."""
    fast = representatives or REPRESENTATIVES
    names = [pytest.param(name, marks=_slow(name not in fast)) for name in list_architectures()]
    return pytest.mark.parametrize("name", names)


def small_config(name: str, case: str = "full", **changes: Any) -> DSFConfig:
    """Return a small configuration of an architecture."""
    config_class = get_architecture(name).config_class
    make = config_class.minimal if case == "minimal" else config_class
    return make(**variants(name)[case] | changes)


def fresh(name: str, case: str = "full", head: str = "causal_lm", **changes: Any) -> PreTrainedModel:
    """Return a small model that the caller may change, every parameter drawn away from constant starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(get_architecture(name), f"{head}_class")(small_config(name, case, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@functools.cache
def shared(name: str, case: str, dtype: torch.dtype = torch.float64, head: str = "causal_lm") -> PreTrainedModel:
    """Return a small model that many tests share, and none may change."""
    return fresh(name, case, head).to(dtype)


# ---- sequences, batches, packed rows --------------------------------------------------------------------------------


def sequences(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Return rows of token ids, none of them PAD."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def padding_mask(side: str, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """Return a mask (b, t) with the real tokens of each row at one side, or with pads strewn in between."""
    width = max(lengths) + (4 if side == "interior" else 0)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(mask, lengths, strict=True):
        slots = {"left": torch.arange(width - length, width), "right": torch.arange(length)}
        row[slots[side] if side in slots else torch.randperm(width, generator=generator)[:length]] = True
    return mask


def place(rows: Sequence[Tensor], mask: Tensor, fill: Tensor | int) -> Tensor:
    """Return (b, t) ids: the rows' tokens where the mask holds, `fill` at the pads."""
    grid = torch.zeros(mask.shape, dtype=torch.long) + fill
    grid[mask] = torch.cat(list(rows))
    return grid


def packed(rows: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return every way to tell a model that one row holds several documents, collators' output among them."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.cat(list(rows))[None]
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    positions = torch.cat([torch.arange(int(length)) for length in lengths])[None]
    numbers = torch.repeat_interleave(torch.arange(len(rows)), lengths)[None]
    collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    collated = collator([{"input_ids": row.tolist()} for row in rows])
    collated.pop("labels")
    return {
        "seq_idx": {"input_ids": ids, "seq_idx": numbers.int()},
        "cu_seq_lens": {"input_ids": ids, "cu_seq_lens_q": offsets},
        "position_ids": {"input_ids": ids, "position_ids": positions},
        "collator": collated,
    }


# ---- what is compared -----------------------------------------------------------------------------------------------


def error(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Return the largest difference relative to the largest expected value (at least `floor`)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = max(float(expected.abs().max()), floor, torch.finfo(torch.float64).tiny)
    return float((actual - expected).abs().max()) / scale


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Fail unless `actual` is within a relative tolerance of `expected` (of its largest entry)."""
    found = error(actual, expected)
    assert found <= tolerance, f"{what}: relative error {found:.2e} > {tolerance:.0e}"


def assert_gradients_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, what: str = ""
) -> None:
    """Fail unless each parameter's gradient agrees; one that is zero in exact arithmetic counts as noise."""
    noise = 1e-3 * max(float(gradient.abs().max()) for gradient in expected.values())
    found = {name: error(actual[name], expected[name], noise) for name in expected}
    worst = max(found, key=found.get)
    assert found[worst] <= tolerance, f"{what}: gradient of {worst}: relative error {found[worst]:.2e}"


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss by parameter name; parameters that it does not reach are left out."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def new_cache(model: PreTrainedModel) -> dict[str, DynamicCache]:
    """Return the keyword that gives a model an empty cache."""
    return {CACHE_NAME: DynamicCache(config=model.config)}


def logits_alone(model: PreTrainedModel, rows: Sequence[Tensor]) -> Tensor:
    """Return the logits of each row alone, one behind the other: (all tokens, vocabulary)."""
    return torch.cat([model(row[None], use_cache=False).logits[0] for row in rows])


def logits_in_segments(model: PreTrainedModel, ids: Tensor, cuts: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Return the logits (b, t, v) of ids fed through the cache in segments that end at the cuts."""
    cache, start, outputs = new_cache(model), 0, []
    for stop in [*cuts, ids.shape[1]]:
        seen = {} if mask is None else {"attention_mask": mask[:, :stop]}
        outputs.append(model(ids[:, start:stop], use_cache=True, **cache, **seen).logits)
        start = stop
    return torch.cat(outputs, dim=1)


def mixer_calls(model: PreTrainedModel, **inputs: Any) -> Iterator[tuple[DSFMixer, tuple, Tensor]]:
    """Run a model, and yield every mixer with its positional arguments and its output."""
    calls: list[tuple[DSFMixer, tuple, Tensor]] = []
    mixers = [module for module in model.modules() if isinstance(module, DSFMixer)]
    hooks = [
        mixer.register_forward_hook(lambda mixer, args, output: calls.append((mixer, args, output[0])))
        for mixer in mixers
    ]
    try:
        model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    yield from calls


# ---- the contract ---------------------------------------------------------------------------------------------------


def assert_modes_agree(model: PreTrainedModel, **inputs: Tensor) -> None:
    """Each layer's system gives one result in every mode of the engine, gradients included."""
    tolerance = TOLERANCE[model.dtype]
    for layer, system in enumerate(model.dsf_systems(**inputs)):
        if system is None or isinstance(system, SoftmaxSystem):
            continue  # no states to walk: see `without_states`
        applied = apply_transfer_matrix(system.transfer_matrix(), system.u.double())
        expected = applied if isinstance(system, FilterSystem) else engine.evaluate_sequential(system)[0]
        weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        reference = gradients(model, (expected * weight).sum())
        for mode in engine.modes_of(system.forward if isinstance(system, FilterSystem) else system):
            y, _ = engine.evaluate(system, mode=mode)
            assert_close(y, expected, tolerance, f"layer {layer}, {mode}")
            found = gradients(model, (y * weight).sum())
            assert_gradients_close(found, reference, tolerance, f"layer {layer}, {mode}")
        assert_close(applied, expected, 1e-10 if model.dtype == torch.float64 else 1e-5, f"layer {layer}, Φ")


def without_states(model: PreTrainedModel, **inputs: Tensor) -> set[str]:
    """Return why layers have no states that a mode of the engine could walk: "infinite", or "nonlinear"."""
    reasons = {type(None): "nonlinear", SoftmaxSystem: "infinite"}
    return {reasons[type(system)] for system in model.dsf_systems(**inputs) if type(system) in reasons}


def assert_transfer_matrix_explains_the_mixer(model: PreTrainedModel, **inputs: Tensor) -> None:
    """Φ times the inner input, through gate, norm and projection, is what the mixer puts out."""
    systems = model.dsf_systems(**inputs)
    for (mixer, args, output), system in zip(mixer_calls(model, **inputs), systems, strict=True):
        if system is None:
            continue
        hidden, layout = args[0], args[1]
        phi = system.transfer_matrix()
        u = system.u.repeat_interleave(phi.shape[1] // system.u.shape[2], dim=2)
        y = apply_transfer_matrix(phi, u.double()).to(hidden.dtype)
        rebuilt = layout.scatter(mixer.finish(y.flatten(2), layout.gather(hidden)))
        real = torch.ones(hidden.shape[:2], dtype=torch.bool)
        real = inputs["attention_mask"].bool() if "attention_mask" in inputs else real
        assert_close(rebuilt[real], output[real], TOLERANCE[model.dtype], f"layer {mixer.layer_idx}")


def assert_causal_and_mixing(model: PreTrainedModel) -> None:
    """A token changes its own output and later ones, and no earlier one."""
    ids = sequences((10,))[0][None]
    changed = ids.clone()
    changed[0, 4] = 1 + ids[0, 4] % (VOCAB - 1)
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
    assert bool((difference[:4] == 0).all())
    assert bool((difference[4:] > 1e-6).all())


def assert_cache_contract(model: PreTrainedModel) -> None:
    """Token by token, and in any split, through the cache = one pass."""
    ids = torch.stack(sequences((12, 12)))
    whole = model(ids, use_cache=False).logits
    for cuts in (range(1, 12), (5,), (1, 2, 8), (6, 11)):
        found = logits_in_segments(model, ids, list(cuts))
        assert_close(found, whole, TOLERANCE[model.dtype], f"segments that end at {list(cuts)}")


def assert_padding_contract(model: PreTrainedModel, side: str, tolerance: float) -> None:
    """A padded batch = the sequences alone, whatever kind of mask tells of the pads, and whatever stands there."""
    rows, mask = sequences(), padding_mask(side)
    alone = logits_alone(model, rows)
    garbage = torch.randint(1, VOCAB, mask.shape, generator=torch.Generator().manual_seed(3))
    for dtype, fill in ((torch.long, PAD), (torch.bool, garbage), (torch.float32, garbage)):
        ids = place(rows, mask, fill)
        logits = model(ids, attention_mask=mask.to(dtype), use_cache=False).logits
        assert_close(logits[mask], alone, tolerance, f"{side} padding, {dtype} mask")
        assert bool(logits.isfinite().all())


def assert_cached_padding_contract(model: PreTrainedModel, side: str, tolerance: float) -> None:
    """Segments after a padded prefill, pads among them and alone in a segment, = the sequences alone."""
    lengths = [length + 4 for length in LENGTHS]
    rows = sequences(lengths)
    later = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    mask = torch.cat([padding_mask(side), later], dim=1)
    prefill = mask.shape[1] - later.shape[1]
    ids = place(rows, mask, PAD)
    alone = logits_alone(model, rows)
    for cuts in ((prefill, *range(prefill + 1, mask.shape[1])), (3, prefill + 2)):
        logits = logits_in_segments(model, ids, cuts, mask.long())
        assert_close(logits[mask], alone, tolerance, f"{side} padding, segments that end at {cuts}")


def assert_packing_contract(model: PreTrainedModel, tolerance: float) -> None:
    """Documents packed into one row = the documents alone, however the model is told of them."""
    rows = sequences()
    alone = logits_alone(model, rows)
    for how, inputs in packed(rows).items():
        outputs = model(**inputs)
        assert_close(outputs.logits[0], alone, tolerance, how)
        assert outputs.get(CACHE_NAME) is None, f"{how}: packed documents are not cached unless asked"


def scored(model: PreTrainedModel, alignment: str, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Return the sum of the losses of all scored outputs."""
    return model(**inputs, labels=labels, label_alignment=alignment, num_items_in_batch=1, use_cache=False).loss


def scored_alone(model: PreTrainedModel, alignment: str, rows: Sequence[Tensor]) -> Tensor:
    """Return the sum of the losses of the rows alone, every token its own label."""
    return sum(scored(model, alignment, row[None], input_ids=row[None]) for row in rows)


def assert_padding_gradients(model: PreTrainedModel, side: str, alignment: str, tolerance: float) -> None:
    """A padded batch has the loss and gradients of the sequences alone, whatever the labels of pads say."""
    rows, mask = sequences(), padding_mask(side)
    garbage = torch.randint(1, VOCAB, mask.shape, generator=torch.Generator().manual_seed(4))
    alone = scored_alone(model, alignment, rows)
    ids, labels = place(rows, mask, garbage), place(rows, mask, garbage.flip(0))
    together = scored(model, alignment, labels, input_ids=ids, attention_mask=mask)
    assert_close(together, alone, tolerance, f"loss, {side} padding")
    assert_gradients_close(gradients(model, together), gradients(model, alone), tolerance, f"{side} padding")


def assert_packing_gradients(model: PreTrainedModel, tolerance: float) -> None:
    """Packed documents, their first tokens unscored as collators leave them, have the gradients of documents alone."""
    rows = sequences()
    alone = scored_alone(model, "next", rows)
    labels = torch.cat([nn.functional.pad(row[1:], (1, 0), value=-100) for row in rows])[None]
    expected = gradients(model, alone)
    for how, inputs in packed(rows).items():
        together = scored(model, "next", labels, **inputs)
        assert_close(together, alone, tolerance, f"loss, {how}")
        assert_gradients_close(gradients(model, together), expected, tolerance, how)


def assert_packed_and_padded(model: PreTrainedModel, side: str, tolerance: float) -> None:
    """Rows that hold several documents and pads, with any document number at a pad, = the documents alone."""
    first, second, third = sequences()
    mask = padding_mask(side, (len(first) + len(second), len(third)))
    rows = [torch.cat([first, second]), third]
    numbers = [torch.tensor([3] * len(first) + [5] * len(second)), torch.tensor([3] * len(third))]
    garbage = torch.randint(0, 7, mask.shape, generator=torch.Generator().manual_seed(5))
    logits = model(place(rows, mask, PAD), attention_mask=mask, seq_idx=place(numbers, mask, garbage)).logits
    assert_close(logits[mask], logits_alone(model, [first, second, third]), tolerance, f"{side} padding and documents")


def assert_document_goes_on(model: PreTrainedModel, tolerance: float) -> None:
    """The last document of a cached packed prefill goes on in the next segment, and a new one may start there."""
    first, second, third = sequences()
    alone = logits_alone(model, [first, second, third])
    positions = torch.cat([torch.arange(len(row)) for row in (first, second, third)])[None]
    ids = torch.cat([first, second, third])[None]
    for cuts in ((15,), (15, 16), (15, 19), (15, 18, 21)):
        cache, start, outputs = new_cache(model), 0, []
        for stop in [*cuts, ids.shape[1]]:
            segment = {"input_ids": ids[:, start:stop], "position_ids": positions[:, start:stop]}
            outputs.append(model(**segment, use_cache=True, **cache).logits[0])
            start = stop
        assert_close(torch.cat(outputs), alone, tolerance, f"segments that end at {cuts}")


GENERATION = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "several samples": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True, "top_k": 0},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    "prefill in chunks": {"prefill_chunk_size": 3},
    "prefill in chunks, static cache": {"prefill_chunk_size": 3, "cache_implementation": "static"},
}


def generate(model: PreTrainedModel, ids: Tensor | None = None, **options: Any) -> Tensor:
    """Return six new tokens behind each prompt, from a fixed seed."""
    torch.manual_seed(0)
    return model.generate(ids, max_new_tokens=6, min_new_tokens=6, pad_token_id=PAD, **options)


def assert_generation_contract(model: PreTrainedModel) -> None:
    """Cached generation = uncached generation, token for token, from left-padded prompts."""
    lengths = (6, 4)
    mask = padding_mask("left", lengths)
    prompts = {"ids": place(sequences(lengths), mask, PAD), "attention_mask": mask.long()}
    without_cache: dict[tuple, Tensor] = {}
    for how, options in GENERATION.items():
        of_caches = ("cache_implementation", "prefill_chunk_size")
        uncached = {key: value for key, value in options.items() if key not in of_caches}
        if tuple(uncached.items()) not in without_cache:
            without_cache[tuple(uncached.items())] = generate(model, **prompts, **uncached, use_cache=False)
        expected = without_cache[tuple(uncached.items())]
        found = generate(model, **prompts, **options)
        assert torch.equal(found, expected), f"{how}: {found.tolist()} instead of {expected.tolist()}"


def assert_generation_from_any_padding(model: PreTrainedModel, side: str) -> None:
    """Prompts padded anywhere go on as they do alone, and come back as they were given."""
    lengths = (6, 4, 5)
    rows, mask = sequences(lengths), padding_mask(side, lengths)
    prompts, padding = place(rows, mask, PAD), mask.long()
    alone = torch.cat([generate(model, row[None])[:, -6:] for row in rows])
    found = generate(model, prompts, attention_mask=padding)
    assert torch.equal(found, torch.cat([prompts, alone], dim=1))
    embedded = generate(model, inputs_embeds=model.get_input_embeddings()(prompts), attention_mask=padding)
    assert torch.equal(embedded, alone)
    beams = generate(model, prompts, attention_mask=padding, num_beams=2, return_dict_in_generate=True).sequences
    assert torch.equal(beams[:, : prompts.shape[1]], prompts)


def assert_generation_goes_on(model: PreTrainedModel) -> None:
    """Generation goes on from a returned cache, given the whole sequence or its new tokens with the whole mask."""
    lengths = (6, 4)
    mask = padding_mask("left", lengths)
    prompts = place(sequences(lengths), mask, PAD)
    further = torch.stack(sequences((3, 3), seed=7))
    first = generate(model, prompts, attention_mask=mask.long(), return_dict_in_generate=True)
    whole = torch.cat([first.sequences, further], dim=1)
    padding = torch.cat([mask.long(), torch.ones(2, 9, dtype=torch.long)], dim=1)
    expected = generate(model, whole, attention_mask=padding)
    seen = int(first[CACHE_NAME].get_seq_length())
    for ids in (whole, whole[:, seen:]):
        past = {CACHE_NAME: copy.deepcopy(first[CACHE_NAME])}
        assert torch.equal(generate(model, ids, attention_mask=padding, **past)[:, -6:], expected[:, -6:])
