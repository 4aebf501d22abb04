"""What a stage of training adds to the loop that all stages share.

:class:`Stage` is what every stage has. The other protocols are optional: a stage that has their members gets what they
describe. docs/adding-a-stage.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from losatok_ext.training.data.batches import Batch
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import CropSource


class Stage(Protocol):
    """One stage: its data, its model and its losses. Its class is called with (data, configuration, device)."""

    name: str
    """As in ``losatok train NAME``."""
    paper_steps: int
    """Steps of a run whose configuration does not say how many."""
    notes: tuple[str, ...]
    """Sentences for the user on what :meth:`build` read, such as the dtype that weights were stored in."""

    @property
    def data(self) -> str | Path:
        """Folder, manifest or shards to train on."""

    # -- what is trained, on what; called in this order when a run begins ----------------------------------------------

    def model_config(self) -> Any:
        """The configuration of the model that :meth:`build` will build; it has ``to_dict()``."""

    def open_data(self, data: str | Path, model: Any) -> tuple[Corpus, CropSource]:
        """Open clips, to train on or to validate on.

        Args:
            data: folder, manifest or shards; :attr:`data`, or ``validation.data`` of the configuration.
            model: what :meth:`model_config` or :meth:`read_config` gave.

        Returns:
            (corpus, source of its batches).

        Raises:
            TrainingError, ConfigError: there is no usable clip, or the data does not fit the stage.
        """

    def build(self, corpus: Corpus) -> Any:
        """The model that training begins with, on the CPU, with float32 weights; ``save_pretrained`` writes it. It may
        be an ``nn.Module`` around the model that is saved."""

    def start(self, model: Any) -> None:
        """Take ``model``, which is on the device, as :attr:`model`, and let what is trained take gradients."""

    # -- a run that goes on --------------------------------------------------------------------------------------------

    def read_config(self, values: dict[str, Any]) -> Any:
        """The model's configuration out of what its ``to_dict`` gave when the run began."""

    def blank(self, config: Any) -> Any:
        """A model of ``config`` whose weights a checkpoint will replace."""

    def facts(self) -> dict[str, Any]:
        """JSON values that must be equal when a run goes on, besides its configuration and its corpus."""

    def digest(self, corpus: Corpus) -> str:
        """A hash of what is learned from a corpus; a run goes on only with an equal one."""

    # -- a step --------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model that trains; its parameters that take gradients are trained."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Loss name -> its weight in the total. Losses that a step does not return are left out of it."""

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Unweighted scalar losses by name; called once per step and part of its batch, under the run's autocast.

        Args:
            batch: on the run's device.
            step: steps done before this one.
        """


@runtime_checkable
class AdversarialStage(Protocol):
    """What a stage with a critic (discriminators, probes) has besides :class:`Stage`.

    The critic's parameters take no gradient during :meth:`Stage.losses` and its backward pass, and take gradients
    during :meth:`critic_losses`. The critic has its own AdamW, gradient clipping and files in checkpoints.
    """

    @property
    def critic(self) -> nn.Module | None:
        """The critic; None where the stage trains without one."""

    @property
    def critic_weights(self) -> Mapping[str, float]:
        """Name of a critic's loss -> its weight in the critic's total."""

    def critic_losses(self) -> dict[str, Tensor]:
        """The critic's unweighted losses for the batch that :meth:`Stage.losses` was called with last (the stage keeps
        what it needs of it, detached); empty where the critic is not trained yet."""


@runtime_checkable
class CountingStage(Protocol):
    """A stage that says how many items (frames, tokens, pairs) each of its losses is a mean over.

    Where a step's batch is cut into parts (gradient accumulation, several processes), the loss of the step is the mean
    of the parts' losses, each weighted by its number of items. A loss that is not named here is weighted by the lengths
    of the batch: samples of recordings, tokens of features or latents.
    """

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor | None]:
        """The number of items in each clip, by the name of the loss.

        Args:
            batch: the part at hand, which tells the type of the data.
            lengths: [B] int64, of the clips to count: those of the part, or those of all parts of the step.

        Returns:
            Loss name -> [B]; None where the stage weights the loss itself, from :attr:`Batch.step_lengths`.
        """


class ClipLatents(NamedTuple):
    """The latents of a batch: ``mean`` [B, T, d], ``logvar`` [B, T, d] or None, ``lengths`` [B] int64 tokens."""

    mean: Tensor
    logvar: Tensor | None
    lengths: Tensor


class Shown(NamedTuple):
    """A recording and the model's reconstruction of it, for TensorBoard."""

    name: str
    given: Tensor
    """[N] float32, recorded."""
    made: Tensor
    """[N] float32, reconstructed."""
    sample_rate: int
    """Hz."""


@runtime_checkable
class ShownStage(Protocol):
    """A stage whose latents and audio validation reports. Both methods are called without gradients and in eval mode,
    on the moving mean of the weights where there is one."""

    def latents(self, batch: Batch) -> ClipLatents | None:
        """The latents of a batch; None where the stage has none of its own."""

    def show(self, batch: Batch) -> list[Shown]:
        """Each recording of a batch and its reconstruction; empty where the stage makes no audio."""
