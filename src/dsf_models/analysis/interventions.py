"""What if Λ were another? Context managers that change the systems of a running model, and put everything back.

Each changes what the engine evaluates on chosen layers and heads, so that loss, accuracy, generation and Φ inside the
`with` block are those of the changed model. λ is that of the native realisation, the Λ that the engine applies: 1 for
attention, whose normaliser η stays outside; `without_normalizer` is the intervention on that one.

Letters: b batch, t time, h heads.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backbone import DSFMixer, DSFPreTrainedModel, Intervention, in_evaluation
from ..errors import NotADynamicalSystemError, require
from ..filters import FilterSystem
from ..system import DSFSystem, DSFSystemError
from ..transitions import Transition
from .spectrum import require_two_tokens

__all__ = [
    "clamp_eigenvalues",
    "freeze_eigenvalues",
    "interventions",
    "map_eigenvalues",
    "replace_transition",
    "without_normalizer",
]

Numbers = Sequence[int] | None


# ---- the interventions -----------------------------------------------------------------------------------------------


@contextmanager
def clamp_eigenvalues(
    model: DSFPreTrainedModel, bound: float, *, layers: Numbers = None, heads: Numbers = None
) -> Iterator[None]:
    """Shrink every eigenvalue that is larger than the bound to it, the phase as it is: λ -> λ · min(1, bound / |λ|).

    Args:
        model: any model of the zoo.
        bound: largest |λ|, at least 0; 0 takes all memory away but that of the short convolution.
        layers: indices of the layers to change. Default: all.
        heads: indices of the heads to change. Default: all.

    Raises:
        ValueError: a bound that is negative or infinite, an index out of range, or a layer whose eigenvalues cannot be
            replaced.
    """
    require(0 <= bound < math.inf, "bound", bound, "give the largest |λ|, a finite number of at least 0.")
    with map_eigenvalues(model, lambda values: clamped(values, bound), layers=layers, heads=heads):
        yield


@contextmanager
def freeze_eigenvalues(
    model: DSFPreTrainedModel,
    input_ids: Tensor | None = None,
    *,
    layers: Numbers = None,
    heads: Numbers = None,
    **inputs: Any,
) -> Iterator[None]:
    """Hold every eigenvalue at its mean over the positions of given tokens, so that it no longer depends on the input.

    The mean is the arithmetic one over all rows and over λ_1 … λ_{t-1}, pads and starts of documents aside; it is taken
    once, so that the changed model is causal and may generate. Constant eigenvalues stay as they are.

    Args:
        model: any model of the zoo.
        input_ids: (b, t) tokens to take the mean over; or give another input of the model.
        layers: indices of the layers to change. Default: all.
        heads: indices of the heads to change. Default: all.
        inputs: further arguments of the model's forward, such as attention_mask.

    Raises:
        ValueError: rows of fewer than two tokens, an index out of range, or a layer whose eigenvalues cannot be
            replaced.
    """
    chosen = _chosen_mixers(model, layers)
    with in_evaluation(model), torch.no_grad():
        systems = model.dsf_systems(input_ids, **inputs)
    frozen: dict[DSFMixer, Intervention] = {}
    for layer, mixer in chosen.items():
        system = systems[layer]
        _check_heads(layer, _first(system), heads)
        require_two_tokens(system.length)
        if isinstance(system, FilterSystem) or system.transition.time_invariant:
            continue
        _require_replaceable(layer, system)
        mean = _mean_eigenvalues(system)
        frozen[mixer] = _on_transition(_eigenvalue_map(lambda values, mean=mean: mean.to(values.device), layer, heads))
    with interventions(frozen):
        yield


@contextmanager
def map_eigenvalues(
    model: DSFPreTrainedModel,
    function: Callable[[Tensor], Tensor],
    *,
    layers: Numbers = None,
    heads: Numbers = None,
) -> Iterator[None]:
    """Replace every eigenvalue λ by function(λ), the eigenvectors as they are.

    Args:
        model: any model of the zoo.
        function: maps eigenvalues (b or 1, t or 1, h, …), in float64 or complex128, to a tensor that broadcasts with
            them. Of a pair of conjugates the first counts.
        layers: indices of the layers to change. Default: all.
        heads: indices of the heads to change. Default: all.

    Raises:
        ValueError: an index out of range, or a layer whose eigenvalues cannot be replaced.
    """
    chosen = _chosen_mixers(model, layers)
    for layer, mixer in chosen.items():
        sketch = _first(type(mixer).sketch(mixer.config))
        _require_replaceable(layer, sketch)
        _check_heads(layer, sketch, heads)
    with interventions(
        {mixer: _on_transition(_eigenvalue_map(function, layer, heads)) for layer, mixer in chosen.items()}
    ):
        yield


@contextmanager
def replace_transition(
    model: DSFPreTrainedModel, function: Callable[[Transition], Transition], *, layers: Numbers = None
) -> Iterator[None]:
    """Replace Λ as a whole by function(Λ): any structure that fits the layer's sizes.

    Args:
        model: any model of the zoo.
        function: maps a `Transition`, the structure and values of Λ, to another.
        layers: indices of the layers to change. Default: all.

    Raises:
        ValueError: an index out of range, or a layer without a Λ that can be changed.
    """
    chosen = _chosen_mixers(model, layers)

    def change(system: DSFSystem) -> DSFSystem:
        return replace(system, transition=function(system.transition))

    with interventions({mixer: _on_transition(change) for mixer in chosen.values()}):
        yield


@contextmanager
def without_normalizer(model: DSFPreTrainedModel, *, layers: Numbers = None, heads: Numbers = None) -> Iterator[None]:
    """Set the normaliser η_i to 1, so that outputs are bare sums of weighted values.

    Args:
        model: a model of which the chosen layers have a normaliser.
        layers: indices of the layers to change. Default: all that have one.
        heads: indices of the heads to change; only where each token gives its own η_i. Default: all.

    Raises:
        ValueError: no chosen layer has a normaliser, one named does not, or single heads of one that sums up weights.
    """
    chosen = _chosen_mixers(model, layers)
    sketches = {layer: _first(type(mixer).sketch(mixer.config)) for layer, mixer in chosen.items()}
    bare = [layer for layer, system in sketches.items() if not system.has_normalizer]
    if bare and (layers is not None or len(bare) == len(chosen)):
        raise DSFSystemError(f"layer={bare[0]}: its outputs are divided by no normaliser: choose layers that have one.")
    changes = {}
    for layer, mixer in chosen.items():
        if sketches[layer].has_normalizer:
            _check_heads(layer, sketches[layer], heads)
            changes[mixer] = _on_transition(_normalizer_removal(layer, sketches[layer], heads))
    with interventions(changes):
        yield


@contextmanager
def interventions(changes: dict[DSFMixer, Intervention]) -> Iterator[None]:
    """Let mixers evaluate other systems than their own inside the `with` block; what was there before comes back.

    Activations that are computed anew, as checkpointing does, follow what holds then: call backward inside the block.
    The change is one of the model, in all threads.

    Args:
        changes: by mixer, what makes the system that is evaluated from the one that the mixer made. Inside another
            `with` block both apply, the outer one first.
    """
    before = {mixer: mixer.intervention for mixer in changes}
    try:
        for mixer, change in changes.items():
            mixer.intervention = _after(before[mixer], change)
        yield
    finally:
        for mixer, earlier in before.items():
            mixer.intervention = earlier


# ---- parts -----------------------------------------------------------------------------------------------------------


def clamped(values: Tensor, bound: float) -> Tensor:
    """Return λ · min(1, bound / |λ|) of values (…), with finite gradients also where |λ| is next to 0."""
    size = values.abs()
    # Below the bound the ratio is exactly 1, and its gradient 0: dividing by a tiny |λ| would make that NaN.
    return values * (bound / size.clamp(min=max(bound, torch.finfo(size.dtype).tiny)))


def _after(first: Intervention | None, second: Intervention) -> Intervention:
    return second if first is None else lambda system: second(first(system))


def _chosen_mixers(model: DSFPreTrainedModel, layers: Numbers) -> dict[int, DSFMixer]:
    """Return the mixers to change by layer.

    Raises:
        ValueError: an index out of range.
        NotADynamicalSystemError: a layer cannot be changed.
    """
    mixers = [block.token_mixer for block in model.base_model.layers]
    numbers = range(len(mixers)) if layers is None else layers
    for layer in numbers:
        known = isinstance(layer, int) and 0 <= layer < len(mixers)
        require(known, "layer", layer, f"the model has {len(mixers)} layers, counted from 0.")
        if mixers[layer].no_interventions is not None:
            raise NotADynamicalSystemError(
                f"layer={layer}: {mixers[layer].no_interventions}. Choose others with layers=[…]."
            )
    return {layer: mixers[layer] for layer in numbers}


def _first(system: DSFSystem | FilterSystem) -> DSFSystem:
    return system.forward if isinstance(system, FilterSystem) else system


def _on_transition(change: Callable[[DSFSystem], DSFSystem]) -> Intervention:
    """Return an intervention that changes both passes of a filter alike."""

    def intervene(system: DSFSystem | FilterSystem) -> DSFSystem | FilterSystem:
        if isinstance(system, FilterSystem):
            backward = None if system.backward is None else change(system.backward)
            return replace(system, forward=change(system.forward), backward=backward)
        return change(system)

    return intervene


def _eigenvalue_map(
    function: Callable[[Tensor], Tensor], layer: int, heads: Numbers
) -> Callable[[DSFSystem], DSFSystem]:
    def change(system: DSFSystem) -> DSFSystem:
        mask = _head_mask(layer, system, heads)

        def of_chosen_heads(values: Tensor) -> Tensor:
            found = function(values)
            return found if mask is None else torch.where(mask.view(-1, *(1,) * (values.ndim - 3)), found, values)

        return replace(system, transition=system.transition.with_eigenvalues(of_chosen_heads, system.u))

    return change


def _normalizer_removal(layer: int, sketch: DSFSystem, heads: Numbers) -> Callable[[DSFSystem], DSFSystem]:
    if heads is not None and sketch.normalized:
        raise DSFSystemError(
            f"heads={list(heads)!r}: the normaliser of layer {layer} is the sum of its weights, which all heads divide "
            "by or none: leave heads out."
        )

    def change(system: DSFSystem) -> DSFSystem:
        mask = _head_mask(layer, system, heads)
        if mask is None:
            return replace(system, normalized=False, log_normalizer=None)
        return replace(system, log_normalizer=system.log_normalizer.masked_fill(mask, 0.0))

    return change


def _head_mask(layer: int, system: DSFSystem, heads: Numbers) -> Tensor | None:
    """Return (h,) True at the chosen heads, or None for all."""
    if heads is None:
        return None
    _check_heads(layer, system, heads)
    mask = torch.zeros(system.num_heads, dtype=torch.bool, device=system.u.device)
    mask[list(heads)] = True
    return mask


def _check_heads(layer: int, system: DSFSystem, heads: Numbers) -> None:
    for head in heads or ():
        known = isinstance(head, int) and 0 <= head < system.num_heads
        require(known, "head", head, f"layer {layer} has {system.num_heads} heads, counted from 0.")


def _require_replaceable(layer: int, system: DSFSystem) -> None:
    transition = system.transition
    if type(transition).with_eigenvalues is Transition.with_eigenvalues:
        raise DSFSystemError(
            f"layer={layer}: Λ of structure {transition.name!r} is not diagonal, so that its eigenvalues cannot be "
            "replaced one by one; use replace_transition, or choose other layers."
        )


def _mean_eigenvalues(system: DSFSystem) -> Tensor:
    """Return the mean of the eigenvalues over rows and positions, (1, 1, h, …); 1 where no position counts."""
    values = system.transition.eigenvalues(*system.u.shape[:3])[:, 1:]
    counts = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if system.padded is not None:
        counts &= ~system.padded[:, 1:]
    if system.starts is not None:
        counts &= ~system.starts[:, 1:]
    if not bool(counts.any()):
        return values.new_ones(1, 1, *values.shape[2:])
    return values[counts].mean(0)[None, None]
