"""Every field of every configuration is documented, does something, refuses nonsense and survives its file."""

import ast
import inspect
import json
import textwrap
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args, get_origin

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.trainer_utils import set_seed

from dsf_models import DSFConfig, list_architectures
from dsf_models.backbone import DSFMixer, TimeInvariantConfig, get_architecture
from dsf_models.backbone.compat import CACHE_NAME
from tests.contract import NEEDED

VOCAB = 23
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "expand": 1,
    "state_size": 4,
    "conv_kernel": 0,
    "gate": "none",
    "output_norm": "none",
    "channel_mixer": "none",
}
CONFIG_CLASSES = {name: get_architecture(name).config_class for name in list_architectures()}
every_architecture = pytest.mark.parametrize("name", list_architectures())


def fields_of(config_class):
    """Return the project's own fields: those of `DSFConfig` and of the architecture, with their types."""
    found = {}
    for cls in reversed(inspect.getmro(config_class)):
        if issubclass(cls, DSFConfig):
            found |= inspect.get_annotations(cls)
    return {key: hint for key, hint in found.items() if get_origin(hint) is not ClassVar}


def make(name, **changes):
    return CONFIG_CLASSES[name](**small(name) | changes)


def small(name):
    """Return the small sizes, without a choice where the architecture leaves none, and what it cannot do without."""
    return SMALL | CONFIG_CLASSES[name].fixed_fields | NEEDED.get(name, {})


# ---- documentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config_class", [DSFConfig, TimeInvariantConfig, *CONFIG_CLASSES.values()], ids=lambda cls: cls.__name__
)
def test_every_field_is_documented(config_class):
    body = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0].body
    fields = fields_of(config_class)
    declared = [node for node in body if isinstance(node, ast.AnnAssign) and node.target.id in fields]
    for node in declared:
        below = body[body.index(node) + 1]
        documented = isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)
        assert documented, f"{config_class.__name__}.{node.target.id} has no docstring below it"
        assert below.value.value.strip().endswith(".")
    own = inspect.get_annotations(config_class).keys() & fields.keys()
    assert {node.target.id for node in declared} == own


# ---- every field is alive -------------------------------------------------------------------------------------------


def with_fixed_weights(config, head="causal_lm"):
    """Return a model whose weights depend on the names and shapes of its parameters alone."""
    model = getattr(get_architecture(config.model_type.removeprefix("dsf_")), f"{head}_class")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def token_ids():
    return torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def outputs(config):
    model = with_fixed_weights(config)
    return shapes(model), model(token_ids()).logits.tolist()


def outputs_of_the_base_model(config):
    model = with_fixed_weights(config, "model")
    return shapes(model), model(token_ids()).last_hidden_state.tolist()


def outputs_in_training(config):
    model = with_fixed_weights(config).train()
    set_seed(0)
    return model(token_ids()).logits.tolist()


def loss(config):
    return with_fixed_weights(config)(token_ids(), labels=token_ids()).loss.item()


def returns_a_cache(config):
    return with_fixed_weights(config)(token_ids()).get(CACHE_NAME) is not None


def shares_its_embedding(config):
    model = with_fixed_weights(config)
    return model.lm_head.weight is model.model.embed_tokens.weight


def fresh_model(config):
    set_seed(0)
    return get_architecture(config.model_type.removeprefix("dsf_")).model_class(config)


def rows_that_are_zero(config):
    return (fresh_model(config).embed_tokens.weight == 0).all(dim=1).nonzero().flatten().tolist()


def spread_of_weights(config):
    return f"{fresh_model(config).embed_tokens.weight.std().item():.1g}"


def spread_into_the_residual_stream(config):
    mixers = [module for module in fresh_model(config).modules() if isinstance(module, DSFMixer)]
    return f"{mixers[0].out_proj.weight.std().item():.1g}"


def parameters_of_the_transition(config):
    mixers = [module for module in fresh_model(config).modules() if isinstance(module, DSFMixer)]
    return [getattr(mixer, key).tolist() for mixer in mixers for key in mixer.transition_parameters]


def sizes_of_states(config):
    cache = with_fixed_weights(config)(token_ids(), use_cache=True)[CACHE_NAME]
    return [tuple(layer.recurrent_states[0].shape) for layer in cache.layers]


