"""Reading and writing audio: every format, rate and channel count, and every way in which a file can be bad."""

import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from losatok_ext.audio.containers import container_damage
from losatok_ext.audio.files import audio_info, flac_bytes, read_audio, read_audio_with_info, write_audio
from losatok_ext.errors import AudioFileError, UserError
from losatok_ext.files import atomic_path

TONE = 440.0  # Hz


def tone(rate, seconds=1.0, channels=1, amplitude=0.5):
    t = np.arange(int(rate * seconds)) / rate
    x = amplitude * np.sin(2 * np.pi * TONE * t)
    return np.stack([x * (1 - 0.5 * c) for c in range(channels)], 1).squeeze() if channels > 1 else x


def noise(rate, seconds=1.0):
    return 0.3 * np.random.default_rng(0).standard_normal(int(rate * seconds))


def tone_error(audio, rate, amplitude=0.5):
    """Relative error against the ideal tone at ``rate``, away from the ends."""
    ideal = torch.from_numpy(tone(rate, len(audio) / rate, amplitude=amplitude)).float()
    inner = slice(len(audio) // 10, -len(audio) // 10)
    return ((audio - ideal)[inner].norm() / ideal[inner].norm()).item()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_rate_and_channel_count_becomes_16_khz_mono(tmp_path, suffix, rate, channels):
    path = tmp_path / f"with space ü 音.{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate)
    audio, info = read_audio_with_info(path)
    assert audio.dtype == torch.float32
    assert audio.shape == (16_000,)
    assert (info.sample_rate, info.channels, info.frames) == (rate, channels, rate)
    amplitude = 0.5 if channels == 1 else 0.375  # the mean of 0.5 and 0.25
    lossy = suffix in ("ogg", "mp3")
    assert tone_error(audio, 16_000, amplitude) < (0.1 if lossy else 1e-3)


@pytest.mark.parametrize("encoding", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_integer_encodings_are_scaled_to_one(tmp_path, encoding):
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000, subtype=encoding)
    step = {"PCM_U8": 2**-6, "ULAW": 2**-5}.get(encoding, 1e-4)
    assert (read_audio(tmp_path / "a.wav") - torch.from_numpy(tone(16_000)).float()).abs().max() < step


def test_another_target_rate(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(16_000), 16_000)
    audio = read_audio(tmp_path / "a.flac", sample_rate=24_000)
    assert audio.shape == (24_000,)
    assert tone_error(audio, 24_000) < 1e-3


def test_streamed_reading_equals_resampling_at_once(tmp_path):
    from losatok_ext.audio.resample import resample

    x = noise(44_100, 4.7)  # more than three blocks
    soundfile.write(tmp_path / "a.wav", x, 44_100, subtype="FLOAT")
    torch.testing.assert_close(
        read_audio(tmp_path / "a.wav"), resample(torch.from_numpy(x).float(), 44_100, 16_000), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_reading_in_blocks_decodes_as_reading_at_once(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(16_000, 13), 16_000)  # four blocks
    at_once = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    torch.testing.assert_close(read_audio(path), at_once, rtol=0, atol=1e-6)


def test_a_silent_file_is_audio(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8_000)
    audio = read_audio(tmp_path / "a.wav")
    assert audio.shape == (1600,)
    assert not audio.any()


def test_audio_info_reads_the_header(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(44_100, 2, 2), 44_100, subtype="PCM_24")
    info = audio_info(tmp_path / "a.flac")
    assert (info.format, info.encoding, info.channels, info.seconds) == ("FLAC", "PCM_24", 2, 2.0)


def bad_file(kind, folder):
    """Make a bad file and return its path and what the message has to say."""
    path = folder / f"{kind}.wav"
    if kind == "missing":
        return path, "does not exist"
    if kind == "folder":
        path.mkdir()
        return path, "is a folder"
    if kind == "empty":
        path.touch()
        return path, "is empty"
    if kind == "text":
        path.write_text("this is not audio\n" * 50)
        return path, "not an audio file"
    if kind in ("text_mp3", "raw"):
        path = path.with_suffix(".mp3" if kind == "text_mp3" else ".raw")
        path.write_bytes(b"this is not audio\n" * 50)
        return path, "not an audio file"
    if kind == "no_samples":
        soundfile.write(path, np.zeros(0), 16_000)
        return path, "holds 0 samples|holds no samples"
    if kind == "nan":
        x = tone(16_000)
        x[8_000] = np.nan
        soundfile.write(path, x, 16_000, subtype="FLOAT")
        return path, r"NaN or infinite samples \(first at 0\.500 s\)"
    if kind == "infinite_stereo":
        x = tone(16_000, channels=2)
        x[4_000, 1] = np.inf
        soundfile.write(path, x, 16_000, subtype="FLOAT")
        return path, r"NaN or infinite samples \(first at 0\.250 s\)"
    if kind == "header_only":
        soundfile.write(path, tone(16_000), 16_000)
        path.write_bytes(path.read_bytes()[:20])
        return path, "truncated or damaged"
    assert kind == "odd_rate"
    soundfile.write(path, tone(16_000), 16_000)
    raw = bytearray(path.read_bytes())
    raw[24:28] = struct.pack("<I", 3)
    path.write_bytes(raw)
    return path, "sample rate of 3 Hz"


BAD = [
    "missing",
    "folder",
    "empty",
    "text",
    "text_mp3",
    "raw",
    "no_samples",
    "nan",
    "infinite_stereo",
    "header_only",
    "odd_rate",
]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_its_cure(tmp_path, kind):
    path, says = bad_file(kind, tmp_path)
    with pytest.raises(AudioFileError, match=says) as caught:
        read_audio(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_has_no_size_and_is_whole(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16_000), 16_000)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data") + 4
    raw[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(raw)
    assert read_audio(path).shape == (16_000,)


def test_rf64_and_trailing_chunks_are_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000, format="RF64")
    assert container_damage(tmp_path / "a.wav") is None
    assert read_audio(tmp_path / "a.wav").shape == (16_000,)
    soundfile.write(tmp_path / "b.wav", tone(16_000), 16_000)
    with (tmp_path / "b.wav").open("ab") as file:
        file.write(b"LIST" + struct.pack("<I", 4) + b"note")
    assert read_audio(tmp_path / "b.wav").shape == (16_000,)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "au", "w64", "caf"])
