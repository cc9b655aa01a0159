"""How a cache layer takes tokens back: what assisted decoding needs, and a recurrent state by itself cannot do.

A state does not tell where it came from. A layer that records therefore keeps a checkpoint, the state and windows
before some tokens, and what the mixer was given since. To take tokens back is to return to the checkpoint and to walk
once more over those that stay: the same function at the same inputs, so that the state is the one that these tokens
alone lead to.

What is kept is bounded: at most three checkpoints, and the inputs of at least `REACH` tokens (unless fewer were
recorded), at most of three times as many.

Letters: b batch, t time.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from .layout import TokenLayout

__all__ = ["REACH", "History"]

REACH = 256
"""Tokens that can be taken back at any time while a layer records, unless fewer were recorded."""

Snapshot = dict[Any, Tensor]
"""Copies of the tensors that a layer holds at one moment."""


@dataclass(frozen=True, eq=False)
class Step:
    """One pass of a mixer over some slots: how to walk over the first of them again."""

    advance: Callable[..., Any]
    """Bound method of the mixer, called with the inputs, layout and layer: moves the layer's state on."""
    inputs: tuple[Tensor, ...]
    """What the mixer was given, (b or 1, t, …) each, in slot order."""
    layout: TokenLayout
    autocast: torch.autocast

    @property
    def slots(self) -> int:
        """Number of tokens, pads among them."""
        return self.inputs[0].shape[1]

    def first(self, slots: int) -> "Step":
        """Return the pass over the first `slots` slots alone."""
        if slots >= self.slots:
            return self
        inputs = tuple(x[:, :slots].clone() for x in self.inputs)  # a view would hold on to the rest
        return replace(self, inputs=inputs, layout=self.layout.slots(0, slots))

    @torch.no_grad()
    def repeat(self, layer: Any) -> None:
        """Walk over the slots again."""
        with self.autocast, _parameters_at_hand(self.advance.__self__):
            self.advance(*self.inputs, layout=self.layout, layer=layer)


class Checkpoint:
    """A moment that a layer can return to, and the steps that it has made since."""

    def __init__(self, snapshot: Snapshot, steps: Iterable[Step] = ()) -> None:
        self.snapshot = snapshot
        self.steps: list[Step] = []
        self.slots = 0
        for step in steps:
            self.add(step)

    def add(self, step: Step) -> None:
        """Append a step, and count its tokens, pads among them."""
        self.steps.append(step)
        self.slots += step.slots


class History:
    """The recent past of a cache layer, oldest checkpoint first."""

    def __init__(self) -> None:
        self.checkpoints: list[Checkpoint] = []
        self._settled = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Snapshots and steps are never written to, so that copies of a cache can share them; the mixers must be shared.
        copied = type(self)()
        copied.checkpoints = [Checkpoint(checkpoint.snapshot, checkpoint.steps) for checkpoint in self.checkpoints]
        copied._settled = self._settled
        return copied

    def __reduce__(self) -> tuple[type, tuple]:
        # A cache that is written to a file leaves the past behind, which would bring the mixers' weights along.
        return type(self), ()

    @property
    def slots(self) -> int:
        """Number of tokens that can be taken back, pads among them."""
        return sum(checkpoint.slots for checkpoint in self.checkpoints)

    def clear(self) -> None:
        """Forget everything."""
        self.checkpoints.clear()

    def walk(
        self,
        layer: Any,
        step: Callable[..., tuple[Tensor, ...]],
        advance: Callable[..., Any],
        layout: TokenLayout,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Make one step, and remember it; a long one in two parts, so that no more than its end has to be remembered.

        Args:
            layer: the cache layer before the step.
            step: called with the inputs, layout and layer; reads and writes the layer, and returns tensors (b, t, …).
            advance: bound method that moves the layer on as `step` does.
            layout: positions, padding and documents of the slots.
            inputs: (b or 1, t, …) each.
        """
        length = inputs[0].shape[1]
        if length <= REACH:
            self._mark(layer, length)
            outputs = step(*inputs, layout=layout, layer=layer)
            kept = tuple(x.detach().clone() for x in inputs)
            self.checkpoints[-1].add(Step(advance, kept, layout, _autocast(kept[0].device.type)))
            return outputs
        self.clear()
        head = length - REACH
        before = step(*(x[:, :head] for x in inputs), layout=layout.slots(0, head), layer=layer)
        after = self.walk(layer, step, advance, layout.slots(head, length), *(x[:, head:] for x in inputs))
        return tuple(torch.cat(parts, dim=1) for parts in zip(before, after, strict=True))

    def _mark(self, layer: Any, length: int) -> None:
        """Set a checkpoint before a step of `length` slots, unless it may belong to the last one."""
        last = self.checkpoints[-1] if self.checkpoints else None
        fits = last is not None and last.slots + length <= REACH
        if not fits or (self._settled and last.slots):
            self._thin()
            self.checkpoints.append(Checkpoint(layer.snapshot()))
        self._settled = False

    def _thin(self) -> None:
        """Drop what lies further back than needed, and join the two latest checkpoints where they lie close."""
        while len(self.checkpoints) > 1 and self.slots - self.checkpoints[0].slots >= REACH:
            del self.checkpoints[0]
        if len(self.checkpoints) > 1 and sum(checkpoint.slots for checkpoint in self.checkpoints[-2:]) <= REACH:
            for step in self.checkpoints.pop().steps:
                self.checkpoints[-1].add(step)

    def take_back(self, layer: Any, slots: int) -> None:
        """Bring a layer to where it was before its last `slots` slots.

        Raises:
            RuntimeError: so many were not recorded; the message says how many were.
        """
        if slots > self.slots:
            raise RuntimeError(
                f"crop({-slots}): the layer remembers {self.slots} tokens: the last {REACH} fed or more, none from "
                "before activate_past_recording(), reset() or a change of the batch. Propose fewer tokens at once "
                "(num_assistant_tokens, prompt_lookup_num_tokens)."
            )
        # The next step follows tokens that are likely to stay: a good place to return to.
        self._settled = True
        if slots == 0:
            return
        while slots > self.checkpoints[-1].slots:
            slots -= self.checkpoints.pop().slots
        last = self.checkpoints[-1]
        kept = last.slots - slots
        self.checkpoints[-1] = again = Checkpoint(last.snapshot)
        layer.restore(last.snapshot)
        for step in last.steps:
            if kept > again.slots:
                again.add(step.first(kept - again.slots))
                again.steps[-1].repeat(layer)


def _autocast(device_type: str) -> torch.autocast:
    """Return the autocast context of this moment."""
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, dtype=dtype, enabled=enabled)


@contextlib.contextmanager
def _parameters_at_hand(module: nn.Module) -> Iterator[None]:
    """Bring in a module's own parameters where accelerate keeps them elsewhere between calls of its forward."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    try:
        yield
    finally:
        if hook is not None:
            hook.post_forward(module, ())