def first_generated_token(config):
    model = with_fixed_weights(config)
    return model.generate(max_new_tokens=1, pad_token_id=0)[0, 0].item()


def length_of_generation(config):
    model = with_fixed_weights(config)
    # Every logit is 0, so that greedy decoding gives nothing else than token 0.
    model.lm_head.weight.data.zero_()
    return model.generate(token_ids()[:1, :3], max_new_tokens=4, pad_token_id=1).shape[1]


@dataclass
class Alive:
    """How to see that a field is alive: the values it takes, beside which other fields, and what they change."""

    values: list[Any]
    seen_in: Any = outputs
    beside: dict[str, Any] = field(default_factory=dict)
    along: list[dict[str, Any]] | None = None
    """Changes of other fields that go with each value, where one field cannot change alone."""


MLP = {"channel_mixer": "mlp"}
ALIVE = {
    "vocab_size": Alive([VOCAB, VOCAB + 2]),
    "hidden_size": Alive([16, 24]),
    "input_size": Alive([None, 1, 3]),
    "num_hidden_layers": Alive([1, 2]),
    "num_heads": Alive([4, 2, 1]),
    "head_dim": Alive([4, 8], along=[{"expand": 1}, {"expand": 2}]),
    "expand": Alive([1, 2, 1.5]),
    "state_size": Alive([4, 6]),
    "conv_kernel": Alive([0, 2, 3]),
    "conv_bias": Alive([True, False], beside={"conv_kernel": 3}),
    "gate": Alive(["none", "silu", "sigmoid"]),
    "output_norm": Alive(["none", "rmsnorm"]),
    "use_bias": Alive([True, False]),
    "channel_mixer": Alive(["none", "mlp", "swiglu", "geglu"]),
    "channel_mixer_depth": Alive([[2, 1], [1, 2], [0, 1], [1, 0], [0, 0], 1, 2, 3], beside=MLP),
    "pre_channel_mixer": Alive([False, True], beside=MLP),
    "intermediate_size": Alive([8, 12], beside=MLP),
    "hidden_act": Alive(["gelu", "relu"], beside=MLP),
    "mlp_bias": Alive([True, False], beside=MLP),
    "position_embedding": Alive(["none", "learned", "rope"], beside={"max_position_embeddings": 12}),
    "max_position_embeddings": Alive([9, 12], beside={"position_embedding": "learned"}),
    "residual": Alive([True, False]),
    "norm": Alive(["rmsnorm", "layernorm", "none"]),
    "norm_eps": Alive([1e-6, 1e-2]),
    "dropout": Alive([0.0, 0.5], outputs_in_training),
    "initializer_range": Alive([0.02, 0.5], spread_of_weights),
    "initialization": Alive(["declared", "as_released"], spread_into_the_residual_stream),
    "embedding_scale": Alive([1.0, 4.0, 0.5]),
    "logit_softcap": Alive([None, 30.0, 1]),
    "tie_word_embeddings": Alive([False, True], shares_its_embedding),
    "label_alignment": Alive(["next", "same"], loss),
    "use_cache": Alive([True, False], returns_a_cache),
    "pad_token_id": Alive([None, 0, 3], rows_that_are_zero),
    "bos_token_id": Alive([2, 3], first_generated_token),
    "eos_token_id": Alive([7, 0], length_of_generation),
    # Softmax attention.
    "num_key_value_heads": Alive([4, 2, 1]),
    "attention_dropout": Alive([0.0, 0.5], outputs_in_training),
    "sliding_window": Alive([None, 2, 5]),
    "rope_parameters": Alive(
        [
            {"rope_type": "default", "rope_theta": 10000.0},
            {"rope_type": "default", "rope_theta": 10.0},
            {"rope_type": "default", "rope_theta": 10.0, "partial_rotary_factor": 0.5},
            {"rope_type": "linear", "rope_theta": 10.0, "factor": 4.0},
        ],
        beside={"position_embedding": "rope"},
    ),
    # Hybrid.
    "mixers": Alive([["ssd", "softmax_attention"], ["softmax_attention", "ssd"], ["linear_attention", "ssd"]]),
    "mixer_options": Alive([None, {"ssd": {"n_groups": 2}}, {"ssd": {"conv_kernel": 2}}]),
    # Taylor attention.
    "order": Alive([2, 4]),
    "merge_symmetric": Alive([True, False], sizes_of_states),
    # Normalized attention.
    "normalizer": Alive(["exp", "softplus", "sigmoid", "exp_exp", "exp_softplus", "exp_sigmoid", "exp_elu"]),
    "feature_map": Alive(["identity", "elu+1"]),
    "scale_keys": Alive([False, True]),
    "offset": Alive(["none", "exp", "uniform"], parameters_of_the_transition),
    "conv_channels": Alive(["qkv", "qk"], beside={"conv_kernel": 3}),
    # qLSTM.
    "gates_from": Alive(["inner", "hidden"], beside={"conv_kernel": 3}),
    "reversed_sigmoid": Alive([False, True]),
    "learn_exponent": Alive([True, False], beside={"reversed_sigmoid": True}),
    # SSD.
    "n_groups": Alive([1, 2, 4]),
    "time_step_min": Alive([0.001, 0.01], parameters_of_the_transition),
    "time_step_max": Alive([0.1, 0.2], parameters_of_the_transition),
    "time_step_limit": Alive([None, (0.0, 0.3), (1.0, 2.0)]),
    "a_init_range": Alive([(1.0, 16.0), (1.0, 2.0)], parameters_of_the_transition),
    "decay": Alive(["selective", "constant"]),
    "time_step_bias": Alive(["head", "channel"]),
    # S6.
    "time_step_rank": Alive([1, 2, 3]),
    "time_step_floor": Alive([0.0001, 0.05], parameters_of_the_transition),
    "conv_activation": Alive(["silu", "relu"], beside={"conv_kernel": 3}),
    # GLA.
    "decay_rank": Alive([16, 2]),
    "decay_temperature": Alive([16, 4.0]),
    # Time-invariant architectures.
    "bidirectional": Alive([False, True], outputs_of_the_base_model),
    "window": Alive([None, 1, 2]),
    # S4D, S5, LRU.
    "a_init": Alive(["lin", "inv", "real"], parameters_of_the_transition),
    "discretization": Alive(["zoh", "bilinear"]),
    "num_blocks": Alive([2, 1], parameters_of_the_transition),
    "r_min": Alive([0.9, 0.5], parameters_of_the_transition),
    "r_max": Alive([0.99, 0.95], parameters_of_the_transition),
    "max_phase": Alive([6.28, 0.3], parameters_of_the_transition),
    # Gated DeltaNet, and GLA too.
    "allow_negative_eigenvalues": Alive([False, True]),
}