def test_a_file_that_ends_within_its_header_is_refused(tmp_path, suffix):
    soundfile.write(tmp_path / f"whole.{suffix}", noise(8_000, 0.2), 8_000)
    whole, cut = (tmp_path / f"whole.{suffix}").read_bytes(), tmp_path / f"cut.{suffix}"
    for size in range(1, 24):
        cut.write_bytes(whole[:size])
        with pytest.raises(AudioFileError, match="cut"):
            read_audio(cut)


@pytest.mark.filterwarnings("ignore::losatok_ext.errors.DamagedAudioWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["wav", "flac", "ogg", "aiff", "au", "w64", "caf"]), data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, suffix, data):
    path = tmp_path / f"whole.{suffix}"
    if not path.exists():
        soundfile.write(path, noise(8_000, 0.2), 8_000)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 200)))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged.{suffix}"
    damaged.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        audio = read_audio(damaged)
    except AudioFileError as error:
        message = str(error)
    else:
        message = str(damaged)
        assert audio.dim() == 1
        assert torch.isfinite(audio).all()
    assert str(damaged) in message


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_read_back(tmp_path, suffix, channels):
    x = torch.from_numpy(np.atleast_2d(tone(16_000, 6, channels).T)).float()
    path = tmp_path / "new folder" / f"ä {channels}.{suffix}"
    write_audio(path, x if channels > 1 else x[0], 16_000)
    audio, info = read_audio_with_info(path)
    assert info.channels == channels
    assert audio.shape == (96_000,)
    assert (audio - x.mean(0)).abs()[1000:-1000].max() < (1e-4 if suffix in ("wav", "flac") else 0.05)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_every_16_bit_sample_comes_back_as_it_was(tmp_path, suffix):
    samples = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(tmp_path / f"in{suffix}", samples, 16000, subtype="PCM_16")
    write_audio(tmp_path / f"out{suffix}", read_audio(tmp_path / f"in{suffix}", 16000), 16000)
    assert np.array_equal(soundfile.read(tmp_path / f"out{suffix}", dtype="int16")[0], samples)
    (tmp_path / "packed.flac").write_bytes(flac_bytes(torch.from_numpy(samples).float() / 32768, 16000))
    assert np.array_equal(soundfile.read(tmp_path / "packed.flac", dtype="int16")[0], samples)


