"""Preparing a run of any stage: data, model and loop, at its beginning or from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from losatok_ext.errors import TrainingError
from losatok_ext.training.config.train import TrainConfig, differences
from losatok_ext.training.data.balance import DomainShare
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.engine.checkpoint import CheckpointStore
from losatok_ext.training.engine.distributed import Processes, gathered, is_sharded
from losatok_ext.training.engine.loop import Trainer
from losatok_ext.training.engine.parts import rows_of_process
from losatok_ext.training.engine.state import frozen_state, load_changing, load_frozen
from losatok_ext.training.engine.validation import Validator, hold_out
from losatok_ext.training.stages.base import AdversarialStage, Stage


@dataclass(frozen=True)
class RunStart:
    """What ``on_start`` receives once everything is ready."""

    stage: str
    corpus: Corpus
    device: torch.device
    processes: int
    """Number of processes that train together."""
    steps: int
    start: int
    """Steps already done; 0 in a new run."""
    epochs: float
    """How often the run visits each clip, all steps together."""
    trained_parameters: int
    parameters: int
    domains: tuple[DomainShare, ...] = ()
    """The corpus by domain, with the share of each in the crops."""
    crops: int = 0
    """Crops of the run, all steps together."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on what was read, such as the dtype that weights were stored in."""


class PreparedRun:
    """A run of ``stage`` in the folder of ``store``, ready to train.

    Args:
        stage: not yet opened.
        store: of checkpoints, locked.
        config: of the run.
        processes: this one, and those that train with it.
        previous: go on from the checkpoint before the newest, which is removed.

    Raises:
        ConfigError: the configuration does not fit the stage, the model or the data.
        TrainingError: the data cannot be used, or ``store`` holds another run.
        CheckpointError: a model or checkpoint cannot be read.
    """

    def __init__(
        self, stage: Stage, store: CheckpointStore, config: TrainConfig, processes: Processes, previous: bool = False
    ) -> None:
        self.stage, self.processes = stage, processes
        rows_of_process(config.batch_size, processes, config.optimizer.accumulate)  # raises before files are written
        self.steps = config.steps or stage.paper_steps
        checkpoint = store.latest(previous)
        facts: dict[str, Any] = {"stage": stage.name, "config": config.to_dict()}
        if checkpoint is None:
            model_config = stage.model_config()
        else:
            _check_same_run(store, facts)
            model_config = stage.read_config(store.read_run()["model"])
        # Data before the model, which may take minutes to build.
        self.corpus, self.source = stage.open_data(stage.data, model_config)
        everything = self.corpus
        validated = self._validation_source(model_config, config)
        model = stage.build(self.corpus) if checkpoint is None else stage.blank(model_config)
        facts |= {"model": model_config.to_dict(), "corpus": stage.digest(everything), **stage.facts()}
        self.model_config = model_config
        stage.start(model.to(processes.device))
        critic = stage.critic if isinstance(stage, AdversarialStage) else None
        if critic is not None:
            critic.to(processes.device)
        if checkpoint is None:
            processes.agree(lambda: store.write_run(facts, frozen_state(stage.model)))
        else:
            _check_same_data(stage.data, store, facts)
            load_frozen(stage.model, store.read_frozen(), str(store.root / "frozen.safetensors"))
            load_changing(stage.model, checkpoint, "model")
            if critic is not None:
                load_changing(critic.requires_grad_(True), checkpoint, "critic")
        self.trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
        self.parameters = sum(p.numel() for p in stage.model.parameters())
        validator = None
        if validated is not None:
            validator = Validator(validated, config.validation.clips, config.validation.shown)
        self.trainer = Trainer(stage, self.source, config, self.steps, store, processes, validator)
        if checkpoint is not None:
            self.trainer.restore(checkpoint)
            going_on = checkpoint.step
            processes.agree(lambda: store.drop_after(going_on))

    def _validation_source(self, model_config: Any, config: TrainConfig) -> CropSource | None:
        """The crops to validate on, or None; a share that is held out is taken away from the training data."""
        options = config.validation
        if options.data is not None:
            corpus, source = self.stage.open_data(options.data, model_config)
            return source.over(corpus, augmented=False)
        if not options.share:
            return None
        self.corpus, held = hold_out(self.corpus, options.share, self.stage.data)
        validated = self.source.over(held, augmented=False)
        self.source = self.source.over(self.corpus, augmented=True)
        return validated

    def described(self) -> RunStart:
        """What ``on_start`` receives."""
        epochs = self.steps / self.source.steps_per_epoch
        return RunStart(
            stage=self.stage.name,
            corpus=self.corpus,
            device=self.processes.device,
            processes=self.processes.count,
            steps=self.steps,
            start=self.trainer.step,
            epochs=epochs,
            trained_parameters=self.trained,
            parameters=self.parameters,
            domains=self.source.domains,
            crops=self.steps * self.source.batch_size,
            notes=self.stage.notes,
        )

    def save_model(self, folder: Path) -> None:
        """Write the model folder, with the moving mean of the weights where there is one.

        Raises:
            TrainingError: it cannot be written.
        """
        average = self.trainer.average
        with nullcontext() if average is None else average.applied():
            self.processes.agree(self._writer(self.stage.model, folder))

    def _writer(self, model: Any, folder: Path) -> Callable[[], None]:
        if any(is_sharded(p) for p in model.parameters()):
            state = {name: gathered(value) for name, value in model.state_dict().items()}
            model = self.stage.blank(getattr(model, "config", self.model_config)) if self.processes.first else None
            if model is not None:
                model.load_state_dict(state)

        def write() -> None:
            try:
                model.save_pretrained(folder)
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"{folder}: the model cannot be written ({error}); the last checkpoint is intact: make room, then "
                    "the same command again writes it"
                ) from None

        return write


def _check_same_run(store: CheckpointStore, facts: dict[str, Any]) -> None:
    then, output = store.read_run(), store.root.parent
    if then["stage"] != facts["stage"]:
        raise TrainingError(
            f"{output} holds a run of train {then['stage']}; choose another folder for train {facts['stage']}"
        )
    # A run of an older release has fewer keys: for it they had what is their default now.
    changed = differences(TrainConfig.from_dict(then["config"], str(store.root)).to_dict(), facts["config"])
    if changed:
        raise TrainingError(
            f"{output} holds a run with another configuration ({'; '.join(changed)}); use the same to go on with it, "
            "or choose another folder"
        )


def _check_same_data(data: str | Path, store: CheckpointStore, facts: dict[str, Any]) -> None:
    then, output = store.read_run(), store.root.parent
    if facts["corpus"] != then["corpus"]:
        raise TrainingError(
            f"{data}: the recordings are not those that the run in {output} began with; bring them back, or "
            "choose another folder"
        )
    if facts.get("tokenizer") != then.get("tokenizer"):
        raise TrainingError(
            f"{data}: the latents are of the tokenizer {facts['tokenizer']}, and the run in {output} began with those "
            f"of {then['tokenizer']}; use that one, or choose another folder"
        )
