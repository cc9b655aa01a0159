"""An architecture is one file: a dummy one, defined in this module alone, owes and keeps the whole contract."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dsf_models import DSFSystem, list_architectures
from dsf_models.backbone import (
    Architecture,
    DSFConfig,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFMixer,
    DSFModel,
    get_architecture,
    register_architecture,
    registry,
)
from dsf_models.transitions import ScalarDecay
from tests import contract
from tests.contract import HEADS, PADDING, fresh, sequences, small_config

NAME = "constant_decay"
AUTO_CLASSES = dict(
    zip(
        HEADS,
        (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification),
        strict=True,
    )
)

# ---- the architecture -----------------------------------------------------------------------------------------------


@strict
class ConstantDecayConfig(DSFConfig):
    model_type: ClassVar[str] = f"dsf_{NAME}"

    initial_decay: float = 0.9
    """λ of every head at initialisation."""


class ConstantDecayMixer(DSFMixer):
    """Λ = λ I, learned and the same at every step; B_i and C_i linear in the input."""

    transition_parameters: ClassVar[tuple[str, ...]] = ("decay",)

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.in_proj = nn.Linear(config.hidden_size, self.conv_width(config), bias=config.use_bias)
        self.decay = nn.Parameter(torch.empty(config.num_heads))

    @classmethod
    def conv_width(cls, config):
        return config.inner_size + 2 * config.num_heads * config.state_size

    def init_parameters(self):
        init.constant_(self.decay, self.config.initial_decay)

    def project(self, hidden):
        return self.in_proj(hidden), None

    def system(self, conv_out, rest):
        width = self.num_heads * self.state_size
        u, B, C = conv_out.split([self.inner_size, width, width], dim=-1)
        return DSFSystem(
            u=u.unflatten(-1, (self.num_heads, -1)),
            B=B.unflatten(-1, (self.num_heads, -1)),
            C=C.unflatten(-1, (self.num_heads, -1)),
            transition=ScalarDecay(self.decay.abs().log().expand(*u.shape[:2], -1)),
        )


class ConstantDecayModel(DSFModel):
    config: ConstantDecayConfig


class ConstantDecayForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    config: ConstantDecayConfig


class ConstantDecayForSequenceClassification(DSFForSequenceClassification):
    config: ConstantDecayConfig


class ConstantDecayForTokenClassification(DSFForTokenClassification):
    config: ConstantDecayConfig


ARCHITECTURE = Architecture(
    config_class=ConstantDecayConfig,
    mixer_class=ConstantDecayMixer,
    model_class=ConstantDecayModel,
    causal_lm_class=ConstantDecayForCausalLM,
    sequence_classification_class=ConstantDecayForSequenceClassification,
    token_classification_class=ConstantDecayForTokenClassification,
    transition="λ I per head",
    input_matrix="I ⊗ b_i",
    output_matrix="I ⊗ c_i^T",
)

# ---- registering ----------------------------------------------------------------------------------------------------


def mappings():
    """Return every mapping that `register_architecture` writes."""
    models = [auto_class._model_mapping._extra_content for auto_class in AUTO_CLASSES.values()]
    heads = ("", "_FOR_CAUSAL_LM", "_FOR_SEQUENCE_CLASSIFICATION", "_FOR_TOKEN_CLASSIFICATION")
    names = [getattr(modeling_auto, f"MODEL{head}_MAPPING_NAMES") for head in heads]
    return [registry._ARCHITECTURES, CONFIG_MAPPING._extra_content, *names, *models]


@pytest.fixture
def clean_registry():
    """Give a test the registry to write to, and take back what it wrote."""
    before = [dict(mapping) for mapping in mappings()]
    yield
    for mapping, content in zip(mappings(), before, strict=True):
        for key in mapping.keys() - content.keys():
            del mapping[key]


@pytest.fixture
def registered(clean_registry):
    register_architecture(ARCHITECTURE)


def test_nothing_stays_registered():
    assert NAME not in list_architectures()
    with pytest.raises(ValueError, match="dsf_constant_decay"):
        AutoConfig.for_model(f"dsf_{NAME}")


@pytest.mark.usefixtures("registered")
def test_listed():
    assert NAME in list_architectures()
    assert list_architectures() == sorted(list_architectures())
    assert get_architecture(NAME) is ARCHITECTURE
    assert ARCHITECTURE.name == NAME


@pytest.mark.parametrize("name", list_architectures())
def test_transformers_knows_the_classes_by_name(name):
    """Trainer, pipelines and transformers' own tests ask its tables of names; a generator is known by its bases."""
    architecture = get_architecture(name)
    names = {
        "": architecture.model_class,
        "_FOR_CAUSAL_LM": architecture.causal_lm_class,
        "_FOR_SEQUENCE_CLASSIFICATION": architecture.sequence_classification_class,
        "_FOR_TOKEN_CLASSIFICATION": architecture.token_classification_class,
    }
    for head, head_class in names.items():
        table = getattr(modeling_auto, f"MODEL{head}_MAPPING_NAMES")
        assert table[architecture.config_class.model_type] == head_class.__name__
    assert "GenerationMixin" in str(architecture.causal_lm_class.__bases__)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_auto_classes(head, tmp_path):
    config = AutoConfig.for_model(f"dsf_{NAME}", **contract.variants(NAME)["full"], num_labels=3, initial_decay=0.5)
    assert type(config) is ConstantDecayConfig
    model = AUTO_CLASSES[head].from_config(config).eval()
    assert type(model) is getattr(ARCHITECTURE, f"{head}_class")
    assert all(bool((block.token_mixer.decay == 0.5).all()) for block in model.base_model.layers)
    model.save_pretrained(tmp_path)
    loaded = AUTO_CLASSES[head].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    ids = torch.stack(sequences((6, 6)))
    assert torch.equal(loaded(ids)[0], model(ids)[0])


