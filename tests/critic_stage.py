"""A small stage with a critic: SemBo, with a discriminator between restored features and the teacher's."""

import torch
from torch import nn

from losatok_ext.training.stages.sembo import SemBoStage

START = 1
"""The step at which the critic begins."""


class CriticStage(SemBoStage):
    def __init__(self, data, config, device):
        super().__init__(data, config, device)
        self.weights = {**self.weights, "adversarial": 0.5}
        self.critic_weights = {"discriminator": 2.0}
        self.critic = None
        self.kept = None
        self.runs = 0
        self.frozen = []

    def start(self, model):
        super().start(model)
        torch.manual_seed(3)
        self.critic = nn.Sequential(nn.Linear(model.config.embed_dim, 4), nn.Tanh(), nn.Linear(4, 1))

    def losses(self, batch, step):
        self.runs += 1
        features, lengths = self.model.teacher(batch.audio, batch.lengths)
        losses = self.model.sembo_losses(features, lengths)
        restored = self.model.bottleneck.up(self.model.bottleneck.down(features))
        self.kept = None
        if step >= START:
            losses["adversarial"] = self._mean((1 - self.critic(restored)).relu(), lengths)
            self.frozen.append(all(not p.requires_grad for p in self.critic.parameters()))
            self.kept = features, restored.detach(), lengths
        return losses

    def critic_losses(self):
        if self.kept is None:
            return {}
        features, restored, lengths = self.kept
        real = self._mean((1 - self.critic(features)).relu(), lengths)
        made = self._mean((1 + self.critic(restored)).relu(), lengths)
        return {"discriminator": real + made}

    def _mean(self, terms, lengths):
        inside = torch.arange(terms.shape[1]) < lengths[:, None]
        return terms[..., 0][inside].mean()

    def counts(self, batch, lengths):
        counts = super().counts(batch, lengths)
        return counts | dict.fromkeys(("adversarial", "discriminator"), counts["sembo_reconstruction"])
