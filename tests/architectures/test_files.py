"""Saving, loading and initialising, for every architecture."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.trainer_utils import set_seed

from dsf_models.backbone import DSFMixer, get_architecture
from tests.contract import CACHE_NAME, assert_close, every, fresh, new_cache, sequences, small_config

WEIGHTS = "model.safetensors"


def token_ids():
    return torch.stack(sequences((9, 9)))


def spectra(model, ids):
    """Return the eigenvalues of every system, or Φ where attention within a window has none."""
    systems = [system for system in model.dsf_systems(ids) if system is not None]
    windowed = [getattr(system, "window", None) is not None for system in systems]
    return [
        (system.transfer_matrix() if within else system.eigenvalues().values.abs()).tolist()
        for system, within in zip(systems, windowed, strict=True)
    ]


def transition_parameters(model):
    return {
        f"{prefix}.{name}": getattr(module, name)
        for prefix, module in model.named_modules()
        if isinstance(module, DSFMixer)
        for name in module.transition_parameters
    }


@every()
@torch.no_grad()
def test_saved_and_loaded(name, case, tmp_path):
    model, ids = fresh(name, case), token_ids()
    model.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert "layer_types" not in json.loads((tmp_path / "config.json").read_text())
    expected = model(ids)
    for loaded in (type(model).from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is type(model)
        assert torch.equal(loaded(ids).logits, expected.logits)
        assert spectra(loaded, ids) == spectra(model, ids)
    hidden = model.base_model(ids).last_hidden_state
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state, hidden)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(classifier.base_model(ids).last_hidden_state, hidden)


@every("default", "full")
@torch.no_grad()
def test_saved_in_shards(name, case, tmp_path):
    model = fresh(name, case)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(token_ids()).logits, model(token_ids()).logits)
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    with pytest.raises(OSError, match=shards[1].name):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@every("default")
def test_damaged_files_are_named(name, case, tmp_path):
    fresh(name, case).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 64 + whole[64:]):
        (tmp_path / WEIGHTS).write_bytes(damaged)
        with pytest.raises(OSError, match=WEIGHTS):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(OSError, match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a .bin file was unpickled",)


@every("default")
def test_nothing_is_unpickled(name, case, tmp_path):
    fresh(name, case).save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for loader in (AutoModelForCausalLM, get_architecture(name).causal_lm_class):
        with pytest.raises(OSError, match=WEIGHTS):
            loader.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="use_safetensors=False"):
            loader.from_pretrained(tmp_path, use_safetensors=False)


@every("default", "full", "minimal")
@torch.no_grad()
def test_parameters_of_the_transition_are_never_drawn_again(name, case, tmp_path):
    model = fresh(name, case)
    model.save_pretrained(tmp_path)
    weights, expected = load_file(tmp_path / WEIGHTS), transition_parameters(model)
    for missing in weights:
        save_file(
            {key: value for key, value in weights.items() if key != missing}, tmp_path / WEIGHTS, {"format": "pt"}
        )
        loaded = type(model).from_pretrained(tmp_path)
        for key, value in transition_parameters(loaded).items():
            assert key == missing or torch.equal(value, expected[key]), f"{key} was drawn again without {missing}"
        assert all(bool(value.isfinite().all()) for value in loaded.state_dict().values())


@every()
@torch.no_grad()
def test_half_precision_spares_the_transition(name, case, tmp_path):
    model, ids = fresh(name, case), token_ids()
    model.save_pretrained(tmp_path)
    expected = transition_parameters(model)
    for loaded in (
        type(model).from_pretrained(tmp_path, dtype=torch.bfloat16),
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16"),
        AutoModelForCausalLM.from_config(small_config(name, case), dtype=torch.bfloat16).eval(),
    ):
        kept = transition_parameters(loaded)
        assert all(value.dtype == torch.float32 for value in kept.values())
        # With them goes what else their mixer holds itself, so that FSDP2 finds one dtype in a group.
        beside = {key.rpartition(".")[0] for key in kept}
        for key, value in loaded.named_parameters():
            assert value.dtype == (torch.float32 if key.rpartition(".")[0] in beside else torch.bfloat16), key
        cache = new_cache(loaded)
        assert loaded(ids, use_cache=True, **cache).logits.isfinite().all()
        for layer in cache[CACHE_NAME].layers:
            for state in getattr(layer, "recurrent_states", {}).values():
                assert state is None or state.dtype == torch.float32
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(torch.equal(value, expected[key]) for key, value in transition_parameters(loaded).items())


@every()
@torch.no_grad()
def test_float64_throughout(name, case, tmp_path):
    model, ids = fresh(name, case).double(), token_ids()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert all(value.dtype == torch.float64 for value in loaded.parameters())
    cache = new_cache(loaded)
    outputs = loaded(ids, labels=ids, use_cache=True, **cache)
    assert outputs.loss.dtype == torch.float64
    assert_close(outputs.logits, model(ids).logits, 1e-14)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    for layer in cache[CACHE_NAME].layers:
        for state in [*getattr(layer, "recurrent_states", {}).values(), *getattr(layer, "conv_states", {}).values()]:
            assert state is None or state.dtype == torch.float64
    for system in loaded.dsf_systems(ids):
        if system is None:
            continue
        tensors = [value for value in vars(system).values() if isinstance(value, torch.Tensor)]
        assert all(value.dtype == torch.float64 for value in tensors if value.is_floating_point())


# ---- configuration files --------------------------------------------------------------------------------------------


@every()
def test_configuration_files(name, case, tmp_path):
    config = small_config(name, case, id2label={0: "no", 1: "yes", 2: "maybe"}, eos_token_id=[3, 4])
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert "layer_types" not in stored
    for loaded in (
        type(config).from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        AutoConfig.for_model(**stored),
        type(config)(**config.to_dict()),
    ):
        assert type(loaded) is type(config)
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    # Trainer reads it so when it resumes.
    assert PreTrainedConfig.from_pretrained(tmp_path).hidden_size == config.hidden_size


@every("default")
def test_only_what_can_be_read_again_is_saved(name, case, tmp_path):
    """transformers' own tests change a width, and write fields of other models and one number for a range."""
    config = small_config(name, case)
    config.batch_norm_eps = 1.0
    config.hidden_size, config.intermediate_size = 2 * config.hidden_size, 2 * config.intermediate_size
    ranges = [field for field in config.to_dict() if "init_range" in field]
    for field in ranges:
        setattr(config, field, 0.5)
    assert get_architecture(name).causal_lm_class(config).lm_head.weight.isfinite().all()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(loaded, "batch_norm_eps")
    assert all(getattr(loaded, field) == 0.5 for field in ranges)