@every_architecture
def test_every_field_is_in_the_table(name):
    fields = fields_of(CONFIG_CLASSES[name])
    missing = fields.keys() - ALIVE.keys()
    assert not missing, f"say in ALIVE how to see that {sorted(missing)} do something"
    for key, hint in fields.items():
        if get_origin(hint) is Literal:
            assert set(get_args(hint)) == set(ALIVE[key].values), f"ALIVE leaves out a value of {key}"


def test_the_table_holds_no_field_that_is_gone():
    assert ALIVE.keys() == set().union(*map(fields_of, CONFIG_CLASSES.values()))


def alive_in(name, key):
    """Return the table's entry for a field; a head is as wide as the number of heads leaves it."""
    if key == "num_hidden_layers" and name in NEEDED:
        return Alive([1, 3], along=[{"mixers": ["ssd"] * 1}, {"mixers": ["ssd"] * 3}])
    if key == "head_dim":
        heads = small(name)["num_heads"]
        return Alive([16 // heads, 32 // heads], along=[{"expand": 1}, {"expand": 2}])
    return ALIVE[key]


def choices():
    """Return every architecture with every field in which it has a choice."""
    for name, config_class in CONFIG_CLASSES.items():
        for key in fields_of(config_class).keys() - config_class.fixed_fields.keys():
            yield name, key


@pytest.mark.parametrize(("name", "key"), sorted(choices()))
@torch.no_grad()
def test_every_field_is_alive(name, key):
    alive, seen = alive_in(name, key), []
    for index, value in enumerate(alive.values):
        if value == "rope" and not CONFIG_CLASSES[name].uses_rope:
            continue
        changes = alive.beside | (alive.along[index] if alive.along else {}) | {key: value}
        seen.append(alive.seen_in(make(name, **changes)))
        assert alive.seen_in(make(name, **changes)) == seen[-1], "the observation itself must be reproducible"
    for index, one in enumerate(seen):
        assert one not in seen[:index], f"{key}={alive.values[index]!r} changes nothing"


# ---- nonsense -------------------------------------------------------------------------------------------------------

NONSENSE = [
    ({"vocab_size": 0}, ["vocab_size=0", "positive"]),
    ({"hidden_size": 0}, ["hidden_size=0", "positive"]),
    ({"hidden_size": -16}, ["hidden_size=-16", "positive"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers=0", "positive"]),
    ({"num_heads": 0}, ["num_heads=0", "positive"]),
    ({"num_heads": -4, "head_dim": -4}, ["num_heads=-4", "positive"]),
    ({"num_heads": 3}, ["num_heads=3", "does not divide", "16", "choose a divisor, or set head_dim"]),
    ({"num_attention_heads": 3}, ["num_heads=3", "does not divide"]),
    ({"head_dim": 5}, ["head_dim=5", "num_heads · head_dim", "16", "leave head_dim out"]),
    ({"head_dim": 0}, ["head_dim=0", "positive"]),
    ({"expand": 0}, ["expand=0", "positive"]),
    ({"expand": float("inf")}, ["expand=inf", "finite"]),
    ({"expand": float("nan")}, ["expand=nan", "finite"]),
    ({"expand": 1.3}, ["num_heads=", "20.8", "choose a divisor"]),
    ({"state_size": 0}, ["state_size=0", "positive"]),
    ({"conv_kernel": 1}, ["conv_kernel=1", "use 0 (none) or at least 2 taps"]),
    ({"conv_kernel": -1}, ["conv_kernel=-1", "at least 2 taps"]),
    ({"gate": "sliu"}, ["gate='sliu'", "unknown activation", "silu"]),
    ({"hidden_act": "geluu"}, ["hidden_act='geluu'", "unknown activation", "gelu"]),
    ({"hidden_act": "none"}, ["hidden_act='none'", "unknown activation"]),
    ({"hidden_act": "relu"}, ["hidden_act='relu'", 'only channel_mixer="mlp"', "'none'", "leave hidden_act out"]),
    ({"hidden_act": "relu", "channel_mixer": "geglu"}, ["hidden_act='relu'", "'geglu'", "leave hidden_act out"]),
    ({"mlp_bias": True}, ["mlp_bias=True", "no channel mixer", "leave mlp_bias out"]),
    ({"intermediate_size": 24}, ["intermediate_size=24", "no channel mixer", "leave intermediate_size out"]),
    ({"channel_mixer_depth": 2}, ["channel_mixer_depth=2", 'only channel_mixer="mlp"', "'none'"]),
    ({"channel_mixer_depth": 2, "channel_mixer": "swiglu"}, ["channel_mixer_depth=2", "'swiglu'"]),
    ({"channel_mixer_depth": 0, "channel_mixer": "mlp"}, ["channel_mixer_depth=0", "positive"]),
    ({"channel_mixer_depth": [1, 2, 1], "channel_mixer": "mlp"}, ["channel_mixer_depth=[1, 2, 1]", "or 2"]),
    (
        {"channel_mixer_depth": [1, 2], "channel_mixer": "mlp", "pre_channel_mixer": True},
        ["channel_mixer_depth=[1, 2]", "or 3", "pre_channel_mixer"],
    ),
    ({"channel_mixer_depth": (1, -1), "channel_mixer": "mlp"}, ["channel_mixer_depth=[1, -1]", "(or 0)"]),
    ({"channel_mixer_depth": [1, 1], "channel_mixer": "geglu"}, ["channel_mixer_depth=[1, 1]", "'geglu'"]),
    ({"pre_channel_mixer": True}, ["pre_channel_mixer=True", "set channel_mixer"]),
    ({"intermediate_size": 0}, ["intermediate_size=0", "positive"]),
    ({"input_size": 0}, ["input_size=0", "positive", "None"]),
    ({"position_embedding": "learned"}, ["position_embedding='learned'", "set max_position_embeddings"]),
    ({"max_position_embeddings": 0}, ["max_position_embeddings=0", "None for no limit"]),
    ({"norm_eps": 0.0}, ["norm_eps=0.0", "positive"]),
    ({"norm_eps": float("nan")}, ["norm_eps=nan", "positive"]),
    ({"dropout": 1.0}, ["dropout=1.0", "[0, 1)"]),
    ({"dropout": -0.1}, ["dropout=-0.1", "[0, 1)"]),
    ({"initializer_range": -0.02}, ["initializer_range=-0.02", "positive"]),
    ({"embedding_scale": 0.0}, ["embedding_scale=0.0", "positive"]),
    ({"embedding_scale": float("inf")}, ["embedding_scale=inf", "finite"]),
    ({"logit_softcap": 0.0}, ["logit_softcap=0.0", "positive", "None for none"]),
    ({"logit_softcap": float("nan")}, ["logit_softcap=nan", "None for none"]),
    ({"pad_token_id": VOCAB}, [f"pad_token_id={VOCAB}", f"0 to {VOCAB - 1}", "None"]),
    ({"pad_token_id": -1}, ["pad_token_id=-1", f"0 to {VOCAB - 1}"]),
    ({"bos_token_id": VOCAB}, [f"bos_token_id={VOCAB}", f"0 to {VOCAB - 1}"]),
    ({"eos_token_id": [1, VOCAB]}, [f"eos_token_id=[1, {VOCAB}]", f"0 to {VOCAB - 1}"]),
    ({"is_encoder_decoder": True}, ["is_encoder_decoder=True", "decoder"]),
]
NONSENSE_OF_SOME = [
    ({"window": 0}, ["window=0", "at least 1", "None"]),
    ({"window": -3}, ["window=-3", "at least 1"]),
    ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "must divide num_heads=4"]),
    ({"num_key_value_heads": 0}, ["num_key_value_heads=0", "must divide num_heads=4"]),
    ({"num_key_value_heads": -2}, ["num_key_value_heads=-2", "must divide num_heads=4"]),
    ({"attention_dropout": 1.0}, ["attention_dropout=1.0", "[0, 1)"]),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}},
        ["rope_parameters={'rope_type': 'default', 'rope_theta': 10.0}", 'set position_embedding="rope"'],
    ),
    ({"sliding_window": 1}, ["sliding_window=1", "at least 2", "None for all"]),
    ({"sliding_window": -4}, ["sliding_window=-4", "at least 2"]),
    ({"mixers": []}, ["mixers=[]", "name one architecture for each layer", "linear_attention"]),
    ({"mixers": None}, ["mixers=None", "name one architecture for each layer"]),
    ({"mixers": ["ssd", "sdd"]}, ["mixers='sdd'", "did you mean ssd", "softmax_attention"]),
    ({"mixers": ["ssd", "hybrid"]}, ["mixers='hybrid'", "unknown"]),
    ({"mixers": ["ssd"], "num_hidden_layers": 3}, ["num_hidden_layers=3", "names 1 layers", "leave"]),
    ({"mixer_options": {"sdd": {}}}, ["mixer_options='sdd'", "no layer", "did you mean ssd?"]),
    ({"mixer_options": {"lstm": {}}}, ["mixer_options='lstm'", "no layer has this architecture"]),
    (
        {"mixer_options": {"ssd": {"n_grups": 2}}},
        ["mixer_options['ssd']['n_grups']=2", "ssd has no such field", "did you mean n_groups?"],
    ),
    (
        {"mixer_options": {"ssd": {"hidden_size": 8}}},
        ["mixer_options['ssd']['hidden_size']=8", "all layers share it", "on HybridConfig itself"],
    ),
    ({"mixer_options": {"ssd": {"n_groups": 3}}}, ["ssd: n_groups=3", "must divide num_heads=4"]),
    ({"mixers": ["ssd"] * 2, "position_embedding": "rope"}, ["position_embedding='rope'", "no layer", '"learned"']),
    ({"order": 0}, ["order=0", "from 1 to 64"]),
    ({"order": 10**9}, ["order=1000000000", "from 1 to 64"]),
    (
        {"state_size": 400, "order": 2},
        ["state_size=400", "80601 features of order 2", "65536", "lower state_size or order."],
    ),
    (
        {"state_size": 17, "order": 4, "merge_symmetric": False},
        ["state_size=17", "88741 features of order 4", "set merge_symmetric=True"],
    ),
    ({"conv_channels": "qk"}, ["conv_channels='qk'", "conv_kernel=0", "set conv_kernel"]),
    ({"n_groups": 3}, ["n_groups=3", "must divide num_heads=4"]),
    ({"n_groups": 0}, ["n_groups=0", "must divide num_heads=4"]),
    ({"time_step_min": 0.0}, ["time_step_min=0.0", "positive"]),
    ({"time_step_max": float("inf")}, ["time_step_max=inf", "finite"]),
    ({"time_step_min": 0.2}, ["time_step_min=0.2", "at most time_step_max=0.1"]),
    ({"time_step_limit": (2.0, 1.0)}, ["time_step_limit=[2.0, 1.0]", "the smaller first"]),
    ({"time_step_limit": (1.0,)}, ["time_step_limit=[1.0]", "two non-negative numbers"]),
    ({"time_step_limit": (-1.0, 1.0)}, ["time_step_limit=[-1.0, 1.0]", "two non-negative numbers"]),
    ({"decay_rank": 0}, ["decay_rank=0", "positive"]),
    ({"decay_temperature": 0.0}, ["decay_temperature=0.0", "positive"]),
    ({"decay_temperature": float("inf")}, ["decay_temperature=inf", "finite"]),
    ({"learn_exponent": True}, ["learn_exponent=True", "set reversed_sigmoid=True"]),
    ({"a_init_range": (3.0, 1.0)}, ["a_init_range=[3.0, 1.0]", "the smaller first"]),
    ({"a_init_range": (0.0, 1.0)}, ["a_init_range=[0.0, 1.0]", "positive"]),
    ({"a_init_range": (1.0, float("inf"))}, ["a_init_range=[1.0, inf]", "finite"]),
    ({"discretization": "zoh", "state_size": 3}, ["state_size=3", "conjugate pairs", "even"]),
    ({"num_blocks": 3}, ["num_blocks=3", "state_size=4", "even size"]),
    ({"num_blocks": 4}, ["num_blocks=4", "even size"]),
    ({"num_blocks": 0}, ["num_blocks=0"]),
    ({"r_min": 1.0}, ["r_min=1.0", "[0, 1)"]),
    ({"r_min": -0.1}, ["r_min=-0.1", "[0, 1)"]),
    ({"r_max": 0.5}, ["r_max=0.5", "r_min is 0.9"]),
    ({"r_max": 1.1}, ["r_max=1.1", "[r_min, 1]"]),
    ({"max_phase": 0.0}, ["max_phase=0.0", "positive"]),
    ({"a_init_range": (2.0, 1.0), "decay": "constant"}, ["a_init_range=[2.0, 1.0]", "two finite numbers"]),
    (
        {"time_step_bias": "channel", "decay": "constant"},
        ["time_step_bias='channel'", 'decay="constant"', 'use "head"'],
    ),
    ({"time_step_rank": 0}, ["time_step_rank=0", "positive"]),
    ({"time_step_floor": 0.2}, ["time_step_floor=0.2", "at most time_step_max=0.1"]),
    ({"time_step_floor": 0.0}, ["time_step_floor=0.0", "positive"]),
    ({"conv_activation": "sliu"}, ["conv_activation='sliu'", "unknown activation", "silu"]),
    ({"conv_activation": "relu"}, ["conv_activation='relu'", "conv_kernel=0", "leave conv_activation out"]),
    ({"a_init_range": (1.0, float("nan"))}, ["a_init_range=[1.0, nan]", "finite"]),
]
ROPE = {"position_embedding": "rope"}
NONSENSE_ROPE = [
    ({"state_size": 5}, ["state_size=5", "even width"]),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": -1e4}}, ["rope_parameters=", "-10000", "positive"]),
    ({"rope_parameters": {"rope_theta": float("nan")}}, ["rope_parameters=", "rope_theta must be positive"]),
    ({"rope_parameters": {"rope_theta": "1e4"}}, ["rope_parameters=", "rope_theta must be positive"]),
    ({"rope_parameters": {"rope_tehta": 1e4}}, ["rope_parameters=", "'rope_tehta'", "did you mean rope_theta"]),
    ({"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters=", "'factor'", "give them"]),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, ["rope_parameters=", "factor must be at least 1"]),
    ({"rope_parameters": {"rope_type": "linear", "factor": True}}, ["rope_parameters=", "factor must be at least 1"]),
    ({"rope_parameters": {"rope_type": "defualt", "rope_theta": 1e4}}, ["rope_parameters=", "defualt", "default"]),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
        ["state_size=4", "partial_rotary_factor is 0.75", "even width"],
    ),
    (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        ["max_position_embeddings=None", "dynamic", "set it"],
    ),
]


