"""Pictures: drawn for every kind of recording, saved whole, and showing what they say."""

import sys

import pytest
import torch

from losatok_ext.audio import plots
from losatok_ext.audio.plots import mel_decibels, plot_reconstruction
from losatok_ext.errors import UserError

RATE = 16_000


def chirp(seconds=1.0):
    time = torch.arange(int(seconds * RATE)) / RATE
    return 0.5 * torch.sin(2 * torch.pi * (300 + 1500 * time / seconds) * time)


def pixels(path):
    import matplotlib.image

    return torch.from_numpy(matplotlib.image.imread(path).copy())[..., :3]


def drawn(path, *args, **options):
    plot_reconstruction(path, *args, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_picture_is_written_in_each_format(tmp_path, suffix):
    path = drawn(
        tmp_path / "new" / f"ü{suffix}", chirp(), chirp() * 0.5, RATE, torch.randn(25, 8), title="$ä_{1}$.flac"
    )
    assert path.stat().st_size > 5000
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix == ".png":
        image = pixels(path)
        assert image.shape[1] == 1300
        assert image.std() > 0.1


@pytest.mark.parametrize("name", ["silent", "one sample", "shorter reconstruction", "no latent", "one token", "loud"])
def test_unusual_recordings_are_drawn(tmp_path, name):
    original, reconstruction, latent = chirp(0.4), chirp(0.4), torch.randn(10, 4)
    if name == "silent":
        original = reconstruction = torch.zeros(6400)
        latent = torch.zeros(10, 4)
    elif name == "one sample":
        original = reconstruction = torch.ones(1)
    elif name == "shorter reconstruction":
        reconstruction = chirp(0.2)
    elif name == "no latent":
        latent = None
    elif name == "one token":
        latent = torch.ones(1, 1)
    else:
        original = original * 1e6
    assert pixels(drawn(tmp_path / "a.png", original, reconstruction, RATE, latent)).shape[0] > 300


def test_silence_is_black_and_not_amplified(tmp_path):
    image = pixels(drawn(tmp_path / "a.png", torch.zeros(RATE), torch.zeros(RATE), RATE))
    height, width, _ = image.shape
    assert image[height // 2, width // 3].max() < 0.05


def test_both_mels_share_one_scale(tmp_path):
    """A reconstruction 40 dB down has to look darker: scaled on its own it would look the same."""
    x = chirp()
    same, quiet = (pixels(drawn(tmp_path / f"{gain}.png", x, x * gain, RATE)) for gain in (1.0, 0.01))
    height = same.shape[0]
    lower = slice(int(height * 0.68), int(height * 0.9))  # within the reconstruction's mel
    upper = slice(int(height * 0.3), int(height * 0.5))
    assert quiet[lower, 200:1000].mean() < 0.8 * same[lower, 200:1000].mean()
    torch.testing.assert_close(quiet[upper, 200:1000], same[upper, 200:1000])


def test_an_hour_becomes_a_bounded_number_of_columns():
    audio = torch.zeros(3600 * RATE)
    audio[1800 * RATE : 1801 * RATE] = chirp()
    mel = mel_decibels(audio, RATE)
    assert mel.shape[0] == 80
    assert mel.shape[1] <= 2401
    assert mel.max(0).values.argmax().item() == pytest.approx(mel.shape[1] / 2, abs=2)


def test_a_tone_lies_in_its_mel_bin():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    bin_of_1_khz = 1000.0 / 2840.02 * 81 - 1  # mel(1 kHz) = 1000, mel(8 kHz) = 2840
    assert mel_decibels(tone, RATE)[:, 20:-20].mean(1).argmax().item() == pytest.approx(bin_of_1_khz, abs=1)


@pytest.mark.parametrize(
    ("name", "change", "error", "says"),
    [
        ("a.txt", {}, UserError, r"\.txt is none of \.png"),
        ("a", {}, UserError, "no suffix is none of"),
        ("a.png", {"original": torch.zeros(2, 8)}, ValueError, r"original should be finite and not empty, \[N\]"),
        ("a.png", {"reconstruction": torch.zeros(0)}, ValueError, "reconstruction should be"),
        (
            "a.png",
            {"latent": torch.full((3, 4), torch.nan)},
            ValueError,
            r"latent should be finite and not empty, \[T, d\]",
        ),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, name, change, error, says):
    values = {"original": chirp(0.1), "reconstruction": chirp(0.1), "sample_rate": RATE, "latent": torch.zeros(2, 2)}
    with pytest.raises(error, match=says):
        plot_reconstruction(tmp_path / name, **{**values, **change})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = drawn(tmp_path / "a.png", chirp(0.1), chirp(0.1), RATE)
    old = path.read_bytes()

    def full_disk(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(UserError, match="No space left"):
        plot_reconstruction(path, chirp(0.1), chirp(0.1), RATE)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"matplotlib.*pip install 'losatok-ext\[cli\]'"):
        plot_reconstruction(tmp_path / "a.png", chirp(0.1), chirp(0.1), RATE)
    assert plots.PICTURES[0] == ".png"
