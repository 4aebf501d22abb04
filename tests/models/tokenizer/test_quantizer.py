"""A model with a quantizer: codes and what they stand for, training through it, and its name."""

import dataclasses
import json

import pytest
import torch

from losatok_ext.errors import CheckpointError, ConfigError, UserError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.checkpoint import digest
from losatok_ext.models.tokenizer.stored_tokenizer import fingerprint_of
from losatok_ext.nn import (
    AffineConfig,
    FSQConfig,
    GroupedConfig,
    LFQConfig,
    ResidualFSQConfig,
    ResidualLFQConfig,
    ResidualVQConfig,
    SimVQConfig,
    VQConfig,
)
from losatok_ext.nn.quantizers.codebooks import Codebooks
from small_models import lively, losses_of, small_config, tone

KINDS = {
    "vq": (VQConfig(codebook_size=16, kmeans=False), "vq 16", (16,)),
    "rvq": (ResidualVQConfig(codebook_size=16, stages=3, kmeans=False), "rvq 3x16", (16,) * 3),
    "simvq": (SimVQConfig(codebook_size=16), "simvq 16", (16,)),
    "simvq stages": (SimVQConfig(codebook_size=16, stages=2), "simvq 2x16", (16, 16)),
    "grouped": (
        GroupedConfig(2, ResidualVQConfig(codebook_size=16, stages=3, kmeans=False)),
        "2 groups of rvq 3x16",
        (16,) * 6,
    ),
    "grouped affine": (GroupedConfig(2, AffineConfig()), "2 groups of affine 8", (256,) * 8 + (2**32,) * 4),
    "fsq": (FSQConfig(levels=(8, 5, 3)), "fsq 8,5,3", (120,)),
    "several fsq": (FSQConfig(levels=(4, 3), num_codebooks=2), "fsq 2x4,3", (12, 12)),
    "lfq": (LFQConfig(bits=6), "lfq 6", (64,)),
    "rfsq": (ResidualFSQConfig(levels=(8, 5, 3), stages=2), "rfsq 2x8,5,3", (120, 120)),
    "rlfq": (ResidualLFQConfig(bits=6, stages=2), "rlfq 2x6", (64, 64)),
    "affine": (AffineConfig(bits=4), "affine 4", (16,) * 8 + (2**32,) * 2),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def quantized(model, kind):
    return model.with_quantizer(kind[0])


def clips():
    return torch.stack([tone(9000, 1), tone(9000, 2)]), torch.tensor([9000, 5000])


def test_latents_become_codes_and_what_they_stand_for(model, quantized, kind):
    _, name, sizes = kind
    audio, lengths = clips()
    plain, latents = model.encode(audio, lengths=lengths), quantized.encode(audio, lengths=lengths)
    assert torch.equal(latents.mu, plain.mu)  # the mean is as it was
    assert plain.codes is None
    codes = latents.codes.flatten(2) if latents.codes.dim() == 3 else latents.codes[..., None]
    assert codes.shape == (2, 14, len(sizes))
    assert (quantized.quantizer_name, quantized.code_sizes) == (name, sizes)
    tokens = latents.lengths.tolist()
    for clip, count in enumerate(tokens):
        inside = codes[clip, :count]
        assert (inside >= 0).all()
        assert (inside < torch.tensor(sizes)).all()
        assert (codes[clip, count:] == -1).all()
        assert not latents.z[clip, count:].any()
    torch.testing.assert_close(quantized.dequantize(latents.codes), latents.z, rtol=0, atol=0)
    torch.testing.assert_close(quantized.dequantize(codes), latents.z, rtol=0, atol=0)  # [B, T, 1] stands for [B, T]
    z, again = quantized.quantize(latents.mu, latents.lengths)
    assert torch.equal(z, latents.z)
    assert torch.equal(again, latents.codes)
    decoded = quantized.decode(latents)
    assert torch.equal(decoded, model.decode(latents.z, latents.lengths))
    assert not torch.equal(decoded, model.decode(plain))


def test_a_clips_codes_are_its_own(quantized):
    audio, lengths = clips()
    padded = audio.clone()
    padded[1, 5000:] = torch.nan
    together = quantized.encode(padded, lengths=lengths)
    alone = quantized.encode(audio[1:, :5000])
    count = int(alone.lengths[0])
    if "affine" not in quantized.quantizer_name:  # whose scales are bits of numbers that differ in rounding
        assert torch.equal(together.codes[1, :count], alone.codes[0])
    torch.testing.assert_close(together.z[1, :count], alone.z[0], rtol=1e-4, atol=1e-4)


def test_reconstruction_hears_the_quantized_latent(model, quantized):
    audio = tone(9000)
    latents = quantized.encode(torch.nn.functional.pad(audio, (0, 9600 - 9000)))
    expected = model.decode(latents.z)[0, :9000]
    torch.testing.assert_close(quantized.reconstruct(audio)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vq", "rvq", "simvq", "grouped", "fsq", "rfsq", "lfq", "rlfq", "affine"])
def test_training_goes_through_the_quantizer(name):
    config = KINDS[name][0]
    model = lively(LoSATok(small_config(quantizer=config))).train()
    trained = model.train_only("tokenizer")
    audio, lengths = clips()
    losses = losses_of(model, audio, lengths, sample=False)
    assert losses["quantizer"].shape == ()
    assert (losses["quantizer"] != 0) == (name not in ("fsq", "rfsq", "affine"))
    losses["mel"].backward(retain_graph=True)
    gradient = model.fc_mu.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0  # passed the rounding
    if losses["quantizer"].requires_grad:
        losses["quantizer"].backward()
    ours = dict(model.named_parameters())
    assert all(p.requires_grad == (p is q) for p, q in zip(trained, trained, strict=True))
    for part in (n for n in ours if n.startswith("quantizer.")):
        assert ours[part].requires_grad


def test_the_decoder_hears_the_quantized_latent_in_training():
    torch.manual_seed(0)
    model = lively(LoSATok(small_config(quantizer=KINDS["rvq"][0])))
    heard = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].detach()))
    audio, lengths = clips()
    model(audio, lengths, sample=False)
    assert torch.equal(heard[0], model.encode(audio, lengths=lengths).z)


