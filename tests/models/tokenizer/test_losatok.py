"""The tokenizer's face: shapes, dtypes, training, bad input."""

import copy
import pickle

import pytest
import torch

from losatok_ext.errors import UserError
from losatok_ext.models import Latents, LoSATok, LoSATokConfig
from small_models import lively, losses_of, small_config, tone


def test_shapes_and_dtypes(model):
    audio = tone(16000)
    for given in (audio, audio[None], audio[None, None], audio[None].double(), audio.bfloat16()):
        latents = model.encode(given)
        assert latents.z.shape == latents.mu.shape == latents.logvar.shape == (1, 25, 8)
        assert latents.z.dtype == torch.float32
        assert latents.lengths.dtype == torch.int64
        assert latents.semantic is None
        assert latents.unified_low is None
        assert not latents.z.requires_grad
    decoded = model.decode(latents.z)
    assert decoded.shape == (1, 16000)
    assert decoded.dtype == torch.float32
    assert (model.sample_rate, model.frame_rate, model.samples_per_token) == (16000, 25, 640)
    torch.testing.assert_close(model.decode(latents), decoded)


def test_fifty_tokens_per_second(model50):
    latents = model50.encode(tone(16000), features=True)
    # 101 mel frames: 25 semantic tokens, interpolated to 50, and 50 acoustic ones.
    assert latents.z.shape == (1, 50, 8)
    assert latents.semantic.shape == latents.acoustic.shape == (1, 50, 32)
    assert model50.decode(latents).shape == (1, 16000)
    features, lengths = model50.teacher(tone(16000))
    assert features.shape == (1, 25, 32)
    assert lengths.tolist() == [25]


@pytest.mark.parametrize("samples", [0, 1, 2, 160, 479])
def test_less_than_a_token_is_no_token(model, samples):
    latents = model.encode(tone(samples), features=True)
    assert latents.z.shape == (1, 0, 8)
    assert latents.semantic.shape == (1, 0, 32)
    assert latents.lengths.tolist() == [0]
    assert model.decode(latents).shape == (1, 0)
    assert model.reconstruct(tone(samples)).shape == (1, samples)


@pytest.mark.parametrize("samples", [480, 500, 512, 513, 640])
def test_clips_shorter_than_the_windows_have_finite_tokens(model, samples):
    latents = model.encode(tone(samples))
    assert latents.z.shape == (1, 1, 8)
    assert torch.isfinite(latents.z).all()
    assert torch.isfinite(model.decode(latents)).all()


def test_an_empty_batch(model):
    latents = model.encode(torch.zeros(0, 16000))
    assert latents.z.shape[0] == 0
    assert model.decode(latents).shape[0] == 0
    assert model.decode(torch.zeros(0, 5, 8)).shape == (0, 3200)
    assert model.reconstruct(torch.zeros(0, 16000)).shape[0] == 0


def test_silence_is_finite(model):
    latents = model.encode(torch.zeros(2, 16000), features=True)
    assert torch.isfinite(latents.semantic).all()
    assert torch.isfinite(model.decode(latents)).all()


def test_sampling(model):
    audio = tone(16000)
    latents = model.encode(audio, sample=True, generator=torch.Generator().manual_seed(3))
    again = model.encode(audio, sample=True, generator=torch.Generator().manual_seed(3))
    assert torch.equal(latents.z, again.z)
    noise = (latents.z - latents.mu) / (0.5 * latents.logvar).exp()
    assert abs(float(noise.mean())) < 0.3
    assert 0.7 < float(noise.std()) < 1.3
    assert torch.equal(model.encode(audio).z, model.encode(audio).mu)


def test_another_sample_rate_is_resampled_clip_by_clip(model):
    soxr = pytest.importorskip("soxr")
    clips = [tone(44100, 1), tone(22050, 2)]
    batch = torch.full((2, 50000), float("nan"))
    batch[0, :44100], batch[1, :22050] = clips
    latents = model.encode(batch, sample_rate=44100, lengths=torch.tensor([44100, 22050]))
    assert latents.lengths.tolist() == [25, 12]
    for row, clip in enumerate(clips):
        alone = model.encode(torch.from_numpy(soxr.resample(clip.numpy(), 44100, 16000)))
        tokens = int(latents.lengths[row])
        torch.testing.assert_close(latents.z[row, :tokens], alone.z[0, :tokens], rtol=1e-4, atol=1e-4)
    audio = model.reconstruct(batch, sample_rate=44100, lengths=torch.tensor([44100, 22050]))
    assert audio.shape == (2, 16000)
    assert not audio[1, 8000:].any()
    for rate in (0, 2**62, "16 kHz", torch.tensor([16_000, 16_000])):  # of 2**62 Hz soxr would not come to an end
        with pytest.raises(ValueError, match="sample_rate should be a whole number of Hz from 1000 to 1000000"):
            model.encode(clips[0], sample_rate=rate)


