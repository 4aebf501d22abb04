"""A clip is the same alone, in any batch, behind any padding, and in chunks."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext.models import Latents, LoSATok
from small_models import lively, losses_of, small_config, tone

NAN = float("nan")
MODELS = ("model", "model50", "chunked")


@pytest.fixture(params=MODELS)
def any_model(request):
    return request.getfixturevalue(request.param)


def padded(clips, size, fill=NAN):
    batch = torch.full((len(clips), size), fill)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return batch, torch.tensor([len(clip) for clip in clips])


def assert_same_clip(latents, row, alone):
    tokens = int(alone.lengths[0])
    assert int(latents.lengths[row]) == tokens
    for field in dataclasses.fields(Latents):
        if field.name in ("lengths", "codes", "dims"):  # these models have no codes, and nothing was cut
            continue
        ours, theirs = getattr(latents, field.name)[row], getattr(alone, field.name)[0]
        torch.testing.assert_close(ours[:tokens], theirs, rtol=1e-5, atol=1e-5, msg=lambda m, f=field: f"{f.name}: {m}")
        assert not ours[tokens:].any(), f"{field.name} is not zero past the clip's tokens"


SAMPLES = [16000, 9001, 640, 25600, 479, 480, 0, 1, 12345]


def test_encode_in_a_batch_is_encode_alone(any_model):
    clips = [tone(samples, seed) for seed, samples in enumerate(SAMPLES)]
    latents = any_model.encode(*padded(clips, 30000)[:1], lengths=padded(clips, 30000)[1], features=True)
    assert latents.lengths.tolist() == [any_model.config.token_count(samples) for samples in SAMPLES]
    assert latents.z.shape[1] == int(latents.lengths.max())
    for row, clip in enumerate(clips):
        assert_same_clip(latents, row, any_model.encode(clip, features=True))


def test_decode_in_a_batch_is_decode_alone(any_model):
    tokens = [9, 30, 0, 1, 2, 17]
    z = torch.randn(len(tokens), 33, any_model.config.latent_dim)
    for row, count in enumerate(tokens):
        z[row, count:] = NAN
    audio = any_model.decode(z, lengths=torch.tensor(tokens))
    assert audio.shape == (len(tokens), 33 * any_model.samples_per_token)
    for row, count in enumerate(tokens):
        alone = any_model.decode(z[row : row + 1, :count])
        samples = count * any_model.samples_per_token
        assert alone.shape == (1, samples)
        torch.testing.assert_close(
            audio[row, :samples], alone[0], rtol=1e-5, atol=1e-5 * max(float(alone.abs().max()) if count else 0, 1)
        )
        assert not audio[row, samples:].any()


def test_reconstruct_in_a_batch_is_reconstruct_alone(any_model):
    clips = [tone(samples, seed) for seed, samples in enumerate(SAMPLES)]
    batch, lengths = padded(clips, 27000)
    audio = any_model.reconstruct(batch, lengths=lengths)
    assert audio.shape == (len(clips), max(SAMPLES))
    for row, clip in enumerate(clips):
        alone = any_model.reconstruct(clip)
        assert alone.shape == (1, len(clip))
        scale = float(alone.abs().max()) if len(clip) else 1.0
        torch.testing.assert_close(audio[row, : len(clip)], alone[0], rtol=1e-5, atol=1e-5 * max(scale, 1.0))
        assert not audio[row, len(clip) :].any()


def test_the_last_samples_of_a_clip_are_reconstructed(model):
    # 100 samples into a token: encode alone has no token for them, reconstruct does.
    clip = tone(640 * 5 + 100)
    assert model.config.token_count(len(clip)) == 5
    assert model.reconstruct(clip)[0, 640 * 5 :].abs().min() > 0
    whole = tone(640 * 5)
    torch.testing.assert_close(model.reconstruct(whole), model.decode(model.encode(whole)))


@settings(max_examples=15, deadline=None)
@given(
    samples=st.lists(st.integers(0, 6000), min_size=1, max_size=4),
    extra=st.integers(0, 2000),
    fill=st.sampled_from([NAN, 0.0, 1e30, float("inf")]),
)
def test_any_batch_and_any_padding(samples, extra, fill):
    clips = [tone(n, seed) for seed, n in enumerate(samples)]
    batch, lengths = padded(clips, max(samples) + extra, fill)
    latents = MODEL.encode(batch, lengths=lengths, features=True)
    audio = MODEL.decode(latents)
    for row, clip in enumerate(clips):
        alone = MODEL.encode(clip, features=True)
        assert_same_clip(latents, row, alone)
        heard = MODEL.decode(alone)[0]
        scale = max(1.0, float(heard.abs().max())) if len(heard) else 1.0
        torch.testing.assert_close(audio[row, : len(heard)], heard, rtol=1e-5, atol=2e-5 * scale)


MODEL = lively(LoSATok(small_config(chunk_frames=32, chunk_batch=3)))


def test_top_db_is_per_clip(model):
    # 70 dB of loudness apart with a silent half each: a shared floor would lift the quiet clip's silence.
    loud, quiet = tone(8000, 1) * 300, tone(8000, 2) * 1e-5
    loud[4000:], quiet[4000:] = 0, 0
    together = model.encode(torch.stack([loud, quiet]), features=True)
    assert_same_clip(together, 1, model.encode(quiet, features=True))
    assert_same_clip(together, 0, model.encode(loud, features=True))


def test_a_long_clip_is_the_concatenation_of_its_chunks(chunked):
    encoder = chunked.semantic_encoder
    audio = tone(640 * 19)[None]
    features, lengths = encoder(audio, torch.tensor([audio.shape[1]]))
    mel, _ = encoder.mel(audio, torch.tensor([audio.shape[1]]))
    assert lengths.tolist() == [19]
    for start in range(0, 19, 8):  # 8, 8 and 3 tokens
        stop = min(start + 8, 19)
        patches = mel[:, 4 * start : 4 * stop].unflatten(1, (-1, 4)).transpose(2, 3)
        alone = encoder.encode_chunks(patches, None)
        torch.testing.assert_close(features[:, start:stop], alone, rtol=1e-5, atol=1e-5)
    # Chunks do not see each other: another first chunk leaves the last as it was.
    other = audio.clone()
    other[:, :2000] = tone(2000, 5)
    changed, _ = encoder(other, torch.tensor([audio.shape[1]]))
    torch.testing.assert_close(changed[:, 8:], features[:, 8:], rtol=1e-5, atol=1e-5)
    assert (changed[:, :8] - features[:, :8]).abs().max() > 0.1


def test_chunks_pass_a_few_at_a_time_and_empty_ones_never(chunked, monkeypatch):
    encoder = chunked.semantic_encoder
    encode, sizes = encoder.encode_chunks, []

    def counted(patches, lengths):
        sizes.append(patches.shape[:2])
        return encode(patches, lengths)

    monkeypatch.setattr(encoder, "encode_chunks", counted)
    # 27, 8, 8 and 1 tokens in chunks of 8: 4 clips have a first chunk, one a second, third and fourth (of 3).
    audio, lengths = padded([tone(640 * tokens) for tokens in (27, 8, 8, 1)], 640 * 27)
    encoder(audio, lengths)
    assert sizes == [(3, 8), (1, 8), (1, 8), (1, 8), (1, 3)]


def test_published_chunks_are_ten_seconds(model):
    assert model.semantic_encoder.chunk_tokens == 252
    clip = tone(16000 * 11)
    latents = model.encode(clip, features=True)
    assert latents.lengths.tolist() == [275]
    # The first chunk sees nothing of the last second (but for the mel window around the seam).
    changed = clip.clone()
    changed[162000:] *= -0.5
    again = model.encode(changed, features=True)
    torch.testing.assert_close(latents.semantic[:, :252], again.semantic[:, :252], rtol=1e-5, atol=1e-5)
    assert (latents.semantic[:, 252:] - again.semantic[:, 252:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("lengths", [None, (200, 131), (200, 0)])
def test_decoding_in_blocks_is_decoding_at_once(any_model, lengths):
    z = torch.randn(2, 200, any_model.config.latent_dim)
    lengths = None if lengths is None else torch.tensor(lengths)
    with torch.no_grad():
        at_once = any_model.decoder(z, lengths)
        blocks = any_model.decoder.decode_long(z, lengths, block_tokens=37)
    torch.testing.assert_close(blocks, at_once, rtol=1e-5, atol=1e-5 * float(at_once.abs().max()))


def test_the_decoder_sees_as_far_as_it_says(model):
    z = torch.randn(1, 80, model.config.latent_dim)
    changed = z.clone()
    changed[:, 40] += 10.0
    difference = (model.decode(z) - model.decode(changed)).abs().amax(0).view(80, -1).amax(1)
    reach = (difference > 0).nonzero().flatten()
    # conv k7, two ConvNeXt blocks of k7 and 2 frames of the inverse STFT: 11 frames of half a token.
    assert (int(reach.min()), int(reach.max())) == (40 - 6, 40 + 6)
    assert model.decoder.context_tokens >= 6


def test_losses_do_not_depend_on_padding(any_model):
    clips = [tone(samples, seed) for seed, samples in enumerate([16000, 9001, 5120, 480])]
    short, lengths = padded(clips, 16000)
    long, _ = padded(clips, 22000)
    losses = [losses_of(any_model, batch, lengths, sembo=True, sample=False) for batch in (short, long)]
    for name, loss in losses[0].items():
        assert torch.isfinite(loss), name
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_losses_of_a_batch_are_means_over_its_frames(model):
    clips = [tone(640 * 20, 1), tone(640 * 10, 2)]
    batch, lengths = padded(clips, 640 * 20)
    together = losses_of(model, batch, lengths, sample=False)
    alone = [losses_of(model, clip[None], sample=False) for clip in clips]
    for name in ("semantic_high", "semantic_low", "kl"):
        mean = (20 * alone[0][name] + 10 * alone[1][name]) / 30
        torch.testing.assert_close(together[name], mean, rtol=1e-5, atol=1e-7)
    assert min(a["mel"] for a in alone) < together["mel"] < max(a["mel"] for a in alone)
