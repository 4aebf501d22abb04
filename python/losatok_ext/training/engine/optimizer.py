"""AdamW over the trainable parameters of a module: groups, clipping, and its state by the parameters' names."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from losatok_ext.training.config.options import OptimizerConfig
from losatok_ext.training.engine.distributed import gathered, spread_like
from losatok_ext.training.engine.schedule import learning_rate


class Learner:
    """AdamW of one module. Weight decay applies to matrices and kernels, not to vectors (biases, norms, scales).

    Args:
        module: its parameters that take gradients are trained.
        options: of the run.
        steps: length of the run.
        critic: use the critic's learning rate and betas.
    """

    def __init__(self, module: nn.Module, options: OptimizerConfig, steps: int, critic: bool = False) -> None:
        self.options = options
        self.steps = steps
        self.peak = options.critic_lr if critic and options.critic_lr is not None else options.lr
        betas = options.critic_betas if critic and options.critic_betas is not None else options.betas
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        matrices = [p for p in self.parameters.values() if p.dim() >= 2]
        vectors = [p for p in self.parameters.values() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.peak, betas=betas, eps=options.eps, fused=True
        )

    def follow(self, module: nn.Module) -> None:
        """Use the current parameters of ``module``, after sharding replaced them in the module and the optimizer."""
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def rate(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0); the cosine ends at ``final_lr`` in proportion to the peak."""
        final = self.options.final_lr * self.peak / self.options.lr
        warmup = self.options.warmup_steps
        return learning_rate(step, peak=self.peak, steps=self.steps, warmup_steps=warmup, final=final)

    def zero(self) -> None:
        """Remove the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Clip the gradient to ``clip_norm``; returns its norm before clipping, a float32 scalar."""
        limit = self.options.clip_norm
        return gathered(nn.utils.clip_grad_norm_(self.parameters.values(), math.inf if limit is None else limit))

    def take(self, step: int) -> None:
        """Update the parameters in step ``step`` (from 0)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and step counts, by ``parameter/key``."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state to one that :meth:`state` returned."""
        for name, parameter in self.parameters.items():
            prefix = f"{name}/"
            state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            if state:
                self.optimizer.state[parameter] = {key: spread_like(t, parameter.detach()) for key, t in state.items()}
