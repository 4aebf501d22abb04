"""Nested latents: losses over prefixes, cut latents that decode, and the size that follows the content."""

import dataclasses
import itertools

import pytest
import torch

from losatok_ext import ops
from losatok_ext.errors import ConfigError, UserError
from losatok_ext.models import LoSATok
from losatok_ext.models.tokenizer.nested import least_dims, prefix_errors
from losatok_ext.nn import Bottleneck, FSQConfig
from losatok_ext.training import train_sembo, train_tokenizer
from losatok_ext.training.stages.losses import tokenizer_losses
from small_models import lively, small_config, tone
from training_runs import SPEECH, small_run, tokenizer_config

DIMS = (2, 4, 8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(LoSATok(small_config(nested_dims=DIMS)))


@pytest.fixture(scope="module")
def clips():
    """Two clips; the second ends at 7000 samples, and NaN follows."""
    audio = torch.stack([tone(12000, seed) for seed in range(2)])
    audio[1, 7000:] = float("nan")
    return audio, torch.tensor([12000, 7000])


@pytest.mark.parametrize("frames", [6, 140])
def test_the_losses_are_means_over_latents_whose_tail_is_zero(frames):
    bottleneck = Bottleneck(12, 10, 8).double()
    features, lengths = torch.randn(2, frames, 12).double(), torch.tensor([frames, frames - 3])
    found = bottleneck.losses(features, lengths, prefixes=DIMS)
    sum(found.values()).backward()
    gradients = [p.grad.clone() for p in bottleneck.parameters()]
    bottleneck.zero_grad()
    up, expected = bottleneck.up, {"sembo_reconstruction": 0.0, "sembo_relation": 0.0}
    for size in DIMS:
        low = torch.where(torch.arange(8) < size, bottleneck.down(features), 0.0)
        weights = up.fc1.weight, up.fc1.bias, up.fc2.weight, up.fc2.bias
        restored = ops.normalized_reconstruction_loss(low, features, *weights, lengths=lengths)
        expected["sembo_reconstruction"] += restored / 3
        expected["sembo_relation"] += ops.time_relation_loss(low, features, lengths=lengths) / 3
        torch.testing.assert_close(bottleneck.restore(low[..., :size]), ops.bottleneck_project(low, *weights))
    sum(expected.values()).backward()
    torch.testing.assert_close(found, expected)
    for ours, parameter in zip(gradients, bottleneck.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


def test_cut_latents_are_the_whole_ones_up_to_their_size(model, clips):
    whole, cut = model.encode(*_audio(clips)), model.encode(*_audio(clips), dims=[2, 4])
    assert cut.dims.tolist() == [2, 4]
    assert whole.dims is None
    for name in ("z", "mu", "logvar"):
        ours, theirs = getattr(cut, name), getattr(whole, name)
        for row, size in enumerate((2, 4)):
            assert torch.equal(ours[row, :, :size], theirs[row, :, :size])
            assert not ours[row, :, size:].any()
    assert torch.equal(model.encode(*_audio(clips), dims=8).z, whole.z)
    decoded = model.decode(cut)
    assert torch.isfinite(decoded).all()
    assert not torch.allclose(decoded, model.decode(whole))
    torch.testing.assert_close(decoded[1:], model.decode(cut.z[1:, :, :], cut.lengths[1:]))


def _audio(clips):
    audio, lengths = clips
    return audio, 16000, lengths


def errors_of(model, audio):
    """Mean 1 - cosine of one clip restored from each prefix, in float64 by the formula."""
    features, _ = model.teacher(audio)
    down, up = model.bottleneck.down, model.bottleneck.up
    low = ops.bottleneck_project(features, down.fc1.weight, down.fc1.bias, down.fc2.weight, down.fc2.bias)
    errors = []
    for size in DIMS:
        kept = torch.where(torch.arange(8) < size, low, 0.0)
        restored = ops.bottleneck_project(kept, up.fc1.weight, up.fc1.bias, up.fc2.weight, up.fc2.bias)
        errors.append((1 - torch.cosine_similarity(restored.double(), features.double(), dim=-1)).mean().item())
    return errors


@pytest.mark.parametrize("features", [False, True])
def test_the_error_decides_the_size_of_each_clip(model, clips, features):
    alone = [errors_of(model, clips[0][row, :n]) for row, n in enumerate((12000, 7000))]
    places = sorted({error for errors in alone for error in errors})
    for target in [0.0, *((a + b) / 2 for a, b in itertools.pairwise(places)), 2.0]:
        expected = [next((d for d, e in zip(DIMS, errors, strict=True) if e <= target), 8) for errors in alone]
        latents = model.encode(*_audio(clips), target_error=target, features=features)
        assert latents.dims.tolist() == expected
        assert torch.equal(latents.z, model.encode(*_audio(clips), dims=expected).z)
        assert (latents.semantic is not None) == features


def test_prefix_errors_are_those_of_restored_features(model):
    features = torch.randn(3, 5, 32)
    low = model.bottleneck.down(features)
    errors = prefix_errors(model.bottleneck, features, low, DIMS)
    assert errors.shape == (3, 5, 3)
    for index, size in enumerate(DIMS):
        restored = model.bottleneck.restore(low[..., :size])
        torch.testing.assert_close(errors[..., index], 1 - torch.cosine_similarity(restored, features, dim=-1))


def test_the_least_size_is_the_first_that_is_good_enough():
    errors = torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.4, 0.1], [0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])[:, None].expand(
        -1, 2, -1
    )
    spoiled = errors.clone()
    spoiled[1, 1] = float("nan")
    assert least_dims(spoiled, torch.tensor([2, 1, 2, 2]), DIMS, 0.25).tolist() == [4, 8, 2, 8]
    assert least_dims(spoiled, torch.tensor([0, 1, 2, 2]), DIMS, 0.25).tolist() == [2, 8, 2, 8]


