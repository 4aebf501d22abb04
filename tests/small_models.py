"""Small models whose weights make large, varied outputs, so that an error cannot hide."""

import json

import torch
from safetensors.torch import save_file

from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.generator import Generator, GeneratorConfig
from losatok_ext.nn.flow_matching import FlowMatching
from losatok_ext.training.stages.losses import tokenizer_losses


def small_config(**overrides):
    values = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "latent_dim": 8,
        "bottleneck_dim": 16,
        "decoder_dim": 24,
        "decoder_depth": 2,
        "decoder_hidden": 48,
        "mel_loss_windows": (128, 512),
        "mel_loss_bins": (20, 40),
    }
    return LoSATokConfig(**{**values, **overrides})


def lively(model):
    """Weights of unit gain: with those of a fresh model attention is nearly uniform and the decoder nearly silent."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                spread = parameter[0].numel() ** -0.5 if parameter.dim() == 2 else 0.3
                parameter.normal_(0, spread, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def save_model(folder, seed=0, **overrides):
    """A small lively LoSATok, saved in ``folder``, which is returned."""
    torch.manual_seed(seed)
    lively(LoSATok(small_config(**overrides))).save_pretrained(folder)
    return folder


def put_weights(folder, state):
    """Other weights into a model folder, as its user may: without the checksum of those that were saved."""
    save_file(state, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    del values["weights_crc32"]
    (folder / "config.json").write_text(json.dumps(values))


def tone(samples, seed=0):
    """A gliding tone in noise, [samples]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    glide = torch.sin(2 * torch.pi * (200 + 90 * seed + 400 * time) * time)
    return 0.3 * glide * (1 + torch.sin(9 * time)) / 2 + 0.02 * torch.randn(samples, generator=generator)


def losses_of(model, audio, lengths=None, sembo=False, **options):
    """The losses of the tokenizer stage for clips, and with ``sembo`` those of the bottleneck too."""
    losses = tokenizer_losses(model, model(audio, lengths, **options))
    return {**losses, **model.sembo_losses(*model.teacher(audio, lengths))} if sembo else losses


def make_generator(folder, fingerprint, **options):
    """A small generator of the latents of the tokenizer of that fingerprint, saved in ``folder``."""
    torch.manual_seed(0)
    dit = DiTConfig(
        latent_dim=8, width=32, depth=1, heads=2, text_layers=1, time_features=16, tokenizer=fingerprint,
        **{"text_dim": 32, "text_bytes": 40, "aligned_dim": 9} | options
    )  # fmt: skip
    lively(Generator(GeneratorConfig(dit, FlowMatching(), context=dit.aligned_dim > 0))).save_pretrained(folder)
    return folder
