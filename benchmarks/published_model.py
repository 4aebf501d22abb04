# ruff: noqa: D101, D102 - the parts and their names are those of the checkpoint
"""The published model as its authors' inference code computes it, in plain eager PyTorch: ours is measured against it.

Written anew from the paper (arXiv 2605.27840) and the layout of the checkpoint, whose names it has, so that
``load_state_dict(model.to_reference_state_dict())`` gives it our weights. It keeps what costs the published code its
time: convolutions channels-first with transposes between, attention by [B, heads, T, T] in float32, the inverse STFT's
envelope folded and checked at each call. Inference only, one length for all clips.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.models import LoSATokConfig


class Spectrogram(nn.Module):
    def __init__(self, n_fft: int, hop: int, power: float) -> None:
        super().__init__()
        self.hop, self.power = hop, power
        self.register_buffer("window", torch.empty(n_fft))

    def forward(self, audio: Tensor) -> Tensor:
        size = self.window.numel()
        spectrum = torch.stft(
            audio, size, self.hop, size, self.window, center=True, pad_mode="reflect", return_complex=True
        )
        return spectrum.abs() ** self.power


class MelScale(nn.Module):
    def __init__(self, bins: int, mels: int) -> None:
        super().__init__()
        self.register_buffer("fb", torch.empty(bins, mels))

    def forward(self, spectrogram: Tensor) -> Tensor:
        return (spectrogram.transpose(-1, -2) @ self.fb).transpose(-1, -2)


class MelSpectrogram(nn.Module):
    def __init__(self, n_fft: int, mels: int, hop: int, power: float) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(n_fft, hop, power)
        self.mel_scale = MelScale(n_fft // 2 + 1, mels)

    def forward(self, audio: Tensor) -> Tensor:
        return self.mel_scale(self.spectrogram(audio))


class Decibels(nn.Module):
    """The cut-off is taken over the whole batch, as it is there."""

    def __init__(self, top_db: float) -> None:
        super().__init__()
        self.top_db = top_db

    def forward(self, power: Tensor) -> Tensor:
        decibels = 10 * power.clamp(min=1e-10).log10()
        return torch.maximum(decibels, decibels.max() - self.top_db)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, time, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).float() * (dim // self.heads) ** -0.5
        return self.proj((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(batch, time, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, dim: int, mels: int, frames: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, (mels, frames), stride=(mels, frames))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DashengEncoder(nn.Module):
    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        dim, mels = config.embed_dim, config.semantic_mels
        self.chunk = config.chunk_frames
        self.front_end = nn.Sequential(
            MelSpectrogram(config.semantic_n_fft, mels, config.hop_length, 2.0), Decibels(config.top_db)
        )
        self.init_bn = nn.Sequential(nn.Identity(), nn.BatchNorm2d(mels))
        self.patch_embed = Patches(dim, mels, 4)
        self.time_pos_embed = nn.Parameter(torch.empty(1, dim, 1, config.chunk_frames // 4))
        self.freq_pos_embed = nn.Parameter(torch.empty(1, dim, 1, 1))
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, dim * config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, audio: Tensor) -> Tensor:
        mel = self.front_end(audio)
        mel = self.init_bn(mel[:, :, None]).transpose(1, 2)  # over the bins, as channels; then [B, 1, bins, frames]
        chunks = [self.encode(chunk) for chunk in mel.split(self.chunk, dim=-1) if chunk.shape[-1] >= 4]
        return torch.cat(chunks, dim=1)

    def encode(self, mel: Tensor) -> Tensor:
        x = self.patch_embed(mel)
        x = x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class SemanticEncoder(nn.Module):
    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        self.encoder = DashengEncoder(config)
        wide, hidden, low = config.embed_dim, config.bottleneck_dim, config.latent_dim
        self.bottleneck = nn.ModuleDict(
            {
                "downsample": nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, low)),
                "upsample": nn.Sequential(nn.Linear(low, hidden), nn.GELU(), nn.Linear(hidden, wide)),
            }
        )


class AcousticEncoder(nn.Module):
    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        mel = MelSpectrogram(config.acoustic_n_fft, config.acoustic_mels, config.hop_length, 1.0)
        self.front_end = nn.ModuleDict({"mel_spec": mel})
        patch = config.acoustic_mels, config.acoustic_patch
        self.patch_embed = nn.Conv2d(1, config.embed_dim, patch, stride=patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-5)

    def forward(self, audio: Tensor) -> Tensor:
        mel = self.front_end["mel_spec"](audio).clamp(min=1e-7).log()
        return self.norm(self.patch_embed(mel[:, None]).flatten(2).transpose(1, 2))


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.dwconv(x).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(hidden)))).transpose(1, 2)


class Backbone(nn.Module):
    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.embed = nn.Conv1d(config.embed_dim, dim, 7, padding=3)
        self.norm, self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.convnext = nn.ModuleList(ConvNeXtBlock(dim, config.decoder_hidden) for _ in range(config.decoder_depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class ISTFT(nn.Module):
    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("window", torch.empty(n_fft))

    def forward(self, spectrum: Tensor) -> Tensor:
        size, hop, frames = self.window.numel(), self.hop, spectrum.shape[-1]
        pad, length = (size - hop) // 2, (frames - 1) * hop + size
        waves = torch.fft.irfft(spectrum, size, dim=1) * self.window[None, :, None]
        audio = F.fold(waves, (1, length), (1, size), stride=(1, hop))[:, 0, 0, pad : length - pad]
        squares = self.window.square().expand(1, frames, -1).transpose(1, 2)
        envelope = F.fold(squares, (1, length), (1, size), stride=(1, hop)).squeeze()[pad : length - pad]
        assert (envelope > 1e-11).all()
        return audio / envelope


class Head(nn.Module):
    def __init__(self, dim: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, n_fft + 2)
        self.istft = ISTFT(n_fft, hop)

    def forward(self, x: Tensor) -> Tensor:
        log_magnitude, phase = self.out(x).transpose(1, 2).float().chunk(2, dim=1)
        magnitude = log_magnitude.exp().clip(max=1e2)
        return self.istft(magnitude * (torch.cos(phase) + 1j * torch.sin(phase)))


class VocosDecoder(nn.Module):
    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = Head(config.decoder_dim, config.istft_n_fft, config.istft_hop)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Tokenizer(nn.Module):
    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        self.encoder = AcousticEncoder(config)
        factor = config.upsample_tokens
        self.upsampler = nn.ConvTranspose1d(config.latent_dim, config.embed_dim, factor, stride=factor)
        self.decoder = VocosDecoder(config)


class PublishedLoSATok(nn.Module):
    """encode: audio [B, N] to mu [B, T, d]; decode: z [B, T, d] to audio [B, samples_per_token T]. 25 Hz only."""

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        self.semantic_encoder = SemanticEncoder(config)
        self.dasheng_tokenizer = Tokenizer(config)
        self.fc_a = nn.Linear(config.embed_dim, config.latent_dim)
        self.fc_mu = nn.Linear(config.latent_dim, config.latent_dim)
        self.fc_logvar = nn.Linear(config.latent_dim, config.latent_dim)

    def encode(self, audio: Tensor) -> Tensor:
        semantic = self.semantic_encoder.bottleneck["downsample"](self.semantic_encoder.encoder(audio))
        acoustic = self.fc_a(self.dasheng_tokenizer.encoder(audio))
        time = min(semantic.shape[1], acoustic.shape[1])
        unified = acoustic[:, :time] + semantic[:, :time]
        self.fc_logvar(unified).clamp(-20, 20)  # computed there too
        return self.fc_mu(unified)

    def decode(self, z: Tensor) -> Tensor:
        return self.dasheng_tokenizer.decoder(self.dasheng_tokenizer.upsampler(z.transpose(1, 2)))
