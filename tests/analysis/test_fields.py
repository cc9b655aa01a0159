"""The fields that are shown are those of the configuration, each with its default and what its class says about it."""

import pytest

from dsf_models import SSDConfig, list_architectures
from dsf_models.analysis import config_fields
from dsf_models.backbone import DSFConfig, get_architecture


@pytest.mark.parametrize("name", list_architectures())
def test_every_field_is_shown_with_its_default_and_meaning(name):
    config_class = get_architecture(name).config_class
    fields = {field.name: field for field in config_fields(config_class)}
    assert fields.keys() >= {field.name for field in config_fields(DSFConfig)}
    for field in fields.values():
        assert field.description, field.name
        assert field.default == getattr(config_class, field.name)


def test_a_field_declared_again_is_the_architectures_own():
    fields = {field.name: field for field in config_fields(SSDConfig)}
    assert fields["gate"].owner is SSDConfig
    assert not fields["gate"].shared
    assert fields["gate"].shown == '"silu"'
    assert fields["vocab_size"].shared
    assert fields["pad_token_id"].shown == "None"
