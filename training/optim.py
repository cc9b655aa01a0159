"""AdamW with two groups of parameters, and the learning rate over the steps."""

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

from dsf_models.backbone import DSFPreTrainedModel
from training.config import OptimizerConfig, ScheduleConfig


def parameter_groups(model: DSFPreTrainedModel, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that are decayed and those that must not be.

    Decay pulls towards zero, which is a meaningful prior for a matrix. For a norm's scale, a bias or a parameter of Λ
    zero is an arbitrary point: pulling log-decay rates there changes the model's memory, not its complexity.

    Args:
        model: says by `no_weight_decay` which of its parameters are not decayed.
        weight_decay: decay of the others.

    Returns:
        Two groups for a torch optimiser, the decayed one first; together they hold each parameter exactly once.
    """
    names = model.no_weight_decay()
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if name not in names]
    spared = [parameter for name, parameter in trainable if name in names]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def build_optimizer(model: DSFPreTrainedModel, config: OptimizerConfig) -> AdamW:
    """AdamW over the groups of `parameter_groups`."""
    groups = parameter_groups(model, config.weight_decay)
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon)


def build_schedule(optimizer: AdamW, config: ScheduleConfig, max_steps: int) -> LambdaLR:
    """Linear warm-up, then half a cosine.

    The factor on the highest learning rate in step s (from 0) is

        s < W:   (s + 1) / W
        s >= W:  r + (1 - r) · (1 + cos(π (s - W + 1) / (S - W))) / 2

    with W warm-up steps, S steps in all and the final ratio r, which the last step reaches.

    Args:
        optimizer: its learning rates are the highest ones.
        config: W and r.
        max_steps: S.

    Returns:
        A scheduler that is stepped once after every optimiser step.
    """
    return get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        optimizer, config.warmup_steps, max_steps, min_lr_rate=config.final_ratio
    )
