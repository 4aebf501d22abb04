"""Stage two: acoustic encoder, latent and decoder learn to reconstruct, supervised by the frozen semantic branch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.checkpoint import read_config
from losatok_ext.models.storage.folders import model_folder
from losatok_ext.nn.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from losatok_ext.nn.discriminators import Discriminators
from losatok_ext.nn.label_probe import LabelProbe
from losatok_ext.nn.noise import integers
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import Batch, CropSource
from losatok_ext.training.data.labels import ClipLabels
from losatok_ext.training.stages.recordings import RecordingStage
from losatok_ext.training.stages.views import TokenizerView


class TokenizerStage(TokenizerView, RecordingStage):
    """Trains all but the semantic branch on ``mel``, ``semantic_high``, ``semantic_low`` and ``kl``, against
    discriminators on ``feature_matching`` and ``adversarial``, and on the clips' ``label`` where asked.

    Weights: arXiv 2605.27840 (45 mel + 45 (L_H + L_L) + 0.01 KL + 1 feature matching + 1 adversarial). With a quantizer
    it is the mean of the posterior that is quantized and decoded, as in inference, and ``quantizer`` is added. A model
    with nested latents decodes each clip from a random one of their prefixes.

    Where the data has the teacher's features beside its recordings, the semantic encoder never runs; the bottleneck,
    a thousandth of its work, does.

    The audio that a step decodes is kept, detached, for :meth:`critic_losses`: the decoder runs once.
    """

    name = "tokenizer"
    takes_features = True
    paper_steps = 1_000_000

    def __init__(self, data: str | Path, config: TrainConfig) -> None:
        super().__init__(data, config)
        weights = config.tokenizer
        self.weights = {
            "mel": weights.mel,
            "semantic_high": weights.semantic_high,
            "semantic_low": weights.semantic_low,
            "kl": weights.kl,
        }
        self.critic: nn.ModuleDict | None = None
        """The discriminators and the probe, as far as there are any."""
        self.critic_weights = {"discriminator": 1.0, "label_probe": 1.0}
        self._labels: ClipLabels | None = None
        self._seen: _Seen | None = None

    @property
    def adversarial(self) -> bool:
        """Whether there are discriminators whose opinion counts."""
        weights = self.config.tokenizer
        return bool(self.config.discriminator.kinds) and weights.adversarial + weights.feature_matching > 0

    def open_data(self, model: LoSATokConfig) -> tuple[Corpus, CropSource]:
        """The corpus and its batches; with ``supervision.labels`` also the clips' classes.

        Raises:
            TrainingError: no recording can be used, stored features are of no use, or the labels cannot be told apart.
        """
        corpus, source = super().open_data(model)
        if self.config.supervision.labels and self.config.tokenizer.label > 0:
            self._labels = ClipLabels(self.data, corpus)
        return corpus, source

    def digest(self, corpus: Corpus) -> str:
        """Of the recordings, and of their labels where these are learned from."""
        recordings = super().digest(corpus)
        return recordings if self._labels is None else f"{recordings} {self._labels.digest()}"

    def start(self, model: LoSATok) -> None:
        """Train the stage's part of ``model``, and its quantizer where it has one, against a new critic."""
        super().start(model)
        weights, options = self.config.tokenizer, self.config.discriminator
        if model.quantizer is not None:
            self.weights["quantizer"] = weights.quantizer
        torch.manual_seed(self.config.seed)
        critic = nn.ModuleDict()
        if self.adversarial:
            self.weights |= {"feature_matching": weights.feature_matching, "adversarial": weights.adversarial}
            critic["discriminators"] = Discriminators(options.kinds, options.channels)
        if self._labels is not None:
            self.weights["label"] = weights.label
            critic["probe"] = LabelProbe(model.config.latent_dim, len(self._labels.classes))
        self.critic = critic.to(model.device) if len(critic) else None

    def model_config(self) -> LoSATokConfig:
        """That of the folder ``init``, which ``losatok train sembo`` wrote, with the quantizer of the configuration.

        Raises:
            ConfigError: there is no ``init``, or ``quantizer`` holds a key or value that does not fit.
            CheckpointError: the folder cannot be read.
        """
        ours = read_config(_init(self.config))
        quantizer, floor = self.config.quantizer, self.config.supervision.kl_floor
        if quantizer is not None:
            ours = dataclasses.replace(ours, quantizer=quantizer)
        return ours if floor is None else dataclasses.replace(ours, kl_clamp=floor)

    def build(self, corpus: Corpus) -> LoSATok:
        """The model of the folder ``init``, with a new quantizer where the configuration has one.

        Raises:
            ConfigError, CheckpointError: as :meth:`model_config`.
            TrainingError: the data holds features of another teacher than that model's.
        """
        model = LoSATok.from_pretrained(_init(self.config))
        self.check_teacher(model)
        quantizer, floor = self.config.quantizer, self.config.supervision.kl_floor
        if quantizer is not None:
            torch.manual_seed(self.config.seed)
            model = model.with_quantizer(quantizer)
        if floor is not None:
            model.config = dataclasses.replace(model.config, kl_clamp=floor)
        return model

    def counts(self, batch: Batch, lengths: Tensor) -> dict[str, Tensor]:
        """As the other losses' own; those of the label count clips (exactly, where all have one).

        What the discriminators say counts samples: exact where all clips are as long.
        """
        clips = (lengths > 0).long()
        return {**super().counts(batch, lengths), "label": clips, "label_probe": clips}

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses of a batch, unweighted; latents are sampled, unless they are quantized.

        Before ``discriminator.start_step`` without the adversarial ones.
        """
        options = {
            "sample": self.model.quantizer is None,
            "features": self.semantic(batch),
            "semantic_distance": self.config.supervision.distance,
            "dims": self._prefixes(len(batch.lengths)),
        }
        self._seen = None
        if self.critic is None:
            return self.model(batch.audio, batch.lengths, **options)
        losses, made = self.model(batch.audio, batch.lengths, reconstruction=True, **options)
        latents = made.latents
        # Crops that fill their rows need no masks; this is known without waiting for a device.
        whole = bool((batch.lengths == batch.audio.shape[1]).all())
        lengths = None if whole else made.lengths
        playing = self.adversarial and step >= self.config.discriminator.start_step
        if playing:
            judge = self.critic["discriminators"]
            fakes = judge(made.audio, lengths)
            with torch.no_grad():
                reals = judge(made.target, lengths)
            game = self.config.discriminator
            losses["feature_matching"] = feature_matching_loss(reals, fakes, game.normalize_features)
            losses["adversarial"] = generator_loss(fakes, game.loss)
        labels = None
        if self._labels is not None:
            labels = self._labels.of(batch.names).to(latents.lengths.device)
            losses["label"] = self.critic["probe"](latents.acoustic_low, latents.lengths, labels)
        self._seen = _Seen(
            audio=made.audio.detach() if playing else None,
            target=made.target,
            lengths=lengths,
            features=latents.acoustic_low.detach(),
            tokens=latents.lengths,
            labels=labels,
        )
        return losses

    def critic_losses(self) -> dict[str, Tensor]:
        """What the discriminators and the probe pay for the batch that :meth:`losses` saw last."""
        seen, self._seen = self._seen, None
        if seen is None or self.critic is None:
            return {}
        losses = {}
        if seen.audio is not None:
            judge = self.critic["discriminators"]
            reals, fakes = judge(seen.target, seen.lengths), judge(seen.audio, seen.lengths)
            losses["discriminator"] = discriminator_loss(reals, fakes, self.config.discriminator.loss)
        if seen.labels is not None:
            losses["label_probe"] = self.critic["probe"](seen.features, seen.tokens, seen.labels)
        return losses

    def _prefixes(self, clips: int) -> Tensor | None:
        """A prefix of its latents for each clip, where the model has nested ones that are not quantized."""
        nested = self.model.config.nested_dims
        if not nested or self.model.quantizer is not None:
            return None
        return torch.tensor(nested)[integers(0, len(nested), (clips,))].to(self.model.device)


class _Seen(NamedTuple):
    """What the critic needs of a batch; nothing of it takes gradients."""

    audio: Tensor | None
    """Decoded, [B, N]; None before the game has begun."""
    target: Tensor
    lengths: Tensor | None
    features: Tensor
    tokens: Tensor
    labels: Tensor | None


def _init(config: TrainConfig) -> Path:
    if config.init is None:
        raise ConfigError("train tokenizer needs init, the folder that train sembo wrote: --init DIR")
    return model_folder(config.init)
