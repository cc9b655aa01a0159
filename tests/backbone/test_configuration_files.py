"""Configuration files: of this version, of earlier and of later ones, and changed while they are read."""

import functools
import inspect
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

import dsf_models
from dsf_models import list_architectures
from dsf_models.backbone import get_architecture
from dsf_models.backbone.migrations import MIGRATIONS, migrate
from tests.contract import small_config

DATA = Path(__file__).parents[1] / "data"
every_architecture = pytest.mark.parametrize("name", list_architectures())
old_file = pytest.mark.feature("Configurations saved by earlier versions load")
strict = pytest.mark.feature("Misspelt configuration fields are errors")


@functools.cache
def stored():
    """Return what version 0.1.0 saved: configurations, and the shapes of their models' parameters."""
    return json.loads((DATA / "configurations_0.1.0.json").read_text(encoding="utf-8"))


def save(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def saved(folder, name, **changes):
    """Save a small configuration, with fields of the file changed; those that are `...` are left out."""
    small_config(name, "default").save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text()) | changes
    return save(folder, {key: value for key, value in fields.items() if value is not ...})


@pytest.fixture
def messages(monkeypatch):
    """Collect what the configuration's logger warns of."""
    found = []
    logger = logging.get_logger("dsf_models.backbone.configuration")
    monkeypatch.setattr(type(logger), "warning_once", lambda self, message: found.append(message))
    return found


# ---- versions -------------------------------------------------------------------------------------------------------


@every_architecture
@old_file
def test_files_of_version_0_1_0_load(name, tmp_path):
    entries = [entry for entry in stored() if entry["case"].startswith(f"{name}-")]
    if name in {entry["case"].split("-")[0] for entry in stored()}:
        assert len(entries) > 1
    for entry in entries:
        fields = entry["config"]
        for loaded in (AutoConfig.from_pretrained(save(tmp_path, fields)), AutoConfig.for_model(**fields)):
            found = loaded.to_dict()
            for key, value in fields.items():
                assert found[key] == value or key in ("dsf_version", "transformers_version"), key
        model = AutoModelForCausalLM.from_config(loaded)
        assert {key: list(value.shape) for key, value in model.named_parameters()} == entry["parameters"]


@every_architecture
@old_file
def test_a_file_states_its_version(name, tmp_path):
    fields = json.loads((saved(tmp_path, name) / "config.json").read_text())
    assert fields["dsf_version"] == dsf_models.__version__
    # Trainer reads it so when it resumes.
    assert PreTrainedConfig.from_pretrained(tmp_path).dsf_version == dsf_models.__version__
    without = AutoConfig.from_pretrained(saved(tmp_path, name, dsf_version=...))
    assert without.to_dict()["dsf_version"] == dsf_models.__version__


@every_architecture
@old_file
def test_a_renamed_field_is_migrated(name, tmp_path, monkeypatch):
    """As if one version had renamed norm_epsilon to norm_eps, and two more hidden_width to hidden_size."""
    fields = json.loads((saved(tmp_path, name, norm_eps=0.25) / "config.json").read_text())
    old = {"dsf_version": "0.1.0", "hidden_width": fields.pop("hidden_size"), "norm_epsilon": fields.pop("norm_eps")}
    save(tmp_path, fields | old)
    with pytest.raises(ValueError, match=r"has no field '(hidden_width|norm_epsilon)'"):
        AutoConfig.from_pretrained(tmp_path)

    def rename(before, since):
        return lambda fields: {since if key == before else key: value for key, value in fields.items()}

    # In no order: 0.10 comes after 0.9.
    monkeypatch.setitem(MIGRATIONS, "0.10.0", rename("width", "hidden_size"))
    monkeypatch.setitem(MIGRATIONS, "0.9.0", rename("hidden_width", "width"))
    monkeypatch.setitem(MIGRATIONS, "0.2.0", rename("norm_epsilon", "norm_eps"))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.norm_eps) == (16, 0.25)
    assert not {"hidden_width", "width", "norm_epsilon"} & config.to_dict().keys()


def test_migrations_are_pure_and_start_behind_the_files_version():
    steps = {"0.2.0": lambda fields: fields | {"steps": [*fields.get("steps", []), 2]}}
    steps["0.3.0"] = lambda fields: fields | {"steps": [*fields.get("steps", []), 3]}
    for version, expected in ((None, [2, 3]), ("0.1.0", [2, 3]), ("0.2.0", [3]), ("0.2.1", [3]), ("0.3.0", [])):
        fields = {} if version is None else {"dsf_version": version}
        before = dict(fields)
        assert migrate(fields, steps).get("steps", []) == expected
        assert fields == before


@every_architecture
@old_file
def test_files_of_a_later_version(name, tmp_path, messages):
    config = AutoConfig.from_pretrained(saved(tmp_path, name, dsf_version="99.1"))
    assert config.hidden_size == 16
    assert any("dsf_models 99.1" in message and "upgrade" in message for message in messages)
    with pytest.raises(ValueError, match=r"has no field 'quantum'; the file was written by dsf_models 99\.1.*upgrade"):
        AutoConfig.from_pretrained(saved(tmp_path, name, dsf_version="99.1", quantum=True))


