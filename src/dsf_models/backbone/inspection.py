"""A model's systems: (Λ, B, C, D) and Φ of every layer at the mixer's true input."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import NotADynamicalSystemError
from ..filters import FilterSystem
from ..system import DSFSystem, SoftmaxSystem
from .mixer import DSFMixer

__all__ = ["InspectionMixin", "in_evaluation"]


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside the `with` block; each of its modules returns to the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class InspectionMixin:
    """Adds `dsf_systems` and `transfer_matrix` to every model."""

    def dsf_systems(
        self, input_ids: Tensor | None = None, **inputs: Any
    ) -> list[DSFSystem | SoftmaxSystem | FilterSystem | None]:
        """Return the system of every layer at these inputs.

            h_i = Λ_i h_{i-1} + B_i u_i        y_i = C_i h_i + D_i u_i

        Each is taken at the mixer's true input, after norm, projection and short convolution; gate, output norm and
        output projection are outside the system. With an attention_mask each row's real tokens come first
        (`system.lengths` counts them); `transfer_matrix` moves them back. Gradients flow unless switched off.

        Args:
            input_ids: (b, t); or give inputs_embeds.
            inputs: further arguments of the model's forward, except a cache.

        Returns:
            One entry a layer; a `FilterSystem` where a mixer is two-sided or windowed, None where it has no system.

        Raises:
            ValueError: a cache was given; a system is that of a whole sequence.
        """
        return [_system_or_none(*call) for call in self._observe(input_ids, inputs)]

    def transfer_matrix(self, layer: int, input_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        """Return Φ of one layer in float64, rows and columns in the order of the input's slots (pads are zero).

        Args:
            layer: index of the layer.
            input_ids: (b, t); or give inputs_embeds.
            inputs: further arguments of the model's forward, except a cache.

        Returns:
            (b, h, t, t) where a head's channels share Φ, (b, h, p, t, t) where they do not, (b, 1, d, d, t, t) where
            all channels mix; see `DSFSystem.transfer_matrix`.

        Raises:
            ValueError: the layer does not exist, or a cache was given.
            NotADynamicalSystemError: the layer's mixer has no system.
        """
        if not -self.config.num_hidden_layers <= layer < self.config.num_hidden_layers:
            raise ValueError(f"layer={layer}: the model has {self.config.num_hidden_layers} layers, counted from 0.")
        mixer, args, kwargs = self._observe(input_ids, inputs)[layer]
        phi = mixer.observed_system(*args, **kwargs).transfer_matrix()
        return args[1].scatter_matrix(phi)

    def _observe(
        self, input_ids: Tensor | None, inputs: dict[str, Any]
    ) -> list[tuple[DSFMixer, tuple, dict[str, Any]]]:
        """Run the model once and return every mixer with the arguments it was called with."""
        for name in ("past_key_values", "cache"):
            if inputs.get(name) is not None:
                raise ValueError(
                    f"{name} is given: the system of a layer is that of a whole sequence; pass all tokens instead."
                )
        seen: list[tuple[DSFMixer, tuple, dict[str, Any]]] = []
        hooks = [
            block.token_mixer.register_forward_pre_hook(
                lambda mixer, args, kwargs: seen.append((mixer, args, kwargs)), with_kwargs=True
            )
            for block in self.base_model.layers
        ]
        try:
            self.base_model(input_ids=input_ids, use_cache=False, **inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def _system_or_none(
    mixer: DSFMixer, args: tuple, kwargs: dict[str, Any]
) -> DSFSystem | SoftmaxSystem | FilterSystem | None:
    try:
        return mixer.observed_system(*args, **kwargs)
    except NotADynamicalSystemError:
        return None
