"""AdamW with three groups of parameters, and the learning rate over the steps."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from dsf_models.backbone import DSFMixer, DSFPreTrainedModel
from training.config import OptimizerConfig, ScheduleConfig


def parameter_groups(model: DSFPreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """Split the trainable parameters into those that are decayed, those of Λ, and the others that must not be decayed.

    Decay pulls towards zero, which is a meaningful prior for a matrix. For a norm's scale, a bias or a parameter of Λ
    zero is an arbitrary point: pulling log-decay rates there changes the model's memory, not its complexity.

    Args:
        model: says by `no_weight_decay` which of its parameters are not decayed.

    Returns:
        "decayed", "transition" and "spared"; together they hold each parameter exactly once.
    """
    transition = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, DSFMixer)
        for name, parameter in module.named_parameters()
        if name in module.transition_parameters
    }
    not_decayed = model.no_weight_decay()
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "transition": [], "spared": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "transition" if id(parameter) in transition else "spared" if name in not_decayed else "decayed"
            groups[kind].append(parameter)
    return groups


def build_optimizer(model: DSFPreTrainedModel, config: OptimizerConfig) -> AdamW:
    """AdamW over the groups of `parameter_groups`, fused into few kernels."""
    groups = parameter_groups(model)
    settings = {
        "decayed": {"weight_decay": config.weight_decay},
        "transition": {"weight_decay": 0.0, "lr": config.learning_rate * config.transition_ratio},
        "spared": {"weight_decay": 0.0},
    }
    return AdamW(
        [{"params": groups[name], **setting} for name, setting in settings.items() if groups[name]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def learning_rate_factor(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """The learning rate of step s (from 0), as a fraction of the highest.

        s < W:               (s + 1) / W
        cosine:              r + (1 - r) (1 + cos(π (s - W + 1) / (S - W))) / 2
        wsd, s < S - D:      1
        wsd, else:           1 - (1 - r) (s - (S - D) + 1) / D
        constant:            1

    with W warm-up steps, S steps in all, D steps of decay and the final ratio r, which the last step reaches.

    Args:
        step: s, below max_steps.
        config: W, D, r and the shape.
        max_steps: S.
    """
    warmup, last = config.warmup_steps, config.final_ratio
    if step < warmup:
        return (step + 1) / warmup
    if config.shape == "cosine":
        return last + (1 - last) * (1 + math.cos(math.pi * (step - warmup + 1) / (max_steps - warmup))) / 2
    if config.shape == "wsd":
        decay = config.decay_steps or min(math.ceil(max_steps / 5), max_steps - warmup)
        return 1 - (1 - last) * max(0, step - (max_steps - decay) + 1) / decay
    return 1.0


def build_schedule(optimizer: AdamW, config: ScheduleConfig, max_steps: int) -> LambdaLR:
    """A scheduler of `learning_rate_factor`, stepped once after every optimiser step."""
    # It is asked for the rate of one step more than there are.
    return LambdaLR(optimizer, lambda step: learning_rate_factor(min(step, max_steps - 1), config, max_steps))
