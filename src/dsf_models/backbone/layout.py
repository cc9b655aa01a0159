"""Where the real tokens of a batch are: the one padding rule, the one document rule and the one position rule.

* Padding: where a mask holds zeros, the real tokens of each row are gathered to the front; convolution and system run
  there, the state is read at the last real token, and outputs are scattered back. It serves left, right and interior
  pads.
* Documents: a boundary is a change of seq_idx, else of cu_seq_lens, else position_ids[t] != position_ids[t-1] + 1
  (the last only where there is no mask). A cached segment's first token starts a document only if its position is 0.
* Positions: given, or counted over the real tokens of each document, on from the past where the document goes on.

Letters: b batch, t time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from .compat import CACHE_NAME

__all__ = ["TokenLayout", "build_layout", "recurrent_mask"]


# What a forward pass is given, and no output of a model.
# trf-ignore: TRF031
@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Positions, padding and documents of one forward pass."""

    position_ids: Tensor | None
    """Position of each token in its sequence, (b or 1, t); None where the model uses none."""
    order: Tensor | None = None
    """(b, t) slot of the k-th token after gathering, real tokens first; None without pads."""
    lengths: Tensor | None = None
    """(b,) number of real tokens of each row; None without pads."""
    starts: Tensor | None = None
    """(b, t) True where a document starts, in gathered order; None without documents."""
    documents: Tensor | None = None
    """(b, t) number of each token's document, in slot order; None without documents."""

    def gather(self, x: Tensor) -> Tensor:
        """Move the real tokens of each row to the front: (b, t, d) -> (b, t, d)."""
        if self.order is None:
            return x
        return x.gather(1, self.order[..., None].expand(-1, -1, x.shape[-1]))

    def scatter(self, x: Tensor) -> Tensor:
        """Undo `gather`; slots of pads read zero."""
        if self.order is None:
            return x
        real = torch.arange(x.shape[1], device=x.device) < self.lengths[:, None]
        index = self.order[..., None].expand(-1, -1, x.shape[-1])
        return torch.zeros_like(x).scatter(1, index, x.masked_fill(~real[..., None], 0.0))

    def scatter_matrix(self, phi: Tensor) -> Tensor:
        """Return Φ (b, ..., t, t) of gathered tokens with rows and columns in slot order."""
        if self.order is None:
            return phi
        back = torch.argsort(self.order, dim=1)
        rows = back.reshape(back.shape[0], *([1] * (phi.ndim - 3)), -1)
        phi = phi.gather(-2, rows[..., :, None].expand_as(phi))
        return phi.gather(-1, rows[..., None, :].expand_as(phi))

    def segment(self, start: int, length: int) -> "TokenLayout":
        """Return the layout of `length` gathered tokens from `start` on, which need no gathering any more."""
        positions = self.position_ids
        if positions is not None and self.order is not None:
            positions = positions.expand(self.order.shape).gather(1, self.order)
        return TokenLayout(
            position_ids=positions if positions is None else positions.narrow(1, start, length),
            lengths=None if self.lengths is None else (self.lengths - start).clamp(0, length),
            starts=None if self.starts is None else self.starts.narrow(1, start, length),
        )

    def slots(self, start: int, stop: int) -> "TokenLayout":
        """Return the layout of the slots from `start` up to `stop`, as if the others were not there."""
        positions, documents = (None if x is None else x[:, start:stop] for x in (self.position_ids, self.documents))
        if self.order is None:
            starts = None if self.starts is None else self.starts[:, start:stop]
            return TokenLayout(positions, starts=starts, documents=documents)
        real = torch.arange(self.order.shape[1], device=self.order.device) < self.lengths[:, None]
        real = torch.zeros_like(real).scatter(1, self.order, real)[:, start:stop]
        order, lengths = _gathering(real)
        starts = self.starts
        if starts is not None:
            starts = torch.zeros_like(starts).scatter(1, self.order, starts)[:, start:stop].gather(1, order)
        return TokenLayout(positions, order, lengths, starts, documents)

    def first_tokens(self) -> Tensor:
        """Return (b or 1, t) True at each document's first token, in gathered order; positions must be known."""
        first = self.position_ids == 0
        if self.order is not None:
            first = first.expand(self.order.shape).gather(1, self.order)
        return first if self.starts is None else first | self.starts

    def document_offsets(self) -> Tensor:
        """Return where documents start with all rows laid end to end, and where the last one ends: (documents + 1,)."""
        starts = F.pad(self.documents[:, 1:] != self.documents[:, :-1], (1, 0), value=True).flatten()
        return F.pad(starts.nonzero().flatten(), (0, 1), value=starts.numel()).int()