def test_seed_decides_the_weights():
    def build(seed):
        torch.manual_seed(seed)
        return LoSATok(small_config())

    assert build(1).fingerprint() == build(1).fingerprint()
    assert build(1).fingerprint() != build(2).fingerprint()


def test_gradients_reach_what_trains_and_nothing_else():
    model = lively(LoSATok(small_config()))
    model.train()
    audio = torch.stack([tone(6400, 1), tone(6400, 2)])
    losses = losses_of(model, audio, lengths=torch.tensor([6400, 5000]), sembo=True)
    assert set(losses) == {"mel", "semantic_high", "semantic_low", "kl", "sembo_reconstruction", "sembo_relation"}
    for name, loss in losses.items():
        assert loss.dim() == 0, name
        assert loss.dtype == torch.float32, name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("semantic_encoder."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("mel", {"acoustic_encoder", "fc_a", "fc_mu", "fc_logvar", "decoder", "bottleneck"}),
        ("semantic_high", {"acoustic_encoder"}),
        ("semantic_low", {"acoustic_encoder", "fc_a"}),
        ("kl", {"acoustic_encoder", "fc_a", "fc_mu", "fc_logvar", "bottleneck"}),
        ("sembo_reconstruction", {"bottleneck"}),
        ("sembo_relation", {"bottleneck"}),
    ],
)
def test_each_loss_trains_its_parts(model, loss, parts):
    model = copy.deepcopy(model)
    losses_of(model, tone(6400), sembo=True)[loss].backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == parts


def test_train_only(model):
    model = copy.deepcopy(model)
    sembo = model.train_only("sembo")
    assert {id(p) for p in sembo} == {id(p) for p in model.bottleneck.parameters()}
    model.train_only("tokenizer")
    losses_of(model, tone(6400))["mel"].backward()
    assert all(p.grad is None for p in model.bottleneck.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())
    with pytest.raises(ValueError, match="stage"):
        model.train_only("generator")


def test_the_semantic_encoder_never_trains(model):
    model = copy.deepcopy(model)
    audio = tone(6400)
    before, _ = model.teacher(audio)
    stored = copy.deepcopy(model.semantic_encoder.state_dict())
    model.train()
    assert not any(module.training for module in model.semantic_encoder.modules())
    model(audio)
    assert all(torch.equal(t, stored[name]) for name, t in model.semantic_encoder.state_dict().items())
    assert torch.equal(model.teacher(audio)[0], before)


def test_given_teacher_features_are_used(model):
    audio = torch.stack([tone(6400, 1), tone(6400, 2)])
    plain = losses_of(model, audio, sample=False)
    given = losses_of(model, audio, sample=False, features=model.teacher(audio))
    for name, loss in plain.items():
        torch.testing.assert_close(given[name], loss)
    features, lengths = model.teacher(audio)
    other = losses_of(model, audio, sample=False, features=(features.flip(0), lengths))
    assert abs((other["semantic_high"] - plain["semantic_high"]).item()) > 1e-3


def test_a_few_steps_lower_the_losses():
    torch.manual_seed(0)
    model = LoSATok(small_config())
    audio = torch.stack([tone(6400, seed) for seed in range(2)])
    optimizer = torch.optim.AdamW(model.train_only("tokenizer"), lr=1e-2)
    history = []
    for _ in range(10):
        losses = losses_of(model, audio, sample=True)
        optimizer.zero_grad()
        (45 * (losses["mel"] + losses["semantic_high"] + losses["semantic_low"]) + 0.01 * losses["kl"]).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert history[-1]["mel"] < 0.6 * history[0]["mel"]
    assert history[-1]["semantic_high"] < 0.8 * history[0]["semantic_high"]


