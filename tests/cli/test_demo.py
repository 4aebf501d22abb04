"""``losatok demo``, shortened: what it leaves, and that it goes on where it was."""

import numpy as np
import pytest
import soundfile

from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli.demo import RECORDING
from losatok_ext.formats.latent_files import load_latents
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.generator import Generator


@pytest.mark.slow
def test_demo_leaves_a_model_tokens_a_recording_and_a_picture(losatok, tmp_path):
    folder = tmp_path / "demo"
    first = losatok("demo", "-o", folder, "--steps-scale", "0.001")
    assert first.code == 0, first.err
    model = LoSATok.from_pretrained(folder / "model")
    latents = load_latents(folder / "recording.losatok", model.fingerprint())
    assert soundfile.info(folder / "recording.wav").frames == latents.header.samples
    generator = Generator.from_pretrained(folder / "generator" / "model")
    assert generator.dit.config.tokenizer == model.fingerprint()
    assert soundfile.info(folder / "generated.wav").frames == 44800
    before, after = (
        soundfile.read(path, dtype="int16")[0] for path in (sample_folder() / RECORDING, folder / "edited.wav")
    )
    assert np.array_equal(before[:14000], after[:14000])
    assert np.array_equal(before[-12000:], after[-12000:])
    assert not np.array_equal(before, after)
    for picture in ("recording", "generated", "edited"):
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    for name in ("model", "recording.losatok", "recording.wav", "recording.png", "generated.wav", "edited.wav"):
        assert name in first.out
    weights = (folder / "model" / "model.safetensors").read_bytes()

    again = losatok("demo", "-o", folder, "--steps-scale", "0.001")  # trained already: only the recording is done again
    assert again.code == 0, again.err
    assert (folder / "model" / "model.safetensors").read_bytes() == weights


def test_a_recipe_is_not_made_longer_without_end(losatok, tmp_path):
    result = losatok("demo", "-o", tmp_path / "demo", "--steps-scale", "1e300")
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "--steps-scale" in result.err
    assert not (tmp_path / "demo").exists()


def test_a_recording_that_is_not_there_is_said_before_the_training(losatok, tmp_path):
    result = losatok("demo", "-o", tmp_path / "demo", "--recording", tmp_path / "missing.wav")
    assert result.code == 2
    assert "missing.wav" in result.err
    assert not (tmp_path / "demo").exists()