def refusal(name, **changes):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - callers look at the message
        make(name, **changes)
    return str(error.value)


@every_architecture
@pytest.mark.parametrize(("changes", "message"), NONSENSE, ids=[str(changes) for changes, _ in NONSENSE])
def test_nonsense_is_refused(name, changes, message):
    found = refusal(name, **changes)
    assert all(part in found for part in message), found


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param(name, *case, id=f"{name}-{case[0]}")
        for case in NONSENSE_OF_SOME
        for name in CONFIG_CLASSES
        if case[0].keys() <= fields_of(CONFIG_CLASSES[name]).keys()
    ],
)
def test_nonsense_in_fields_of_some_is_refused(name, changes, message):
    found = refusal(name, **changes)
    assert all(part in found for part in message), found


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, config_class in CONFIG_CLASSES.items() for key in config_class.fixed_fields]
)
def test_a_field_without_a_choice_is_refused_at_other_values(name, key):
    only = CONFIG_CLASSES[name].fixed_fields[key]
    assert getattr(CONFIG_CLASSES[name](), key) == only
    found = refusal(name, **{key: 2 * only})
    assert all(part in found for part in (f"{key}={2 * only}", name, f"no choice but {only}", "out")), found


@every_architecture
def test_a_bias_without_a_convolution_is_refused(name):
    if name in NEEDED:
        hybrid = make(name, mixers=["ssd", "gla"], conv_kernel=None, conv_bias=False)
        assert (hybrid.layer_config(0).conv_bias, hybrid.layer_config(1).conv_kernel) == (False, 0)
        return
    default = CONFIG_CLASSES[name].conv_bias
    found = refusal(name, conv_bias=not default)
    assert all(part in found for part in (f"conv_bias={not default}", "conv_kernel=0", "leave conv_bias out")), found
    assert make(name, conv_bias=not default, conv_kernel=2).conv_bias is not default


