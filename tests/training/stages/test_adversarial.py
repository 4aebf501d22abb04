"""The tokenizer with each kind of discriminator: when adversarial training begins, what it changes, exact resume."""

import dataclasses
import json

import pytest
import torch

from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import CheckpointError, TrainingError
from losatok_ext.models import LoSATok
from losatok_ext.nn.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from losatok_ext.nn.label_probe import LabelProbe
from losatok_ext.training import read_log, train_sembo, train_tokenizer
from losatok_ext.training.data.batches import RecordingBatch
from losatok_ext.training.data.corpus import open_corpus
from losatok_ext.training.data.labels import LabelClasses, with_labels
from losatok_ext.training.engine.checkpoint import load_file
from losatok_ext.training.stages.losses import tokenizer_losses
from losatok_ext.training.stages.tokenizer import TokenizerStage
from training_runs import (
    MODEL,
    SPEECH,
    StoppedError,
    assert_same_reports,
    assert_same_weights,
    small_run,
    stop_at,
    tokenizer_config,
    weights,
)

ADVERSARIAL = {"feature_matching", "adversarial", "discriminator"}


def config(init, kinds=("mfd",), start=0, **more):
    discriminator = {"kinds": list(kinds), "channels": 1 / 32, "start_step": start}
    values = {"steps": 4, "batch_size": 2, "discriminator": discriminator, "checkpoint": {"every": 2, "keep": 2}}
    return tokenizer_config(init, **{**values, **more})


