"""How long a recording may be, and what happens with damaged ones."""

import io
import warnings

import numpy as np
import pytest
import soundfile
import torch

from losatok_ext.audio.files import audio_info, read_audio, read_audio_with_info
from losatok_ext.audio.reading import MAX_MINUTES, ReadingOptions, reading, reading_options
from losatok_ext.errors import AudioFileError, DamagedAudioWarning, UserError
from losatok_ext.recordings.regions import read_region

FORMATS = ("wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "caf", "rf64")


def noise(samples):
    return 0.1 * np.random.default_rng(0).standard_normal(samples)


def write(path, samples, rate):
    if path.suffix == ".rf64":
        soundfile.write(path, samples, rate, format="RF64")
    else:
        soundfile.write(path, samples, rate)
    return path


def silence(path, minutes, rate=1000):
    return write(path, np.zeros(int(minutes * 60 * rate), np.int16), rate)


def tell_frames(path, frames):
    """Change the number of samples in the header of a FLAC file; 0: not known."""
    raw = bytearray(path.read_bytes())
    told = int.from_bytes(raw[18:26], "big")
    raw[18:26] = ((told >> 36 << 36) | frames).to_bytes(8, "big")
    path.write_bytes(raw)


def test_three_hours_are_read_and_a_week_is_not():
    options = ReadingOptions()
    options.check_length("a.wav", 3 * 3600)
    with pytest.raises(
        AudioFileError, match=r"a\.wav is 10080\.0 minutes long or longer, and the limit is 240 minutes"
    ):
        options.check_length("a.wav", 7 * 24 * 3600)


def test_a_small_file_of_long_silence_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = silence(tmp_path / "a.flac", 2)
    assert path.stat().st_size < 10_000
    assert len(read_audio(path, max_minutes=2)) == 2 * 60 * 16_000
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(
        AudioFileError, match=r"a\.flac is 2\.0 minutes long.* limit is 1\.5 .*--max-minutes \(max_minutes"
    ):
        read_audio(path, max_minutes=1.5)


@pytest.mark.parametrize("told", [0, 100_000], ids=["no length", "a short length"])
def test_the_limit_holds_while_decoding_where_the_header_says_less(tmp_path, monkeypatch, told):
    path = silence(tmp_path / "a.flac", 10)
    tell_frames(path, told)
    read = soundfile.SoundFile.read
    frames = []

    def counted(self, *arguments, **options):
        block = read(self, *arguments, **options)
        frames.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(AudioFileError, match=r"minutes long or longer, and the limit is 1\.5 minutes"):
        read_audio(path, max_minutes=1.5)
    assert sum(frames) < 3 * 60 * 1000


def test_a_header_that_promises_a_year_costs_nothing(tmp_path):
    path = silence(tmp_path / "a.flac", 0.1)
    tell_frames(path, 365 * 24 * 3600 * 1000)
    with pytest.raises(AudioFileError, match=r"is 525600\.0 minutes long or longer"):
        read_audio(path)
    assert audio_info(path).seconds == 365 * 24 * 3600


def test_the_setting_of_the_process_and_the_arguments(tmp_path):
    path = silence(tmp_path / "a.flac", 0.1)
    assert reading_options() == ReadingOptions(MAX_MINUTES, False)
    with reading(max_minutes=0.01):
        with pytest.raises(AudioFileError, match=r"the limit is 0\.01 minutes"):
            read_audio(path)
        with reading(strict=True):
            assert reading_options() == ReadingOptions(0.01, True)
        assert read_audio(path, max_minutes=float("inf")).shape == (96_000,)
    assert reading_options() == ReadingOptions()
    with pytest.raises(RuntimeError), reading(max_minutes=1):
        raise RuntimeError
    assert reading_options() == ReadingOptions()


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_limit_that_is_none(minutes):
    with pytest.raises(UserError, match=r"--max-minutes \(max_minutes\) takes a number above 0, got"):
        reading_options(minutes)


def test_many_channels_take_no_more_memory(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.tile(noise(9_000)[:, None], (1, 600)), 16_000)
    expected = torch.from_numpy(noise(9_000)).float()
    assert (read_audio(tmp_path / "a.wav") - expected).abs().max() < 1e-4


@pytest.mark.parametrize("suffix", [name for name in FORMATS if name != "caf"])
def test_what_is_left_of_a_cut_file_is_read_and_said(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", noise(80_000), 16_000)
    whole = path.read_bytes()
    expected = read_audio(path, strict=True)
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.warns(DamagedAudioWarning) as caught:
        audio, info = read_audio_with_info(path)
    (warning,) = caught
    says = f"{path} is truncated or damaged: {info.damage}; what is left of it is used (--strict refuses it)"
    assert str(warning.message) == says
    assert info.damage.endswith(f", and {len(audio) / 16_000:.2f} s could be decoded")
    assert 0.3 * len(expected) < len(audio) == info.frames < 0.7 * len(expected)
    known = len(audio) - (0 if suffix in ("wav", "flac", "aiff", "au", "w64", "rf64") else 2000)
    torch.testing.assert_close(audio[:known], expected[:known], rtol=0, atol=1e-6)
    with pytest.raises(AudioFileError) as refused:
        read_audio(path, strict=True)
    says = "; copy or download it again, or leave out --strict (strict in Python) to use what is left"
    assert str(refused.value) == f"{path} is truncated or damaged: {info.damage}{says}"


@pytest.mark.parametrize("cut", [1, 3, 100, 1000])
@pytest.mark.parametrize("suffix", [name for name in FORMATS if name != "mp3"])
def test_a_few_lost_bytes_are_noticed(tmp_path, suffix, cut):
    path = write(tmp_path / f"a.{suffix}", noise(16_000), 16_000)
    read_audio(path, strict=True)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(AudioFileError, match="truncated or damaged"):
        read_audio(path, strict=True)


@pytest.mark.parametrize("suffix", FORMATS)
def test_nearly_all_of_a_file_cut_off_is_a_refusal(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", noise(16_000), 16_000)
    for size in (20, 30):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(AudioFileError, match=r"truncated or damaged.*; copy or download it again|is not an audio"):
            read_audio(path)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_zeros_within_a_file_are_noticed(tmp_path, suffix, place):
    path = tmp_path / f"a.{suffix}"
    write(path, noise(160_000), 16_000)
    raw = bytearray(path.read_bytes())
    start, stop = int(place * len(raw)), int((place + 0.1) * len(raw))
    raw[start:stop] = bytes(stop - start)
    path.write_bytes(raw)
    with pytest.warns(DamagedAudioWarning, match=r"a\.(flac|ogg) is truncated or damaged: .* s could be decoded"):
        audio = read_audio(path)
    assert len(audio) < 160_000


def test_a_damaged_file_is_told_once_in_a_process(tmp_path):
    path = write(tmp_path / "a.wav", noise(1600), 16_000)
    path.write_bytes(path.read_bytes()[:-100])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", DamagedAudioWarning)
        for _ in range(3):
            read_audio(path)
    assert len(caught) == 1


class Failing(io.BytesIO):
    """A file on a disk that fails behind a byte."""

    def __init__(self, data, limit):
        super().__init__(data)
        self.limit = limit

    def read(self, count=-1):
        if self.tell() + max(count, 0) > self.limit:
            raise OSError(5, "Input/output error")
        return super().read(count)


@pytest.mark.parametrize("limit", [0, 5000])
@pytest.mark.parametrize("call", [read_audio, lambda path, content: read_region(path, 7000, 500, 16_000, content)])
def test_errors_of_a_part_of_a_shard_are_one_sentence(tmp_path, capfd, limit, call):
    path = write(tmp_path / "a.wav", noise(16_000), 16_000)
    with pytest.raises(AudioFileError, match=r"a\.wav cannot be read: Input/output error; copy or"):
        call(path, content=Failing(path.read_bytes(), limit))
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::losatok_ext.errors.DamagedAudioWarning")
def test_a_damaged_header_may_point_before_the_beginning(tmp_path, capfd):
    """libsndfile then seeks there, and an error in its callback would be printed as a traceback."""
    content = write(tmp_path / "a.wav", noise(2000), 16_000).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        raw = bytearray(content)
        for place in generator.integers(4, 60, 3):
            raw[place] = generator.integers(256)
        for call in (read_audio, lambda path, content: read_region(path, 100, 500, 16_000, content)):
            try:
                call(tmp_path / "a.wav", content=io.BytesIO(raw))
            except AudioFileError:
                continue
    assert capfd.readouterr().err == ""