def recurrent_mask(
    config: object, inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: object
) -> Tensor | None:
    """Return the padding mask of the current segment (b, t), or None where it holds no pad.

    transformers calls it when it prepares masks ahead of a compiled step, with keywords that only attention needs.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    segment = attention_mask[:, -inputs_embeds.shape[1] :].bool()
    if not torch.compiler.is_compiling() and bool(segment.all()):
        return None
    return segment.contiguous()


def build_layout(
    inputs_embeds: Tensor,
    mask: Tensor | None,
    full_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    seq_idx: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
    infer_documents: bool = False,
    count_positions: bool = True,
) -> TokenLayout:
    """Work out positions, padding and documents of one forward pass.

    Args:
        inputs_embeds: (b, t, d), for sizes only.
        mask: padding mask of the segment (b, t), or None.
        full_mask: padding mask of past and segment (b, past + t), or None.
        position_ids: (b or 1, t), or None to count.
        cache: the cache before this segment, or None.
        seq_idx: (b, t) number of the document of each token, or None.
        cu_seq_lens: (documents + 1,) offsets of the documents of a single row, or None.
        infer_documents: whether jumps of position_ids start documents (only right where the caller gave no mask).
        count_positions: whether the model uses positions, so that they are worked out where they are not given.

    Raises:
        ValueError: the mask does not cover past and segment together, a shape does not fit, or cu_seq_lens comes with
            several rows.
    """
    batch, length = inputs_embeds.shape[:2]
    past = cache.get_seq_length() if cache is not None else 0
    _check_shapes(batch, length, past, full_mask, position_ids, seq_idx)
    order = lengths = None
    if mask is not None:
        order, lengths = _gathering(mask)
    documents = _documents(position_ids if infer_documents else None, seq_idx, cu_seq_lens, batch, length)
    if documents is None:
        if position_ids is None and count_positions:
            position_ids = _count_positions(full_mask, past, length, inputs_embeds.device)
        return TokenLayout(position_ids, order, lengths)
    changes = _changes(documents, order)
    if position_ids is None:
        position_ids = _count_within_documents(changes, order, lengths, full_mask, past)
    starts = _starts(changes, order, position_ids, past)
    return TokenLayout(position_ids, order, lengths, starts, None if starts is None else documents)


def _gathering(real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order that moves real tokens (b, t) to the front, and how many each row has."""
    return torch.argsort((~real).to(torch.uint8), dim=1, stable=True), real.sum(1)


def _check_shapes(
    batch: int,
    length: int,
    past: Tensor | int,
    full_mask: Tensor | None,
    position_ids: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    for name, value in (("position_ids", position_ids), ("seq_idx", seq_idx)):
        if value is not None and (value.shape[-1] != length or value.shape[0] not in (1, batch)):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: give ({batch}, {length}), one number a token.")
    if full_mask is None or torch.compiler.is_compiling():
        return
    if full_mask.shape[0] != batch:
        raise ValueError(f"attention_mask has {full_mask.shape[0]} rows, but the inputs have {batch}.")
    needed = int(past) + length
    if full_mask.shape[1] != needed:
        raise ValueError(
            f"attention_mask covers {full_mask.shape[1]} tokens, but {CACHE_NAME} and the inputs hold {needed}: "
            "pass the mask of the whole sequence, past tokens included."
        )


def _count_positions(full_mask: Tensor | None, past: Tensor | int, length: int, device: torch.device) -> Tensor:
    if full_mask is None:
        return (torch.arange(length, device=device) + past)[None]
    return ((full_mask != 0).cumsum(1) - 1).clamp(min=0)[:, -length:]


def _documents(
    position_ids: Tensor | None, seq_idx: Tensor | None, cu_seq_lens: Tensor | None, batch: int, length: int
) -> Tensor | None:
    """Number the documents of each token, (b, t), or return None where nothing tells of documents."""
    if seq_idx is not None:
        return seq_idx.expand(batch, -1)
    if cu_seq_lens is not None:
        if batch != 1:
            raise ValueError(
                f"cu_seq_lens describes one packed row, but input_ids has {batch} rows: pass seq_idx instead."
            )
        slots = torch.arange(length, device=cu_seq_lens.device)
        return torch.searchsorted(cu_seq_lens, slots.to(cu_seq_lens.dtype), right=True)[None]
    if position_ids is not None:
        jumps = position_ids[:, 1:] != position_ids[:, :-1] + 1
        return F.pad(jumps.long().cumsum(1), (1, 0)).expand(batch, -1)
    return None


def _changes(documents: Tensor, order: Tensor | None) -> Tensor:
    """Return (b, t) True where the document differs from that of the token before, in gathered order."""
    if order is not None:
        documents = documents.gather(1, order)
    return F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))


def _count_within_documents(
    changes: Tensor, order: Tensor | None, lengths: Tensor | None, full_mask: Tensor | None, past: Tensor | int
) -> Tensor:
    """Count positions (b, t) from each document's start; a cached segment's first document goes on from the past."""
    count = torch.arange(changes.shape[1], device=changes.device).expand_as(changes)
    before = torch.where(changes, count, 0).cummax(1).values
    real = changes.shape[1] if lengths is None else lengths[:, None]
    seen = past if full_mask is None else (full_mask != 0).sum(1, keepdim=True) - real
    positions = count - before + seen * (before == 0)
    if order is None:
        return positions
    return torch.zeros_like(order).scatter(1, order, positions.masked_fill(count >= real, 0))


def _starts(changes: Tensor, order: Tensor | None, position_ids: Tensor, past: Tensor | int) -> Tensor | None:
    """Return where documents start, (b, t) in gathered order; None where eager mode sees that none does."""
    if order is not None:
        position_ids = position_ids.expand(order.shape).gather(1, order[:, :1])
    first = (position_ids[:, :1] == 0).expand(changes.shape[0], -1)
    starts = torch.cat([first, changes[:, 1:]], dim=1)
    if torch.compiler.is_compiling():
        return starts
    # Without a past the first token needs no reset: the state is zero.
    relevant = starts if int(past) > 0 else changes
    return starts if bool(relevant.any()) else None
