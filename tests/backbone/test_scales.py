"""The embeddings' factor and the logits' bound, as Gemma has them."""

import torch

from tests.contract import assert_close, fresh, sequences


def ids():
    return torch.stack(sequences((7, 7)))


@torch.no_grad()
def test_embeddings_are_scaled_before_positions_are_added():
    plain, scaled = (fresh("ssd", "full", embedding_scale=scale).double() for scale in (1.0, 3.0))
    scaled.load_state_dict(plain.state_dict())
    embeds = plain.get_input_embeddings()(ids())
    assert_close(scaled(ids()).logits, plain(inputs_embeds=3 * embeds).logits, 1e-12)
    # Embeddings that are given stand for those of the table, so they are scaled too.
    assert_close(scaled(inputs_embeds=embeds).logits, scaled(ids()).logits, 1e-12)


@torch.no_grad()
def test_logits_are_bounded():
    plain, capped = (fresh("ssd", logit_softcap=cap, initializer_range=2.0).double() for cap in (None, 1.5))
    logits, bounded = plain(ids()).logits, capped(ids(), labels=ids())
    assert logits.abs().max() > 3
    assert_close(bounded.logits, 1.5 * torch.tanh(logits / 1.5), 1e-12)
    expected = torch.nn.functional.cross_entropy(bounded.logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())
    assert_close(bounded.loss, expected, 1e-12)