def test_a_fresh_model_is_well_scaled():
    torch.manual_seed(0)
    model = LoSATok(LoSATokConfig.preset("tiny"))
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 6e6
    latents = model.encode(tone(32000), features=True)
    assert 0.05 < float(latents.z.std()) < 5
    assert 0.3 < float(latents.semantic.std()) < 3
    audio = model.decode(latents)
    assert 1e-4 < float(audio.abs().max()) < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(model, dtype):
    half = copy.deepcopy(model).to(dtype)
    assert half.semantic_encoder.mel.filters.dtype == torch.float32
    assert torch.equal(half.semantic_encoder.mel.filters, model.semantic_encoder.mel.filters)
    assert half.decoder.head.window.dtype == torch.float32
    audio = torch.stack([tone(16000, 1), tone(16000, 2)])
    lengths = torch.tensor([16000, 9000])
    exact, rounded = model.encode(audio, lengths=lengths), half.encode(audio, lengths=lengths)
    assert rounded.z.dtype == dtype
    assert rounded.lengths.tolist() == exact.lengths.tolist()
    error = (rounded.z.float() - exact.z).norm() / exact.z.norm()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)
    decoded = half.decode(rounded)
    assert decoded.dtype == torch.float32
    assert torch.isfinite(decoded).all()
    if dtype == torch.bfloat16:
        assert half.fingerprint() == model.fingerprint()


def test_training_under_autocast(model):
    model = copy.deepcopy(model).train()
    audio = torch.stack([tone(6400, 1), tone(6400, 2)])
    exact = losses_of(model, audio, sample=False, sembo=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, audio, sample=False, sembo=True)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.02, msg=lambda m, n=name: f"{n}: {m}")
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_copies_and_pickles(model):
    audio = tone(6400)
    expected = model.encode(audio).z
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.encode(audio).z, expected)


def test_attention_takes_the_fused_path(model):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where only the [heads, T, T] path would do
        model.encode(torch.stack([tone(16000), tone(16000)]), lengths=torch.tensor([16000, 8000]))


def test_graphs_without_breaks(model):
    z = torch.randn(2, 20, 8)
    lengths = torch.tensor([20, 11])
    with torch.no_grad():
        decoder = torch.compile(model.decoder, fullgraph=True, backend="eager")
        torch.testing.assert_close(decoder(z, lengths), model.decoder(z, lengths))
        patches = torch.randn(2, 20, 64, 4)
        chunks = torch.compile(model.semantic_encoder.encode_chunks, fullgraph=True, backend="eager")
        torch.testing.assert_close(chunks(patches, lengths), model.semantic_encoder.encode_chunks(patches, lengths))


@pytest.mark.parametrize(
    ("audio", "error", "match"),
    [
        ([0.0, 1.0], TypeError, r"audio should be a torch\.Tensor"),
        (torch.zeros(100, dtype=torch.int16), TypeError, r"int16.*audio\.float\(\) / 32768"),
        (torch.zeros(100, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(2, 2, 100), ValueError, r"\[B, 1, N\]"),
        (torch.tensor(0.0), ValueError, r"\[N\]"),
        (torch.tensor([0.0, float("nan")] * 400), UserError, "NaN or infinity within clip 0"),
        (torch.stack([torch.zeros(900), torch.full((900,), float("inf"))]), UserError, "within clip 1"),
    ],
)
def test_bad_audio(model, audio, error, match):
    for method in (model.encode, model.reconstruct, model.teacher):
        with pytest.raises(error, match=match):
            method(audio)


@pytest.mark.parametrize(
    ("lengths", "error", "match"),
    [
        (torch.tensor([801, 3]), ValueError, r"lengths should lie within 0\.\.800"),
        (torch.tensor([-1, 3]), ValueError, "lengths"),
        (torch.tensor([3]), ValueError, "lengths should have shape"),
        (torch.tensor([3.0, 4.0]), TypeError, "lengths should be int64"),
        ([3, 4.5], TypeError, "lengths should be whole numbers"),
    ],
)
def test_bad_lengths(model, lengths, error, match):
    audio = torch.zeros(2, 800)
    with pytest.raises(error, match=match):
        model.encode(audio, lengths=lengths)
    with pytest.raises(error, match=match):
        model.decode(torch.zeros(2, 800, 8), lengths=lengths)


@pytest.mark.parametrize(
    ("z", "error", "match"),
    [
        (torch.zeros(1, 5, 7), ValueError, r"d = 8, got \[1, 5, 7\]"),
        (torch.zeros(5, 8), ValueError, r"\[B, T, d\]"),
        (torch.zeros(1, 5, 8, dtype=torch.int64), TypeError, "floating-point"),
        ("latents.npz", TypeError, "Latents, got str"),
        (torch.full((1, 5, 8), float("nan")), UserError, "z holds NaN"),
    ],
)
def test_bad_latents(model, z, error, match):
    with pytest.raises(error, match=match):
        model.decode(z)


def test_latents_move(model):
    latents = model.encode(tone(1600), features=True).to("meta")
    assert isinstance(latents, Latents)
    assert latents.z.device.type == latents.unified.device.type == "meta"
    assert model.encode(tone(1600)).to("meta").semantic is None
