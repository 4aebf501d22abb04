"""The XARES adapter, by XARES's own checker where it is installed, and by what it should give."""

import pytest
import torch

from losatok_ext.errors import UserError
from losatok_ext.integrations.xares_encoder import LoSATokEncoder
from losatok_ext.models import LoSATok
from small_models import save_model, tone

FEATURES = ("latents", "semantic", "semantic_low", "acoustic", "acoustic_low", "unified", "unified_low")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("features", FEATURES)
def test_its_own_checker_accepts_the_encoder(folder, features, monkeypatch):
    checker = pytest.importorskip(
        "xares.audio_encoder_checker", reason="xares is not installed: pip install --no-deps xares loguru"
    )
    from xares.utils import attr_from_py_path

    monkeypatch.setenv("LOSATOK_MODEL", str(folder))
    monkeypatch.setenv("LOSATOK_FEATURES", features)
    encoder = attr_from_py_path("losatok_ext/integrations/xares_encoder.py", endswith="Encoder")()
    assert type(encoder).__name__ == "LoSATokEncoder"
    assert checker.check_audio_encoder(encoder)


@pytest.mark.parametrize("features", FEATURES)
def test_it_gives_what_the_model_gives(folder, features):
    encoder = LoSATokEncoder(folder, features)
    audio = torch.stack([tone(25_000, seed) for seed in range(2)])
    latents = LoSATok.from_pretrained(folder).encode(audio, features=True)
    expected = latents.mu if features == "latents" else getattr(latents, features)
    found = encoder(audio)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.shape[2] == encoder.output_dim
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16_000, 40)
    assert found.shape[1] == pytest.approx(25_000 / 16 / encoder.hop_size_in_ms, abs=1)


def test_a_batch_shorter_than_a_token_has_one_frame_and_nothing_trains(folder):
    encoder = LoSATokEncoder(folder).train()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder(torch.zeros(100)).shape == (1, 1, 8)


def test_what_is_missing_is_said(folder, monkeypatch):
    monkeypatch.delenv("LOSATOK_MODEL", raising=False)
    with pytest.raises(UserError, match="set LOSATOK_MODEL"):
        LoSATokEncoder()
    with pytest.raises(UserError, match="LOSATOK_FEATURES takes latents, semantic"):
        LoSATokEncoder(folder, "best")