@every_architecture
def test_nonsense_about_rotary_positions_is_refused(name):
    if not CONFIG_CLASSES[name].uses_rope:
        found = refusal(name, **ROPE)
        assert "position_embedding='rope'" in found
        assert 'use "none" or "learned"' in found
        assert "has no field 'rope_theta'" in refusal(name, rope_theta=100.0)
        return
    for changes, message in NONSENSE_ROPE:
        found = refusal(name, **ROPE | changes)
        assert all(part in found for part in message), found


@every_architecture
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "16"},
        {"hidden_size": 16.0},
        {"state_size": None},
        {"gate": None},
        {"conv_bias": "no"},
        {"norm": "batchnorm"},
        {"channel_mixer": "moe"},
        {"position_embedding": "alibi"},
        {"label_alignment": "previous"},
        {"eos_token_id": "</s>"},
    ],
    ids=str,
)
def test_wrong_types_and_options_are_refused(name, changes):
    key, value = next(iter(changes.items()))
    if value is None and type(None) in get_args(fields_of(CONFIG_CLASSES[name])[key]):
        assert getattr(make(name, **changes), key) is None
        return
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        make(name, **changes)
    assert key in str(error.value)
    assert f"got {value}" in str(error.value) or f"value: {value!r}" in str(error.value)