def test_encoding_teaches_the_codebook_nothing_even_in_training_mode():
    model = LoSATok(small_config(quantizer=KINDS["vq"][0])).train()
    before = {name: value.clone() for name, value in model.quantizer.state_dict().items()}
    model.encode(tone(9000))
    model.reconstruct(tone(9000))
    for name, value in model.quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_model_is_saved_with_its_quantizer(tmp_path, quantized):
    quantized.save_pretrained(tmp_path)
    loaded = LoSATok.from_pretrained(tmp_path)
    assert loaded.config == quantized.config
    assert loaded.fingerprint() == quantized.fingerprint()
    assert loaded.quantizer_fingerprint() == quantized.quantizer_fingerprint()
    audio, lengths = clips()
    one, other = (m.encode(audio, lengths=lengths) for m in (quantized, loaded))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.z, other.z)


def test_a_folder_without_the_quantizers_weights_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["quantizer"] = {"kind": "vq", "codebook_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"lacks the tensor quantizer\.codebooks"):
        LoSATok.from_pretrained(tmp_path)


def test_the_fingerprint_names_the_quantizer(model, quantized):
    names = {model.fingerprint(), quantized.fingerprint()}
    assert len(names) == 2
    assert model.quantizer_fingerprint() is None
    before, own = quantized.fingerprint(), quantized.quantizer_fingerprint()
    state = quantized.quantizer.state_dict()
    changed = next((n for n in state if n.endswith(("codes", "project_in.weight"))), None)
    if changed is not None:
        with torch.no_grad():
            state[changed].add_(1.0)
        assert quantized.fingerprint() != before
        assert quantized.quantizer_fingerprint() != own


@pytest.mark.parametrize("name", ["vq", "grouped"])
def test_what_codebooks_learn_from_is_no_part_of_the_fingerprint(model, name):
    ours = model.with_quantizer(KINDS[name][0])
    before = ours.fingerprint()
    with torch.no_grad():
        for part in ours.quantizer.modules():
            if isinstance(part, Codebooks):
                part.usage.mul_(2)
                part.sums.mul_(2)
    assert ours.fingerprint() == before


def test_names_of_quantizers_from_before_have_not_changed():
    """Those of configurations, written down before there were numbers of stages in multiples."""
    names = {
        "e844be3cc465fbe8": VQConfig(),
        "70c66029cac2c764": ResidualVQConfig(dropout=0.5),
        "b0da356189d31c07": FSQConfig(),
        "627ce7e054e52715": LFQConfig(),
        "97a9c301906d47b7": AffineConfig(),
    }
    assert {name: digest(config.to_dict(), {}) for name, config in names.items()} == {name: name for name in names}
    changed = ResidualVQConfig(dropout=0.5, dropout_multiple_of=2)
    assert digest(changed.to_dict(), {}) != "70c66029cac2c764"


def test_groups_have_to_divide_the_latent():
    with pytest.raises(ConfigError, match=r"groups should divide the 8 features of the latent, got 3"):
        small_config(quantizer=GroupedConfig(3))


def test_models_without_a_quantizer_are_as_they_were(model):
    assert "quantizer" not in model.config.to_dict()
    assert not any(name.startswith("quantizer") for name in model.state_dict())
    torch.manual_seed(5)
    plain = LoSATok(small_config())
    torch.manual_seed(5)
    other = LoSATok(small_config(quantizer=KINDS["rvq"][0]))
    for name, value in plain.state_dict().items():  # a quantizer draws its random numbers last
        assert torch.equal(value, other.state_dict()[name]), name
    audio, lengths = clips()
    assert set(losses_of(plain, audio, lengths)) == {"mel", "semantic_high", "semantic_low", "kl"}


def test_fingerprints_of_continuous_models_have_not_changed():
    """That of weights which are a function of their names alone, written down before there were quantizers."""
    config = small_config()
    state = {"a.weight": torch.arange(12.0).view(3, 4) / 8, "b": torch.tensor(1.5), "c": torch.tensor([3])}
    assert fingerprint_of(config, state) == "a737d42bec58b6b0"


def test_a_quantizer_is_taken_off_again(model, quantized):
    assert quantized.with_quantizer(None).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", ["rvq", "simvq", "grouped", "fsq", "rfsq", "lfq", "rlfq"])
def test_a_bfloat16_model_quantizes_what_it_made(name):
    """Latents that went through a file come back in float32, whatever the model's dtype is."""
    model = lively(LoSATok(small_config())).bfloat16().with_quantizer(KINDS[name][0])
    latents = model.encode(tone(9000))
    assert latents.z.dtype == torch.bfloat16
    z, codes = model.quantize(latents.mu.float())
    assert torch.equal(codes, latents.codes)
    assert torch.equal(z, latents.z)
    assert torch.equal(model.dequantize(codes), z)


@pytest.mark.gpu
def test_a_quantizer_lies_where_the_model_does(model):
    there = lively(LoSATok(small_config())).cuda().with_quantizer(KINDS["rvq"][0])
    assert {tensor.device.type for tensor in [*there.parameters(), *there.buffers()]} == {"cuda"}
    audio, lengths = clips()
    latents = there.encode(audio, lengths=lengths)
    assert latents.codes.is_cuda
    assert torch.equal(there.quantize(latents.mu.cpu(), latents.lengths.cpu())[1], latents.codes)


def test_weights_are_shared_and_not_copied(model, quantized):
    assert quantized.fc_mu.weight.data_ptr() == model.fc_mu.weight.data_ptr()


def test_the_published_layout_has_no_quantizer(model, quantized):
    published = quantized.to_reference_state_dict()
    assert published.keys() == model.to_reference_state_dict().keys()
    again = LoSATok.from_reference_checkpoint(published, quantized.config)
    assert again.quantizer_name == quantized.quantizer_name
    assert again.with_quantizer(None).fingerprint() == model.fingerprint()


def test_the_configuration_takes_a_mapping_and_gives_it_back(kind):
    config = small_config(quantizer=kind[0].to_dict())
    assert config.quantizer == kind[0]
    assert LoSATokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert dataclasses.replace(config, quantizer=None) == small_config()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"kind": "pq"}, "quantizer.kind should be one of 'vq'.*got 'pq'"),
        ({"kind": "vq", "size": 3}, "quantizer.size is not a key"),
        ({"kind": "vq", "codebook_size": 0}, "codebook_size should be"),
        ("vq", "should be a mapping"),
    ],
)
def test_a_bad_quantizer_is_named(value, says):
    with pytest.raises(ConfigError, match=says):
        small_config(quantizer=value)


def test_codes_mean_nothing_to_a_model_without_a_quantizer(model):
    with pytest.raises(UserError, match="this model has no quantizer"):
        model.dequantize(torch.zeros(1, 3, dtype=torch.int64))
    mu = torch.randn(1, 3, 8)
    assert model.quantize(mu) == (mu, None)