def test_writing_clips_and_does_not_wrap(tmp_path):
    write_audio(tmp_path / "a.wav", torch.tensor([2.0, -2.0, 0.5]), 16_000)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), torch.tensor([1.0, -1.0, 0.5]), rtol=0, atol=1e-4)
    write_audio(tmp_path / "a.wav", torch.tensor([1.0, -1.0, 0.6 * 2**-15, 0.4 * 2**-15]), 16_000)
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [32767, -32768, 1, 0]


@pytest.mark.parametrize(
    ("name", "audio", "rate", "error", "says"),
    [
        ("a.xyz", torch.zeros(8), 16_000, AudioFileError, r"\.xyz is none of \.wav"),
        ("a", torch.zeros(8), 16_000, AudioFileError, "no suffix is none of"),
        ("a.mp3", torch.zeros(8), 96_000, AudioFileError, r"at 96000 Hz.*use \.wav"),
        ("a.wav", torch.zeros(0), 16_000, AudioFileError, "holds no samples"),
        ("a.wav", torch.tensor([0.0, torch.nan]), 16_000, AudioFileError, "NaN or infinite"),
        ("a.wav", torch.zeros(8, dtype=torch.int16), 16_000, TypeError, "floating-point"),
        ("a.wav", torch.zeros(1, 2, 8), 16_000, ValueError, r"shape \[N\] or \[channels, N\]"),
        ("a.wav", torch.zeros(8), 0, ValueError, "sample_rate should be"),
    ],
)
def test_bad_writes_are_refused_and_leave_nothing(tmp_path, name, audio, rate, error, says):
    with pytest.raises(error, match=says):
        write_audio(tmp_path / name, audio, rate)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_audio(path, torch.zeros(100), 16_000)
    old = path.read_bytes()

    def full_disk(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full_disk)
    with pytest.raises(AudioFileError, match="No space left"):
        write_audio(path, torch.ones(100), 16_000)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 64 KiB."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_full_disk_is_never_reported_as_success(small_disk, suffix):
    """The end of a file is written when it is closed, and there libsndfile drops errors."""
    old = small_disk / f"a.{suffix}"
    write_audio(old, torch.zeros(100), 16_000)
    before = old.read_bytes()
    free = 65_536 - 4096 * 2
    sound = torch.from_numpy(noise(16_000, 20)).float()
    for taken in (free - 4096, free // 2, 0):
        (small_disk / "other").write_bytes(b"x" * taken)
        with pytest.raises(AudioFileError, match=rf"a\.{suffix} cannot be written: No space left on device"):
            write_audio(old, sound, 16_000)
        assert old.read_bytes() == before
        assert sorted(path.name for path in small_disk.iterdir()) == [f"a.{suffix}", "other"]
    for path in small_disk.iterdir():
        path.unlink()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("left", [0, 1, 200, -1])
def test_a_write_that_fails_at_any_place_is_noticed(tmp_path, monkeypatch, suffix, left):
    """``left``: bytes that go through; -1 is all but the last."""
    resource = pytest.importorskip("resource")
    path, sound = tmp_path / f"a.{suffix}", torch.from_numpy(noise(16_000)).float()
    write_audio(path, sound, 16_000)
    size = path.stat().st_size
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left if left >= 0 else size - 1, hard))
    try:
        with pytest.raises(AudioFileError, match="cannot be written: File too large"):
            write_audio(path, sound, 16_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "characters"), [("a" * 250, 254), ("ü" * 125, 129), ("a" + "." + "b" * 240, 246)])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, name, characters):
    path = tmp_path / f"{name}.wav"
    assert len(path.name) == characters
    write_audio(path, torch.zeros(100), 16_000)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with atomic_path(tmp_path / name) as temporary:  # a suffix that is no suffix
        temporary.write_bytes(b"")


@pytest.mark.parametrize(("module", "call"), [("soundfile", "audio_info"), ("soxr", "read_audio")])
def test_a_missing_extra_names_its_installation(tmp_path, monkeypatch, module, call):
    from losatok_ext.audio import files

    path = tmp_path / "a.wav"
    soundfile.write(path, tone(8_000), 8_000)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module}.*pip install 'losatok-ext\[audio\]'"):
        getattr(files, call)(path)


def test_importing_the_readers_loads_neither_soundfile_nor_soxr():
    code = (
        "import sys, losatok_ext.audio.files, losatok_ext.audio.plots\n"
        "print([m for m in ('soundfile', 'soxr', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
