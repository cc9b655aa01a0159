"""Random systems, and everything that an evaluation of one returns: outputs, last state and all gradients."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsf_models.system import DSFSystem, Identity, ScalarDecay, Transition
from dsf_models.transitions import (
    DPLR,
    DeltaRule,
    Diagonal,
    ElementwiseDecay,
    FactoredDecay,
    KeyDiagonal,
    Rotation,
    multiply_pairs,
)

NEAR_ONE, TINY = math.log1p(-1e-6), math.log(1e-9)
DECAYS = ("benign", "tiny", "near_one", "alternating", "some_zero", "all_zero", "growing")
STRUCTURES = ("scalar", "key_diagonal", "elementwise", "factored", "diagonal", "dplr", "delta_rule", "delta_rule_at_B")
"""Structures of Λ with decays; "delta_rule_at_B" erases at the B that it writes at, as the delta rule itself does."""
ROTATIONS = ("rotation", "real_rotation")
"""Constant eigenvalues, complex and real: their radii are drawn like decays."""
RADII = (*DECAYS, "unit")
"""Constant Λ may keep |λ| = 1 for ever."""
CONSTANT_FACTORS = ("B batch", "B time", "C batch", "C time")
"""Broadcasts that make B and C the same for all rows and steps."""

Evaluation = Callable[[DSFSystem, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that distinguishes one random system from another."""

    batch: int = 2
    length: int = 11
    heads: int = 4
    groups_B: int = 2
    groups_C: int = 2
    states: int = 3
    width: int = 2
    structure: str = "scalar"
    maps: bool = False
    """Whether dense maps stand in place of B and C (one head; constant Λ alone)."""
    decay: str | None = "benign"
    signed: bool = False
    decay_per_head: bool = True
    broadcasts: tuple[str, ...] = ()
    normalized: bool = False
    D: int | None = None
    input_gain: int | None = None
    output_gain: int | None = None
    log_normalizer: bool = False
    starts: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    state: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.decay is not None and self.structure == "elementwise":
            object.__setattr__(self, "states", 1)
        if self.decay is not None and self.structure in ("dplr", "rotation"):
            object.__setattr__(self, "states", self.states + self.states % 2)
        if self.decay is not None and self.structure == "dplr":
            # What its kernel takes.
            object.__setattr__(self, "broadcasts", (*self.broadcasts, *CONSTANT_FACTORS))

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Draw the differentiable inputs, rounded to `dtype`; with a normaliser all of its weights are positive."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def positive(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5

        weights = positive if self.normalized else normal
        lead = {name: self._lead(name) for name in ("B", "C", "gain", "decay")}
        heads, width = self.heads, self.width
        tensors = {"u": normal(self.batch, self.length, heads, width)}
        if self.maps:
            tensors |= {"input_map": normal(self.states, width), "output_map": normal(width, self.states)}
        else:
            tensors["B"] = weights(*lead["B"], self.groups_B, self.states)
            tensors["C"] = weights(*lead["C"], self.groups_C, self.states)
        if self.structure == "delta_rule_at_B":
            tensors["B"] = F.normalize(tensors["B"], dim=-1)
        if self.decay is not None:
            tensors |= self._transition_tensors(lead["decay"], generator)
        if self.D is not None:
            tensors["D"] = normal(*(heads, width)[: self.D])
        if self.input_gain is not None:
            tensors["input_gain"] = weights(*lead["gain"], *(heads, width)[: self.input_gain - 2])
        if self.output_gain is not None:
            tensors["output_gain"] = normal(*lead["gain"], *(heads, width)[: self.output_gain - 2])
        if self.log_normalizer:
            tensors["log_normalizer"] = normal(*lead["gain"], heads)
        if self.state:
            columns = 1 if self.maps else width + int(self.normalized)
            tensors["state"] = weights(self.batch, heads, self.states, columns)
        return {name: value.to(dtype) for name, value in tensors.items()}

    def _transition_tensors(self, lead: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the differentiable parameters of Λ; keys have norm 1, and β reaches both ends of its range."""
        if self.structure in ("elementwise", "diagonal"):
            states = (self.states,) if self.structure == "diagonal" else ()
            decay = _log_decays(self.decay, (*lead, self.heads, *states, self.width), generator).exp()
            return {"decay": decay * self._sign(decay) if self.signed else decay}
        if self.structure == "factored":
            return self._factored_tensors(lead, generator)
        if self.structure == "dplr":
            return _dplr_tensors(self.decay, self.heads, self.states, generator)
        if self.structure in ROTATIONS:
            return self._rotation_tensors(generator)
        if self.structure == "key_diagonal":
            groups = self.heads if self.decay_per_head else self.groups_B
            return {"log_decay": _log_decays(self.decay, (*lead, groups, self.states), generator)}
        shape = (*lead, self.heads if self.decay_per_head else 1)
        tensors = {"log_decay": _log_decays(self.decay, shape, generator)}
        if self.structure != "scalar":
            share = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.4 - 0.2
            tensors["beta"] = share.clamp(0, 1) * (2 if self.signed else 1)
        if self.structure == "delta_rule":
            key = torch.randn(*lead, self.groups_C, self.states, generator=generator, dtype=torch.float64)
            tensors["key"] = F.normalize(key, dim=-1)
        return tensors

    def _rotation_tensors(self, generator: torch.Generator) -> dict[str, Tensor]:
        eigenvalues = self.states // 2 if self.structure == "rotation" else self.states
        shape = (self.heads if self.decay_per_head else 1, eigenvalues)
        tensors = {"log_radius": _log_decays(self.decay, shape, generator)}
        if self.structure == "rotation":
            tensors["angle"] = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return tensors

    def _factored_tensors(self, lead: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        heads, states, width = (self.heads, self.states, self.width) if self.decay_per_head else (1, 1, 1)
        # The gradient of a rate is Δ times something: Δ must be finite. exp(-5000) is 0 in every precision.
        delta = -_log_decays(self.decay, (*lead, heads, width), generator).clamp(-1e4, 0)
        rate = torch.rand(self.heads, states, width, generator=generator, dtype=torch.float64) + 0.5
        return {"delta": delta, "rate": rate}

    def _lead(self, name: str) -> tuple[int, int]:
        batch = 1 if f"{name} batch" in self.broadcasts else self.batch
        return batch, 1 if f"{name} time" in self.broadcasts else self.length

    def system(self, tensors: Mapping[str, Tensor]) -> DSFSystem:
        """Build the system on these tensors."""
        optional = ("B", "C", "input_map", "output_map", "D", "input_gain", "output_gain", "log_normalizer")
        return DSFSystem(
            u=tensors["u"],
            transition=self._transition(tensors),
            normalized=self.normalized,
            starts=self._starts(),
            lengths=None if self.lengths is None else torch.tensor(self.lengths),
            **{name: tensors.get(name) for name in optional},
        )

    def _transition(self, tensors: Mapping[str, Tensor]) -> Transition:
        if self.decay is None:
            return Identity()
        if self.structure == "elementwise":
            return ElementwiseDecay(tensors["decay"])
        if self.structure == "diagonal":
            return Diagonal(tensors["decay"])
        if self.structure == "factored":
            return FactoredDecay(tensors["delta"], tensors["rate"])
        if self.structure == "dplr":
            return DPLR(tensors["diagonal"], tensors["left"], tensors["right"])
        if self.structure in ROTATIONS:
            radius = tensors["log_radius"]
            signed = self.signed and self.structure == "real_rotation"
            return Rotation(radius, tensors.get("angle"), self._sign(radius) if signed else None)
        log_decay = tensors["log_decay"]
        if self.structure.startswith("delta_rule"):
            return DeltaRule(log_decay, tensors.get("key", tensors["B"]), tensors["beta"])
        kind = {"scalar": ScalarDecay, "key_diagonal": KeyDiagonal}[self.structure]
        return kind(log_decay, self._sign(log_decay) if self.signed else None)

    def _sign(self, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)

    def _starts(self) -> Tensor | None:
        """Put documents at `starts` in the first row, one step later in each further row."""
        if self.starts is None:
            return None
        starts = torch.zeros(self.batch, self.length, dtype=torch.bool)
        for row in range(self.batch):
            starts[row, [(time + row) % self.length for time in self.starts]] = True
        return starts


def _log_decays(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    even = (torch.arange(shape[1]) % 2 == 0).view(1, -1, *[1] * (len(shape) - 2))
    benign = -1.5 * uniform - 0.01
    return {
        "benign": benign,
        "tiny": TINY - uniform,
        "near_one": NEAR_ONE * (1 + uniform),
        "alternating": torch.where(even, TINY, NEAR_ONE) * (1 + 0.1 * uniform),
        "some_zero": benign.masked_fill(uniform < 0.2, -1e4).masked_fill(uniform > 0.8, -math.inf),
        "all_zero": torch.where(uniform < 0.5, -1e4, -math.inf),
        "growing": 0.1 * uniform,
        "unit": torch.zeros_like(uniform),
    }[kind]


def _dplr_tensors(kind: str, heads: int, states: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw ρ of any angle with the decays' radii, and the rank-one term that keeps Λ a contraction where |ρ| <= 1.

    For any q it is w = 2 e q / (1 + q^T e q) and g = ē q with e = (1 + ρ) / 2, as the bilinear rule has it.
    """
    radius = _log_decays(kind, (heads, states // 2, 1), generator).exp()
    angle = 2 * math.pi * torch.rand(radius.shape, generator=generator, dtype=torch.float64)
    diagonal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
    resolvent = (diagonal + torch.tensor([1.0, 0.0])) / 2
    q = 0.5 * torch.randn(diagonal.shape, generator=generator, dtype=torch.float64)
    moved = multiply_pairs(resolvent, q)
    left = 2 * moved / (1 + (q * moved).sum((1, 2), keepdim=True))
    right = multiply_pairs(resolvent * torch.tensor([1.0, -1.0]), q)
    return {"diagonal": diagonal, "left": left.flatten(1), "right": right.flatten(1)}


def outcome(case: Case, tensors: Mapping[str, Tensor], evaluation: Evaluation) -> dict[str, Tensor]:
    """Evaluate, and return y, the last state and the gradients of a random linear function of both, in float64."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    y, state = evaluation(case.system(leaves), leaves.get("state"))
    generator = torch.Generator().manual_seed(case.seed + 2)
    objective = sum(
        (value.double() * torch.randn(value.shape, generator=generator).double()).sum() for value in (y, state)
    )
    gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
    named = {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach().double() for name, value in {"y": y, "state": state, **named}.items()}


def relative_error(value: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """Return ‖value - reference‖ / max(‖reference‖, floor), the absolute error where that is 0; inf for NaN."""
    error, scale = (value.double() - reference.double()).norm().item(), reference.double().norm().item()
    return math.inf if math.isnan(error) else error / (max(scale, floor) or 1.0)
