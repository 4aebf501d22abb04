"""Sounds of the page: no longer than it shows, no louder than a file holds."""

import io

import pytest
import soundfile

from losatok_ext.evaluation.reporting.sounds import make_sound
from small_models import tone


def test_long_and_loud_audio_is_cut_and_clipped():
    sound = make_sound("x", 4 * tone(20 * 16_000), 16_000)
    audio, _ = soundfile.read(io.BytesIO(sound.audio))
    assert len(audio) == 12 * 16_000
    assert sound.seconds == 12
    assert abs(audio).max() == pytest.approx(1, abs=1e-4)