@every_architecture
def test_misspelt_fields_offer_the_right_name(name):
    for key in fields_of(CONFIG_CLASSES[name]):
        misspelt = key[:-2] + key[-1] + key[-2] if key[-1] != key[-2] else key[:-1]
        found = refusal(name, **{misspelt: 1})
        assert f"{misspelt}=1" in found
        assert CONFIG_CLASSES[name].__name__ in found
        assert key in found.split("did you mean")[1]
    assert f"`dsf-models fields {name}` lists" in refusal(name, zzzz=1)


# ---- files ----------------------------------------------------------------------------------------------------------


def other_values(name):
    """Return the last value of the table for every field that fits beside the others."""
    beside = MLP | {"position_embedding": "learned"}
    skipped = {"channel_mixer", "position_embedding", "rope_parameters", "head_dim", "expand", "num_heads", "n_groups"}
    skipped |= {"decay"}  # a bias per channel goes with one value only
    fields = fields_of(CONFIG_CLASSES[name]).keys() - CONFIG_CLASSES[name].fixed_fields.keys()
    return {key: alive.values[-1] for key, alive in ALIVE.items() if key in fields and key not in skipped} | beside


@every_architecture
def test_round_trip(name, tmp_path):
    candidates = [make(name), make(name, **other_values(name)), make(name, num_labels=3, eos_token_id=[3, 4])]
    candidates += [make(name, **MLP, channel_mixer_depth=(2, 0, 1), pre_channel_mixer=True)]
    if CONFIG_CLASSES[name].uses_rope:
        candidates += [make(name, **ROPE, rope_parameters=value) for value in ALIVE["rope_parameters"].values]
    for config in candidates:
        config.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert "layer_types" not in stored
        assert fields_of(type(config)).keys() - stored.keys() <= {"tie_word_embeddings"}
        for loaded in (AutoConfig.from_pretrained(tmp_path), type(config).from_pretrained(tmp_path)):
            assert type(loaded) is type(config)
            assert len(loaded.layer_types) == config.num_hidden_layers
            for key in fields_of(type(config)):
                assert getattr(loaded, key) == getattr(config, key), key
            assert loaded.num_labels == config.num_labels
        loaded.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text()) == stored
        # Trainer reads it so when it resumes.
        base = PreTrainedConfig.from_pretrained(tmp_path)
        assert base.hidden_size == config.hidden_size
        # What an architecture's file of an older layout may hold.
        assert type(config)(**stored, layer_types=["full_attention"]).layer_types == config.layer_types