CONTRACT = {
    "modes": lambda model: contract.assert_modes_agree(model, input_ids=torch.stack(sequences((11, 11)))),
    "transfer matrix": lambda model: contract.assert_transfer_matrix_explains_the_mixer(
        model, **contract.packed(sequences())["position_ids"]
    ),
    "causality": contract.assert_causal_and_mixing,
    "cache": contract.assert_cache_contract,
    "padding": lambda model: [contract.assert_padding_contract(model, side, 1e-10) for side in PADDING],
    "cached padding": lambda model: [contract.assert_cached_padding_contract(model, side, 1e-10) for side in PADDING],
    "packing": lambda model: contract.assert_packing_contract(model, 1e-10),
    "padding gradients": lambda model: contract.assert_padding_gradients(model, "left", "next", 1e-10),
    "packing gradients": lambda model: contract.assert_packing_gradients(model, 1e-10),
    "packing with padding": lambda model: contract.assert_packed_and_padded(model, "interior", 1e-10),
    "packed prefill": lambda model: contract.assert_document_goes_on(model, 1e-10),
    "generation": contract.assert_generation_contract,
    "generation from padding": lambda model: contract.assert_generation_from_any_padding(model, "right"),
    "generation goes on": contract.assert_generation_goes_on,
}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("case", ["default", "bare", "full", "mlp"])
@pytest.mark.parametrize("duty", CONTRACT)
def test_contract(case, duty):
    CONTRACT[duty](fresh(NAME, case).double())


@pytest.mark.usefixtures("registered")
def test_fields_of_its_own():
    assert small_config(NAME, initial_decay=0.25).initial_decay == 0.25
    with pytest.raises(ValueError, match="did you mean initial_decay"):
        small_config(NAME, inital_decay=0.25)


@pytest.mark.usefixtures("registered")
def test_parameters_of_its_transition():
    model = fresh(NAME).to(torch.bfloat16)
    assert {"model.layers.0.mixer.decay", "model.layers.1.mixer.decay"} <= model.no_weight_decay()
    with torch.no_grad():
        bare = AutoModelForCausalLM.from_config(small_config(NAME), dtype=torch.bfloat16)
    assert bare.model.layers[0].mixer.decay.dtype == torch.float32
    assert bare.lm_head.weight.dtype == torch.bfloat16


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_unknown_names_offer_the_closest():
    for name in list_architectures():
        with pytest.raises(ValueError, match=rf"architecture='{name}s' is unknown; did you mean .*{name}.*\?"):
            get_architecture(f"{name}s")
    with pytest.raises(ValueError, match="architecture='zzzz' is unknown; choose from ") as error:
        get_architecture("zzzz")
    assert all(name in str(error.value) for name in list_architectures())


@pytest.mark.usefixtures("registered")
def test_taken_names_are_refused():
    before = [dict(mapping) for mapping in mappings()]
    with pytest.raises(ValueError, match=r"model_type='dsf_constant_decay' is taken by ConstantDecayConfig"):
        register_architecture(ARCHITECTURE)
    assert [dict(mapping) for mapping in mappings()] == before


@pytest.mark.usefixtures("clean_registry")
def test_other_prefixes_are_refused():
    class Unprefixed(ConstantDecayConfig):
        model_type: ClassVar[str] = NAME

    before = [dict(mapping) for mapping in mappings()]
    with pytest.raises(ValueError, match=r"model_type='constant_decay': .* \"dsf_\" \+ its name"):
        register_architecture(dataclasses.replace(ARCHITECTURE, config_class=Unprefixed))
    assert [dict(mapping) for mapping in mappings()] == before


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize("head", HEADS)
def test_classes_of_another_configuration_are_refused(head):
    """A class that does not name its configuration would build the wrong model; nothing is half registered."""

    class Undeclared(getattr(ARCHITECTURE, f"{head}_class").__mro__[1]):
        pass

    before = [dict(mapping) for mapping in mappings()]
    with pytest.raises(ValueError, match=r"Undeclared.* declare `config: ConstantDecayConfig`"):
        register_architecture(dataclasses.replace(ARCHITECTURE, **{f"{head}_class": Undeclared}))
    assert [dict(mapping) for mapping in mappings()] == before
    register_architecture(ARCHITECTURE)
    assert NAME in list_architectures()
