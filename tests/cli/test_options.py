"""How long recordings may be and whether damaged ones are used: the options of every command that reads them."""

import numpy as np
import pytest
import soundfile
import typer
from typer.main import get_command

from losatok_ext.audio.reading import ReadingOptions, reading_options
from losatok_ext.cli import app
from small_models import tone

READERS = [
    "encode",
    "reconstruct",
    "edit",
    "shard",
    "analyze",
    "demo",
    "train teacher",
    "train sembo",
    "train tokenizer",
    "train generator",
    "precompute features",
    "precompute latents",
    "profile encode",
    "evaluate reconstruction",
    "evaluate probe",
    "evaluate generation",
    "evaluate storage",
    "evaluate precision",
]


@pytest.fixture
def damaged(tmp_path):
    """A recording of half a second, of which 0.4 s are left."""
    path = tmp_path / "in" / "cut.wav"
    path.parent.mkdir()
    soundfile.write(path, tone(8_000).numpy(), 16_000)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 6_400])
    return path


def test_encode_says_once_what_is_damaged_and_counts_it(losatok, tmp_path, damaged, model_folder):
    soundfile.write(damaged.with_name("whole.wav"), tone(8_000).numpy(), 16_000)
    result = losatok("encode", damaged.parent, "-o", tmp_path / "out", "-m", model_folder)
    assert result.code == 0
    assert result.sentences == [
        f"losatok: {damaged} is truncated or damaged: its header promises 3200 bytes more than it holds, and 0.40 s "
        "could be decoded; what is left of it is used (--strict refuses it)"
    ]
    assert "2 files encoded" in result.out
    assert "real time), 1 of them from damaged recordings" in result.out
    result = losatok("encode", damaged, "-o", tmp_path / "strict", "-m", model_folder, "--strict")
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "or leave out --strict (strict in Python) to use what is left" in result.err
    assert not (tmp_path / "strict").exists()
    assert reading_options() == ReadingOptions()


def test_a_recording_that_is_too_long_is_refused(losatok, tmp_path, model_folder):
    soundfile.write(tmp_path / "a.flac", np.zeros(60_000, np.int16), 1000)
    given = ("encode", tmp_path / "a.flac", "-o", tmp_path / "out", "-m", model_folder)
    result = losatok(*given, "--max-minutes", "0.5")
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "a.flac is 1.0 minutes long or longer, and the limit is 0.5 minutes; cut it" in result.err
    for wrong in ("0", "-1", "nan"):
        result = losatok(*given, "--max-minutes", wrong)
        assert (result.code, len(result.sentences)) == (2, 1)
        assert "--max-minutes (max_minutes) takes a number above 0" in result.err
    assert losatok(*given, "--max-minutes", "1").code == 0


def test_training_leaves_out_what_is_too_long_by_its_header(losatok, tmp_path):
    """The crops of an epoch are planned by the lengths, so that a false one would take memory."""
    soundfile.write(tmp_path / "a.flac", np.zeros(60_000, np.int16), 1000)
    result = losatok("shard", tmp_path, tmp_path / "out", "--max-minutes", "0.5")
    assert result.code == 2
    assert "none of its 1 audio files can be used; the first: " in result.err
    assert "a.flac is 1.0 minutes long or longer, and the limit is 0.5 minutes" in result.err


@pytest.mark.parametrize("command", READERS)
def test_every_command_that_reads_recordings_has_the_options(command):
    group, context = get_command(app.app), typer.Context(get_command(app.app))
    for name in command.split():
        group = group.resolve_command(context, [name])[1]
    names = [name for parameter in group.params for name in parameter.opts]
    assert {"--max-minutes", "--strict"} <= set(names)