# ---- initialisation -------------------------------------------------------------------------------------------------


def poisoned(model):
    """Overwrite everything, and forget that it was initialised."""
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.fill_(torch.nan)
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    return model


def initialised(model):
    set_seed(5)
    model.init_weights()
    state = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(bool(value.isfinite().all()) for value in state.values())
    return state


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    differing = [key for key in expected if not torch.equal(actual[key], expected[key])]
    assert not differing


@every()
def test_initialisation_depends_on_the_seed_alone(name, case):
    # Untied: a tied weight would be drawn twice when it is initialised again.
    config, architecture = small_config(name, case, tie_word_embeddings=False), get_architecture(name)
    set_seed(5)
    built = architecture.causal_lm_class(config).state_dict()
    set_seed(5)
    assert_equal(AutoModelForCausalLM.from_config(config).state_dict(), built)
    with torch.device("meta"):
        bare = architecture.causal_lm_class(config)
    bare = initialised(poisoned(bare.to_empty(device="cpu")))
    assert_equal(initialised(poisoned(architecture.causal_lm_class(config))), bare)
    set_seed(6)
    other = architecture.causal_lm_class(config).state_dict()
    assert any(not torch.equal(other[key], built[key]) for key in built)


@every()
def test_padding_embedding_is_zero(name, case):
    model = get_architecture(name).model_class(small_config(name, case, pad_token_id=3))
    assert bool((model.embed_tokens.weight[3] == 0).all())
    assert bool((model.embed_tokens.weight[[2, 4]] != 0).any(dim=1).all())
