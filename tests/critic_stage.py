"""A stage with a critic, as small as can be: SemBo, whose restored features a linear judge tells from the teacher's."""

import torch
from torch import nn

from losatok_ext.training.stages.sembo import SemBoStage

START = 1
"""The step at which the critic begins."""


class CriticStage(SemBoStage):
    def __init__(self, data, config):
        super().__init__(data, config)
        self.weights = {**self.weights, "fooled": 0.5}
        self.critic_weights = {"judge": 2.0}
        self.critic = None
        self.seen = None
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
        self.seen = None
        if step >= START:
            losses["fooled"] = self._mean((1 - self.critic(restored)).relu(), lengths)
            self.frozen.append(all(not p.requires_grad for p in self.critic.parameters()))
            self.seen = features, restored.detach(), lengths
        return losses

    def critic_losses(self):
        if self.seen is None:
            return {}
        features, restored, lengths = self.seen
        real = self._mean((1 - self.critic(features)).relu(), lengths)
        made = self._mean((1 + self.critic(restored)).relu(), lengths)
        return {"judge": real + made}

    def _mean(self, judged, lengths):
        inside = torch.arange(judged.shape[1]) < lengths[:, None]
        return judged[..., 0][inside].mean()

    def counts(self, batch, lengths):
        counts = super().counts(batch, lengths)
        return {**counts, "fooled": counts["sembo_reconstruction"], "judge": counts["sembo_reconstruction"]}