@pytest.mark.parametrize("kinds", [("mfd",), ("mpd",), ("mrd",), ("msstft",), ("mfd", "mpd")], ids="+".join)
def test_each_kind_trains_from_its_start_and_goes_on_exactly(kinds, sembo, tmp_path):
    """Adversarial training begins at step 1; the run is cut after step 3, so that step 2 is where it goes on from."""
    reports = []
    train_tokenizer(SPEECH, tmp_path / "straight", config(sembo, kinds, start=1), on_step=reports.append)
    assert [set(report.losses) & ADVERSARIAL for report in reports] == [set(), ADVERSARIAL, ADVERSARIAL, ADVERSARIAL]
    assert [report.critic_grad_norm is None for report in reports] == [True, False, False, False]
    for report in reports[1:]:
        assert report.finite
        assert report.critic_grad_norm > 0
        assert report.losses["discriminator"] > 0
        assert report.losses["feature_matching"] > 0
    with pytest.raises(StoppedError):
        train_tokenizer(SPEECH, tmp_path / "parts", config(sembo, kinds, start=1), on_step=stop_at(3))
    resumed = []
    torch.manual_seed(77)
    train_tokenizer(SPEECH, tmp_path / "parts", config(sembo, kinds, start=1), on_step=resumed.append)
    assert_same_reports(reports[2:], resumed)
    assert_same_weights(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    for part in ("critic", "critic_optimizer"):
        one, other = (
            load_file(tmp_path / run / "checkpoints" / "step-00000004" / f"{part}.safetensors")
            for run in ("straight", "parts")
        )
        assert_same_weights(one, other)
    assert not any("critic" in name or "discriminator" in name for name in weights(tmp_path / "parts"))


def stage_on(sembo, **more):
    """A started stage, and a batch of two clips of which the second is shorter."""
    stage = TokenizerStage(SPEECH, config(sembo, **more), torch.device("cpu"))
    model = LoSATok.from_pretrained(sembo / "model")
    _, source = stage.open_data(SPEECH, model.config)
    stage.start(model)
    batch = source.batch(0)
    lengths = torch.tensor([batch.audio.shape[1], 4000])
    audio = batch.audio.clone()
    audio[1, 4000:] = float("nan")
    return stage, dataclasses.replace(batch, audio=audio, lengths=lengths)


def test_both_sides_learn_from_audio_that_is_decoded_once(sembo, monkeypatch):
    stage, batch = stage_on(sembo)
    runs = []
    stage.model.decoder.register_forward_hook(lambda *_: runs.append(1))
    stage.critic.requires_grad_(False)
    torch.manual_seed(3)
    losses = stage.losses(batch, 0)
    sum(losses.values()).backward()
    assert all(p.grad is None for p in stage.critic.parameters())
    assert all(p.grad is not None for p in stage.model.decoder.parameters())
    stage.critic.requires_grad_(True)
    before = [p.grad.clone() for p in stage.model.decoder.parameters()]
    critic = stage.critic_losses()
    critic["discriminator"].backward()
    assert len(runs) == 1
    assert all(p.grad is not None for p in stage.critic.parameters())
    assert all(torch.equal(a, p.grad) for a, p in zip(before, stage.model.decoder.parameters(), strict=True))
    torch.manual_seed(3)
    made = stage.model(batch.audio, batch.lengths)
    discriminators = stage.critic["discriminators"]
    clean = torch.where(torch.arange(made.target.shape[1]) < made.lengths[:, None], made.target, 0.0)
    reals, fakes = discriminators(clean, made.lengths), discriminators(made.audio, made.lengths)
    torch.testing.assert_close(losses["adversarial"], generator_loss(fakes))
    torch.testing.assert_close(losses["feature_matching"], feature_matching_loss(reals, fakes))
    torch.testing.assert_close(critic["discriminator"], discriminator_loss(reals, fakes))
    assert stage.critic_losses() == {}  # of a batch they are computed once


def test_crops_that_fill_their_rows_go_through_discriminators_without_masks(sembo):
    stage, batch = stage_on(sembo)
    audio = batch.audio[:1].expand(2, -1)
    full = RecordingBatch(audio=audio, lengths=torch.full((2,), audio.shape[1]), names=batch.names, seconds=1.0)
    seen = []
    stage.critic["discriminators"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    torch.manual_seed(0)
    stage.losses(full, 0)
    assert seen == [None, None]
    stage.losses(batch, 0)
    assert all(isinstance(lengths, torch.Tensor) for lengths in seen[2:])


def test_weights_of_zero_leave_the_discriminators_out(sembo):
    stage, batch = stage_on(sembo, tokenizer={"adversarial": 0, "feature_matching": 0})
    assert stage.critic is None
    assert not ADVERSARIAL & set(stage.losses(batch, 0))
    assert stage.critic_losses() == {}


def test_the_probe_is_its_formula_over_labelled_clips():
    probe = LabelProbe(3, 4)
    features, labels = torch.randn(3, 5, 3), torch.tensor([2, -1, 0])
    lengths = torch.tensor([5, 2, 1])
    spoiled = torch.where(torch.arange(5)[:, None] < lengths[:, None, None], features, float("nan"))
    expected = torch.nn.functional.cross_entropy(
        torch.stack([probe.linear(features[0].mean(0)), probe.linear(features[2, 0])]), torch.tensor([2, 0])
    )
    torch.testing.assert_close(probe(spoiled, lengths, labels), expected)
    assert probe(spoiled, torch.tensor([0, 2, 0]), labels) == 0
    full = torch.full((3,), 5)
    torch.testing.assert_close(probe(features, None, labels), probe(features, full, labels))


def test_labels_supervise_the_low_level_and_their_probe_stays_behind(sembo, tmp_path):
    options = {"supervision": {"labels": True}, "optimizer": {"lr": 2e-2}, "steps": 30, "batch_size": 8}
    options |= {"tokenizer": {"label": 20}, "checkpoint": {"every": 30}}
    train_tokenizer(sample_folder(), tmp_path, config(sembo, kinds=(), **options))
    lines = read_log(tmp_path)
    first, last = (sum(line["label"] for line in part) for part in (lines[:6], lines[-6:]))
    assert last < 0.9 * first
    assert lines[0]["label"] == lines[0]["label_probe"]  # the same features, the same probe
    kept = load_file(tmp_path / "checkpoints" / "step-00000030" / "critic.safetensors")
    assert set(kept) == {"probe.linear.weight", "probe.linear.bias"}
    assert not any("probe" in name for name in weights(tmp_path))
    assert LoSATok.from_pretrained(tmp_path / "model").config.embed_dim == MODEL["embed_dim"]


def test_labels_come_from_the_manifest_else_from_the_text(tmp_path):
    names = [path.name for path in sorted(SPEECH.glob("*.flac"))[:4]]
    lines = [
        {"path": str(SPEECH / names[0]), "label": "a", "text": "one"},
        {"path": str(SPEECH / names[1]), "label": "b", "text": "two"},
        {"path": str(SPEECH / names[2]), "label": "a"},
        {"path": str(SPEECH / names[3])},
    ]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = with_labels(open_corpus(manifest, 16000, 640, 100))
    classes = LabelClasses(manifest, corpus)
    assert classes.names == ["a", "b"]
    assert classes.numbers([clip.label for clip in corpus.clips]).tolist() == [0, 1, 0, -1]
    folder = with_labels(open_corpus(sample_folder(), 16000, 640, 100))
    changed = LabelClasses(sample_folder(), folder)
    assert changed.names == ["environment", "music", "speech"]
    assert changed.digest(folder) != classes.digest(corpus)
    with pytest.raises(TrainingError, match="16 clips have 0 different labels, of which nothing can be learned"):
        LabelClasses(SPEECH, with_labels(open_corpus(SPEECH, 16000, 640, 100)))


def test_clips_to_validate_on_have_labels_of_their_own(sembo, tmp_path):
    """A label that is not trained on counts as none; equal names in two folders are different clips."""
    files = sorted(SPEECH.glob("*.flac"))
    folders = {"train": "aabbaa", "validate": "bbc"}
    for name, labels in folders.items():
        for number, label in enumerate(labels):
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / label / f"{number}.flac").write_bytes(files[number].read_bytes())
    checked = {"data": str(tmp_path / "validate"), "every": 1, "clips": 2}
    options = config(sembo, kinds=(), supervision={"labels": True}, steps=1, validation=checked)
    result = train_tokenizer(tmp_path / "train", tmp_path / "run", options)
    assert result.last.validation.losses["label"] > 0
    stage = TokenizerStage(tmp_path / "train", options, torch.device("cpu"))
    model = LoSATok.from_pretrained(sembo / "model").config
    stage.open_data(tmp_path / "train", model)
    _, source = stage.open_data(tmp_path / "validate", model)
    seen = {name: label for step in range(30) for name, label in zip(*_labels(stage, source.batch(step)), strict=True)}
    assert seen == {"b/0.flac": 1, "b/1.flac": 1, "c/2.flac": -1}


def _labels(stage, batch):
    return batch.names, stage._classes.numbers(batch.labels).tolist()


def test_a_run_with_other_labels_does_not_go_on(sembo, tmp_path):
    files = sorted(SPEECH.glob("*.flac"))[:4]

    def write(labels):
        lines = [{"path": str(file), "label": label} for file, label in zip(files, labels, strict=True)]
        (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    options = config(sembo, kinds=(), supervision={"labels": True}, steps=1)
    write("abab")
    train_tokenizer(tmp_path / "clips.jsonl", tmp_path / "run", options)
    write("abba")
    with pytest.raises(TrainingError, match="the recordings are not those"):
        train_tokenizer(tmp_path / "clips.jsonl", tmp_path / "run", options)


def test_the_semantic_distance_and_the_floor_are_options(sembo, tmp_path):
    stage, batch = stage_on(sembo, kinds=(), supervision={"distance": "cosine"})
    made = stage.model(batch.audio, batch.lengths)
    losses = tokenizer_losses(stage.model, made, "cosine")
    ours, theirs = made.latents.acoustic, made.latents.semantic
    frames = [1 - torch.cosine_similarity(ours[row, :n], theirs[row, :n], dim=-1) for row, n in enumerate((10, 6))]
    assert made.latents.lengths.tolist() == [10, 6]
    torch.testing.assert_close(losses["semantic_high"], torch.cat(frames).mean())
    torch.testing.assert_close(stage.losses(batch, 0)["semantic_high"], losses["semantic_high"])
    train_tokenizer(SPEECH, tmp_path, config(sembo, kinds=(), steps=1, supervision={"kl_floor": 0.5}))
    assert LoSATok.from_pretrained(tmp_path / "model").config.kl_clamp == 0.5
    assert read_log(tmp_path)[0]["kl"] >= 0.5 * MODEL["latent_dim"]


def test_bfloat16_has_float32_losses_and_critic(sembo, tmp_path):
    reports = []
    train_tokenizer(SPEECH, tmp_path, config(sembo, precision="bfloat16", steps=2), on_step=reports.append)
    assert all(report.finite and report.critic_grad_norm > 0 for report in reports)
    kept = load_file(tmp_path / "checkpoints" / "step-00000002" / "critic.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}


def test_a_checkpoint_of_other_discriminators_is_refused_by_name(sembo, tmp_path):
    train_tokenizer(SPEECH, tmp_path, config(sembo, steps=2))
    with pytest.raises(TrainingError, match=r"another configuration \(discriminator.kinds was \['mfd'\]"):
        train_tokenizer(SPEECH, tmp_path, config(sembo, ("mpd",), steps=2))
    (tmp_path / "checkpoints" / "step-00000002" / "critic.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002: the checkpoint is damaged \(critic\S* is missing"):
        train_tokenizer(SPEECH, tmp_path, config(sembo, steps=2))


def test_a_batch_in_parts_has_the_adversarial_losses_of_all_of_it(tmp_path):
    """Crops that are all as long, prefixes drawn per clip: the parts together are the batch."""
    train_sembo(SPEECH, tmp_path / "sembo", small_run(steps=1, sembo={"prefixes": [2, 4]}))
    lines = {}
    for parts in (1, 2):
        optimizer = {"lr": 1e-3, "eps": 1e-3, "warmup_steps": 0, "accumulate": parts}
        options = config(tmp_path / "sembo", steps=3, batch_size=4, optimizer=optimizer)
        train_tokenizer(SPEECH, tmp_path / str(parts), options)
        lines[parts] = read_log(tmp_path / str(parts))
    for full, cut in zip(lines[1], lines[2], strict=True):
        for name in (*ADVERSARIAL, "mel", "kl", "total", "grad_norm", "critic_grad_norm"):
            # A new critic's gradients of both sides, of order 1, nearly cancel: what is left has their rounding.
            assert cut[name] == pytest.approx(full[name], rel=1e-3, abs=1e-6), name