def test_what_does_not_fit_is_named(model, clips):
    with pytest.raises(ValueError, match=r"dims should be one of 2, 4, 8 \(what was trained\), got 3"):
        model.encode(*_audio(clips), dims=3)
    with pytest.raises(ValueError, match="one for each of the 2 clips, got 3"):
        model.encode(*_audio(clips), dims=[2, 2, 2])
    with pytest.raises(ValueError, match="dims and target_error should not both be given"):
        model.encode(*_audio(clips), dims=2, target_error=0.1)
    plain = LoSATok(small_config())
    for asked in ({"dims": 2}, {"target_error": 0.1}):
        with pytest.raises(UserError, match=f"{next(iter(asked))}: this model was not trained for prefixes"):
            plain.encode(*_audio(clips), **asked)
    quantized = model.with_quantizer(FSQConfig(levels=(5, 5)))
    with pytest.raises(UserError, match=r"target_error: this model has a quantizer \(fsq"):
        quantized.encode(*_audio(clips), target_error=0.1)
    for wrong in ((4, 2, 8), (2, 4), (2, 2, 8)):
        with pytest.raises(ConfigError, match=r"nested_dims should be empty, or ascending to latent_dim \(8\)"):
            small_config(nested_dims=wrong)


def test_a_model_without_prefixes_says_nothing_of_them():
    assert "nested_dims" not in small_config().to_dict()
    nested = small_config(nested_dims=DIMS)
    assert type(nested).from_dict(nested.to_dict()) == nested


def test_both_stages_train_prefixes(tmp_path):
    """A nested SemBo restores from few dimensions what a plain one cannot, at the same steps."""
    runs = {}
    for name, prefixes in (("nested", [2, 4]), ("plain", [])):
        settings = {"sembo": {"prefixes": prefixes}, "steps": 60, "batch_size": 8, "optimizer": {"lr": 1e-2}}
        train_sembo(SPEECH, tmp_path / name, small_run(**settings, checkpoint={"every": 60}))
        runs[name] = LoSATok.from_pretrained(tmp_path / name / "model")
    assert runs["nested"].config.nested_dims == (2, 4, 8)
    assert runs["plain"].config.nested_dims == ()
    features, _ = runs["plain"].teacher(torch.stack([tone(16000, seed) for seed in range(4)]))
    with torch.no_grad():
        nested, plain = (
            prefix_errors(run.bottleneck, features, run.bottleneck.down(features), DIMS).mean((0, 1))
            for run in runs.values()
        )
    assert nested[0] < 0.7 * plain[0]
    assert nested[1] < 0.8 * plain[1]
    train_tokenizer(SPEECH, tmp_path / "tokenizer", tokenizer_config(tmp_path / "nested", steps=2))
    tokenizer = LoSATok.from_pretrained(tmp_path / "tokenizer" / "model")
    assert tokenizer.config.nested_dims == (2, 4, 8)
    assert tokenizer.encode(torch.randn(1, 6400), dims=2).dims.tolist() == [2]
    with pytest.raises(ConfigError, match=r"sembo\.prefixes should lie within the 8 dimensions of the latent, got 16"):
        train_sembo(SPEECH, tmp_path / "wrong", small_run(sembo={"prefixes": [16]}))


def test_the_decoder_learns_from_cut_latents(model):
    audio = torch.stack([tone(6400, seed) for seed in range(2)])
    torch.manual_seed(0)
    made = model(audio)
    plain = tokenizer_losses(model, made)
    torch.manual_seed(0)
    cut_made = model(audio, dims=torch.tensor([8, 2]))
    cut = tokenizer_losses(model, cut_made)
    assert torch.equal(made.latents.z, cut_made.latents.z)  # the losses of the latent are those of all dimensions
    assert torch.equal(plain["kl"], cut["kl"])
    torch.testing.assert_close(made.audio[0], cut_made.audio[0])
    z = torch.where(torch.arange(8) < 2, made.latents.z[1:], 0.0)
    torch.testing.assert_close(cut_made.audio[1:], model.decoder(z))
    assert dataclasses.asdict(model.config)["nested_dims"] == DIMS
