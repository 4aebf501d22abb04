"""Stage two: train the acoustic encoder, the latent and the decoder to reconstruct audio, supervised by the frozen
semantic branch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.folders import TOKENIZER, open_folder
from losatok_ext.nn.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from losatok_ext.nn.discriminators import Discriminators
from losatok_ext.nn.label_probe import LabelProbe
from losatok_ext.nn.noise import integers
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.batches import Batch, recordings_of
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.data.labels import LabelClasses, with_labels
from losatok_ext.training.stages.losses import tokenizer_losses
from losatok_ext.training.stages.presets import read_in_float32
from losatok_ext.training.stages.recordings import RecordingStage
from losatok_ext.training.stages.views import TokenizerView


class TokenizerStage(TokenizerView, RecordingStage):
    """Trains all weights except those of the semantic branch.

    Losses: ``mel``, ``semantic_high``, ``semantic_low`` and ``kl``; with discriminators ``feature_matching`` and
    ``adversarial``; with ``supervision.labels`` also ``label``; with a quantizer also ``quantizer``. Weights:
    arXiv 2605.27840 (45 mel + 45 (L_H + L_L) + 0.01 KL + 1 feature matching + 1 adversarial).

    With a quantizer the mean of the posterior is quantized and decoded, as in inference. A model with nested latents
    decodes each clip from a prefix of them, which is drawn at random.

    Where the data holds the teacher's features beside the recordings, the semantic encoder does not run; the
    bottleneck, a thousandth of its work, does. The decoder runs once per step: :meth:`critic_losses` uses a detached
    copy of its audio.
    """

    name = "tokenizer"
    takes_features = True
    paper_steps = 1_000_000

    def __init__(self, data: str | Path, config: TrainConfig, device: torch.device) -> None:
        super().__init__(data, config, device)
        weights = config.tokenizer
        self.weights = {
            "mel": weights.mel,
            "semantic_high": weights.semantic_high,
            "semantic_low": weights.semantic_low,
            "kl": weights.kl,
        }
        self.critic: nn.ModuleDict | None = None
        """The discriminators and the label probe; None where the run has neither."""
        self.critic_weights = {"discriminator": 1.0, "label_probe": 1.0}
        self._classes: LabelClasses | None = None
        self._kept: _Kept | None = None

    @property
    def adversarial(self) -> bool:
        """Whether there are discriminators, and losses of theirs with a weight above 0."""
        weights = self.config.tokenizer
        return bool(self.config.discriminator.kinds) and weights.adversarial + weights.feature_matching > 0

    def open_data(self, data: str | Path, model: LoSATokConfig) -> tuple[Corpus, CropSource]:
        """Recordings, to train on or to validate on; with ``supervision.labels`` each clip has its label. The classes
        are the labels of what is opened first, which is the training data.

        Raises:
            TrainingError: there is no usable clip, stored features do not fit, or the labels form no classes.
            ConfigError: ``augment`` or ``data.balance`` of the configuration does not fit the data.
        """
        corpus, source = super().open_data(data, model)
        if self.config.supervision.labels and self.config.tokenizer.label > 0:
            corpus = with_labels(corpus)
            source = source.over(corpus, augmented=True)
            if self._classes is None:
                self._classes = LabelClasses(data, corpus)
        return corpus, source

    def digest(self, corpus: Corpus) -> str:
        """A hash of the recordings, and of their labels where these are learned from."""
        recordings = super().digest(corpus)
        return recordings if self._classes is None else f"{recordings} {self._classes.digest(corpus)}"

    def start(self, model: LoSATok) -> None:
        """Train the stage's part of ``model`` and its quantizer, if it has one, with a new critic."""
        super().start(model)
        weights, options = self.config.tokenizer, self.config.discriminator
        if model.quantizer is not None:
            self.weights["quantizer"] = weights.quantizer
        torch.manual_seed(self.config.seed)
        critic = nn.ModuleDict()
        if self.adversarial:
            self.weights |= {"feature_matching": weights.feature_matching, "adversarial": weights.adversarial}
            critic["discriminators"] = Discriminators(options.kinds, options.channels)
        if self._classes is not None:
            self.weights["label"] = weights.label
            critic["probe"] = LabelProbe(model.config.latent_dim, len(self._classes.names))
        self.critic = critic.to(model.device) if len(critic) else None

    def model_config(self) -> LoSATokConfig:
        """The configuration in the folder ``init``, which ``losatok train sembo`` wrote, with the run's quantizer.

        Raises:
            ConfigError: there is no ``init``.
            CheckpointError: the folder cannot be read.
        """
        ours = open_folder(_init(self.config), TOKENIZER).config(LoSATokConfig)
        quantizer, floor = self.config.quantizer, self.config.supervision.kl_floor
        if quantizer is not None:
            ours = dataclasses.replace(ours, quantizer=quantizer)
        return ours if floor is None else dataclasses.replace(ours, kl_clamp=floor)

    def build(self, corpus: Corpus) -> LoSATok:
        """The model of the folder ``init``, with a new quantizer where the run's configuration has one.

        Raises:
            ConfigError: there is no ``init``, its weights are int8, or ``quantizer`` holds a key or value that does not
                fit.
            CheckpointError: the folder cannot be read.
            TrainingError: the data holds features of another teacher than that model's.
        """
        model, self.notes = read_in_float32(LoSATok, _init(self.config), "init")
        self.check_teacher(model)
        quantizer, floor = self.config.quantizer, self.config.supervision.kl_floor
        if quantizer is not None:
            torch.manual_seed(self.config.seed)
            model = model.with_quantizer(quantizer)
        if floor is not None:
            model.config = dataclasses.replace(model.config, kl_clamp=floor)
        return model

    def counts(self, batch: Batch, lengths: Tensor) -> dict[str, Tensor]:
        """See :class:`TokenizerView`; ``label`` and ``label_probe`` are means over clips, which is exact where each
        clip has a label.

        The losses of the discriminators are weighted by samples, which is exact for clips of equal length.
        """
        clips = (lengths > 0).long()
        return {**super().counts(batch, lengths), "label": clips, "label_probe": clips}

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The unweighted losses of a batch of recordings; before ``discriminator.start_step`` without the adversarial
        ones. Latents are sampled from the posterior, unless they are quantized."""
        batch = recordings_of(batch)
        options = {
            "sample": self.model.quantizer is None,
            "features": self.semantic(batch),
            "dims": self._prefixes(len(batch.lengths)),
        }
        self._kept = None
        made = self.model(batch.audio, batch.lengths, **options)
        losses = tokenizer_losses(self.model, made, self.config.supervision.distance)
        if self.critic is None:
            return losses
        latents = made.latents
        # Rows without padding need no masks; comparing lengths on the CPU costs no wait for a GPU.
        unpadded = bool((batch.lengths == batch.size()).all())
        lengths = None if unpadded else made.lengths
        adversarial = self.adversarial and step >= self.config.discriminator.start_step
        if adversarial:
            discriminators, settings = self.critic["discriminators"], self.config.discriminator
            fakes = discriminators(made.audio, lengths)
            with torch.no_grad():
                reals = discriminators(made.target, lengths)
            losses["feature_matching"] = feature_matching_loss(reals, fakes, settings.normalize_features)
            losses["adversarial"] = generator_loss(fakes, settings.loss)
        labels = None
        if self._classes is not None:
            labels = self._classes.numbers(batch.labels).to(latents.lengths.device)
            losses["label"] = self.critic["probe"](latents.acoustic_low, latents.lengths, labels)
        self._kept = _Kept(
            audio=made.audio.detach() if adversarial else None,
            target=made.target,
            lengths=lengths,
            features=latents.acoustic_low.detach(),
            tokens=latents.lengths,
            labels=labels,
        )
        return losses

    def critic_losses(self) -> dict[str, Tensor]:
        """The unweighted losses of the discriminators and the probe, for the batch that :meth:`losses` was called with
        last; empty when they were computed already."""
        kept, self._kept = self._kept, None
        if kept is None or self.critic is None:
            return {}
        losses = {}
        if kept.audio is not None:
            discriminators = self.critic["discriminators"]
            reals, fakes = discriminators(kept.target, kept.lengths), discriminators(kept.audio, kept.lengths)
            losses["discriminator"] = discriminator_loss(reals, fakes, self.config.discriminator.loss)
        if kept.labels is not None:
            losses["label_probe"] = self.critic["probe"](kept.features, kept.tokens, kept.labels)
        return losses

    def _prefixes(self, clips: int) -> Tensor | None:
        """The number of latent dimensions to decode each clip from, [B] int64, drawn at random; None where the model
        has no nested latents, or quantizes them."""
        nested = self.model.config.nested_dims
        if not nested or self.model.quantizer is not None:
            return None
        return torch.tensor(nested)[integers(0, len(nested), (clips,))].to(self.model.device)


class _Kept(NamedTuple):
    """The tensors of a batch that the critic learns from; none of them takes gradients."""

    audio: Tensor | None
    """[B, N] float32, decoded; None before ``discriminator.start_step``."""
    target: Tensor
    """[B, N] float32, recorded."""
    lengths: Tensor | None
    """[B] int64 samples; None where no row is padded."""
    features: Tensor
    """[B, T, d], the acoustic low-dimensional features."""
    tokens: Tensor
    """[B] int64, their lengths."""
    labels: Tensor | None
    """[B] int64 classes, -1 for none; None where labels are not learned from."""


def _init(config: TrainConfig) -> str:
    if config.init is None:
        raise ConfigError("train tokenizer needs init, the folder that train sembo wrote: --init DIR")
    return config.init
