"""The masked autoencoder: what it hides, what its loss counts; neighbours and padding do not matter."""

import pytest
import torch

from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.masked_autoencoder import MaskedAutoencoder
from small_models import lively, small_config, tone


@pytest.fixture
def autoencoder():
    return lively(MaskedAutoencoder(LoSATok(small_config()), decoder_dim=24, decoder_depth=1))


def batch(*seconds):
    lengths = torch.tensor([round(s * 16000) for s in seconds])
    audio = torch.full((len(seconds), int(lengths.max())), torch.nan)
    for row, n in enumerate(lengths.tolist()):
        audio[row, :n] = tone(n, seed=row)
    return audio, lengths


def lots(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_that_of_a_plain_loop_over_clips(autoencoder, normalise):
    """The hidden patches restored clip by clip, from the visible ones alone, in float64."""
    audio, lengths = batch(1.3, 0.5, 0.9)
    loss = autoencoder(audio, lengths, 0.6, normalise, generator=lots())["masked"]
    model = autoencoder.double()
    encoder = model.encoder
    shares = torch.rand(3, int(lengths.max()) // 640, generator=lots())
    errors = []
    for row, n in enumerate(lengths.tolist()):
        patches, tokens = encoder.patches(audio[row : row + 1, :n], lengths[row : row + 1])
        count = int(tokens[0])
        target = encoder.normalise(patches.float())[0].double()
        order = shares[row, :count].argsort()
        kept = order[: count - int(count * 0.6)]
        x = encoder.embed(target[None])[:, kept]
        for block in encoder.blocks:
            x = block(x)
        full = model.mask_token.repeat(1, count, 1)
        full[0, kept] = model.decoder_embed(encoder.norm(x))[0]
        full = full + model.decoder_position[:count]
        for block in model.decoder_blocks:
            full = block(full)
        if normalise:
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        error = (model.decoder_head(model.decoder_norm(full))[0] - target).square().mean(-1)
        hidden = torch.ones(count, dtype=torch.bool)
        hidden[kept] = False
        errors.append(error[hidden])
    torch.testing.assert_close(loss.double(), torch.cat(errors).mean(), rtol=1e-5, atol=0)


def test_what_lies_past_a_length_changes_nothing(autoencoder):
    audio, lengths = batch(1.0, 0.4)
    other = torch.where(audio.isnan(), 5.0, audio)
    results = []
    for clips in (audio, other):
        autoencoder.zero_grad()
        loss = autoencoder(clips, lengths, generator=lots())["masked"]
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in autoencoder.parameters() if p.grad is not None)])
    for one, two in zip(*results, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, two)


def test_the_encoder_takes_gradients_and_nothing_else_of_the_tokenizer(autoencoder):
    audio, lengths = batch(0.8)
    autoencoder(audio, lengths)["masked"].backward()
    took = {name for name, p in autoencoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    prefix = "tokenizer.semantic_encoder."
    wanted = {
        name
        for name, _ in autoencoder.named_parameters()
        if not name.startswith("tokenizer.") or (name.startswith(prefix) and "batch_norm" not in name)
    }
    # A key's bias moves all scores of a query alike: its gradient is rounding, wherever it appears.
    assert took == wanted


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_shares_at_their_ends_and_clips_of_one_token(autoencoder, ratio):
    audio, lengths = batch(0.04, 0.08, 0.6)
    loss = autoencoder(audio, lengths, ratio)["masked"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in autoencoder.parameters() if p.grad is not None)


def test_nothing_hidden_costs_nothing(autoencoder):
    audio, lengths = batch(0.04)
    assert autoencoder(audio, lengths)["masked"] == 0


def test_longer_than_the_encoder_sees():
    model = MaskedAutoencoder(LoSATok(small_config(chunk_frames=40)), 16, 1)
    with pytest.raises(ValueError, match="audio has 25 tokens and the encoder sees 10 at once"):
        model(tone(16000)[None], torch.tensor([16000]))