@every_architecture
def test_a_configuration_needs_no_field(name):
    config = CONFIG_CLASSES[name]()
    assert len(config.layer_types) == config.num_hidden_layers == 4
    assert CONFIG_CLASSES[name](**config.to_dict()).to_dict() == config.to_dict()


@every_architecture
def test_defaults_that_depend_on_other_fields_are_written_out(name):
    config = make(name, expand=2).layer_config(0)
    assert (config.head_dim * config.num_heads, config.inner_size, config.intermediate_size) == (32, 32, 64)
    assert getattr(config, "num_key_value_heads", 4) == 4


# ---- transformers' own keywords -------------------------------------------------------------------------------------


@every_architecture
def test_keywords_of_transformers(name):
    config = make(
        name,
        id2label={0: "no", 1: "maybe", 2: "yes"},
        label2id={"no": 0, "maybe": 1, "yes": 2},
        problem_type="single_label_classification",
        output_hidden_states=True,
        return_dict=False,
        attn_implementation="eager",
        dtype="bfloat16",
        architectures=["Something"],
        torchscript=False,
        chunk_size_feed_forward=0,
    )
    assert config.num_labels == 3
    assert config.problem_type == "single_label_classification"
    assert config.output_hidden_states is True
    assert config.return_dict is False
    assert config._attn_implementation == "eager"
    assert config.dtype in ("bfloat16", torch.bfloat16)
    assert make(name, num_labels=5).num_labels == 5
    assert make(name, torch_dtype="float16").dtype in ("float16", torch.float16)
    heads = CONFIG_CLASSES[name].fixed_fields.get("num_heads", 2)
    aliased = CONFIG_CLASSES[name](hidden_size=16, num_attention_heads=heads, **NEEDED.get(name, {}))
    assert aliased.num_heads == aliased.num_attention_heads == heads
    assert "num_attention_heads" not in aliased.to_diff_dict()
