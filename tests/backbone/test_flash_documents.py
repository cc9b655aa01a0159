"""How FlashAttention is told of documents: the offsets must be those that transformers' own collator gives."""

import pytest
import torch

from dsf_models.backbone.layout import build_layout
from tests import contract
from tests.contract import fresh, sequences


def layout_of(inputs):
    return build_layout(inputs["input_ids"][..., None], None, None, None, None, seq_idx=inputs.get("seq_idx"))


def test_offsets_are_the_collators():
    packed = contract.packed(sequences())
    expected = packed["collator"]["cu_seq_lens_q"].tolist()
    assert layout_of(packed["seq_idx"]).document_offsets().tolist() == expected


def test_rows_end_documents():
    seq_idx = torch.tensor([[0, 0, 1], [5, 5, 5]])
    layout = layout_of({"input_ids": torch.zeros(2, 3, dtype=torch.long), "seq_idx": seq_idx})
    assert layout.document_offsets().tolist() == [0, 2, 3, 6]


def test_keywords_go_to_flash_attention_alone():
    model, layout = fresh("softmax_attention").model, layout_of(contract.packed(sequences())["seq_idx"])
    assert model._varlen_keywords(layout, None) == {}
    model.config._attn_implementation_internal = "flash_attention_2"
    keywords = model._varlen_keywords(layout, torch.ones(1, 3))
    assert torch.equal(keywords["cu_seq_lens_q"], layout.document_offsets())
    assert torch.equal(keywords["cu_seq_lens_k"], keywords["cu_seq_lens_q"])
    with pytest.raises(ValueError, match="documents or pads, not both"):
        model._varlen_keywords(layout, torch.tensor([[1, 0, 1]]))