@pytest.mark.parametrize("version", ["banana", "", 3, None, ["0.1.0"]], ids=repr)
def test_no_version(version, tmp_path):
    with pytest.raises(ValueError, match=r"dsf_version=.* must be a version"):
        AutoConfig.from_pretrained(saved(tmp_path, "ssd", dsf_version=version))


@every_architecture
def test_keys_of_a_later_transformers(name, tmp_path, messages):
    config = AutoConfig.from_pretrained(saved(tmp_path, name, transformers_version="99.0.0", brand_new="on"))
    assert config.hidden_size == 16
    assert any("brand_new='on' is of a later transformers" in message for message in messages)
    with pytest.raises(ValueError, match="transformers_version='x': must be a version"):
        AutoConfig.from_pretrained(saved(tmp_path, name, transformers_version="x", brand_new="on"))
    with pytest.raises(ValueError, match="did you mean hidden_size"):
        AutoConfig.from_pretrained(saved(tmp_path, name, transformers_version="99.0.0", hiden_size=16))
    with pytest.raises(ValueError, match="has no field 'brand_new'"):
        AutoConfig.from_pretrained(saved(tmp_path, name, brand_new="on"))


# ---- changes while reading ------------------------------------------------------------------------------------------


@every_architecture
@strict
def test_fields_changed_while_reading_are_checked_together(name, tmp_path):
    config_class = get_architecture(name).config_class
    for loader in (AutoConfig, config_class):
        changed = loader.from_pretrained(saved(tmp_path, name), use_cache=False, norm_eps=0.5, pad_token_id=3)
        assert (changed.use_cache, changed.norm_eps, changed.pad_token_id) == (False, 0.5, 3)
        with pytest.raises(ValueError, match=r"mlp_bias=True.*leave mlp_bias out"):
            loader.from_pretrained(tmp_path, channel_mixer="none", intermediate_size=None, mlp_bias=True)
        wider = loader.from_pretrained(tmp_path, hidden_size=32, head_dim=None, intermediate_size=None)
        assert (wider.hidden_size, wider.intermediate_size) == (32, 128)
        assert wider.layer_config(0).hidden_size == 32
    fields = json.loads((tmp_path / "config.json").read_text())
    before = dict(fields)
    config_class.from_dict(fields, use_cache=False)
    assert fields == before


@every_architecture
@strict
def test_misspelt_changes_offer_the_right_name(name, tmp_path):
    get_architecture(name).causal_lm_class(small_config(name, "default")).save_pretrained(tmp_path)
    for wrong, right in (("hiden_size", "hidden_size"), ("use_cahce", "use_cache"), ("norm_esp", "norm_eps")):
        for loader in (AutoConfig, AutoModelForCausalLM, get_architecture(name).causal_lm_class):
            with pytest.raises(ValueError, match=f"{wrong}=1: .*did you mean {right}"):
                loader.from_pretrained(tmp_path, **{wrong: 1})
    for wrong, right in (("hiden_size", "hidden_size"), ("num_layers", "num_hidden_layers")):
        with pytest.raises(ValueError, match=rf"{wrong}=3: .*did you mean .*{right}"):
            AutoConfig.from_pretrained(save(tmp_path, small_config(name, "default").to_dict() | {wrong: 3}))


def keywords_of_transformers():
    """Return what transformers, pipelines, tokenizers and lm-eval give to from_pretrained beside fields."""
    own = inspect.signature(PreTrainedModel.from_pretrained).parameters
    text = inspect.getsource(PreTrainedModel.from_pretrained)
    popped = {part.split('"')[1] for part in text.split("kwargs.pop(")[1:] if part.startswith('"')}
    tokenizers = {
        "use_fast",
        "padding_side",
        "truncation_side",
        "model_max_length",
        "add_bos_token",
        "add_prefix_space",
    }
    return sorted({*own, *popped, *tokenizers, "code_revision", "device_map", "max_memory", "low_cpu_mem_usage"})


@every_architecture
def test_keywords_meant_for_others_are_handed_back(name):
    config_class = get_architecture(name).config_class
    fields = small_config(name, "default").to_dict()
    assert len(keywords_of_transformers()) > 30
    for key in keywords_of_transformers():
        if not hasattr(config_class, key) and key not in ("dtype", "torch_dtype", "attn_implementation"):
            _, unused = config_class.from_dict(fields, return_unused_kwargs=True, **{key: "x"})
            assert unused in ({key: "x"}, {}), key


def test_the_folder_of_a_model_serves_a_tokenizer_with_its_own_keywords(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), pad_token="a"
    )
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(saved(tmp_path, "ssd"), pad_token="b", eos_token="b", padding_side="left")
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("b", "b", "left")


@strict
@every_architecture
def test_per_layer_configurations_are_refused(name):
    with pytest.raises(ValueError, match=r"hybrid.*mixer_options"):
        small_config(name, "default", per_layer_config={0: {"norm_eps": 1e-3}})


@every_architecture
def test_settings_of_generation_are_warned_of(name, messages):
    config = small_config(name, "default", temperature=0.5, num_beams=3)
    assert not hasattr(config, "temperature")
    for key in ("temperature", "num_beams"):
        assert any(f"{key} has no effect in a configuration" in message for message in messages)
    messages.clear()
    type(config)(**config.to_dict() | {"output_attentions": True, "num_labels": 3})
    assert not messages
