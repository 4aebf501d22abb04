"""``losatok generate`` and ``losatok edit``: files out, pictures, and every mistake in one sentence."""

import numpy as np
import pytest
import soundfile

from losatok_ext.audio.samples import sample_folder
from losatok_ext.formats.latent_files import load_latents
from losatok_ext.models import LoSATok
from small_models import make_generator

SPEECH = sample_folder() / "speech" / "00000.flac"
QUICK = ("--steps", "2")


@pytest.fixture
def models(model_folder, generator_folder):
    return "--model", model_folder, "--generator", generator_folder


def pcm(path):
    return soundfile.read(path, dtype="int16")[0]


# -- generate ----------------------------------------------------------------------------------------------------------


def test_generate_writes_a_clip_of_that_length_and_a_picture(losatok, models, tmp_path):
    out, picture = tmp_path / "out.wav", tmp_path / "out.png"
    result = losatok("generate", "--text", "rain", "--seconds", "1.01", "-o", out, *models, *QUICK, "--plot", picture)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{out}: 1.01 s, 26 tokens in 2 steps")
    assert soundfile.info(out).frames == 16160
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert np.abs(pcm(out)).max() > 0


def test_text_seed_and_sampler_decide(losatok, models, tmp_path):
    def made(*options):
        out = tmp_path / "out.wav"
        arguments = ("--seconds", "0.4", "-o", out, "--overwrite", *models, *QUICK, *options)
        assert losatok("generate", *arguments).code == 0
        return pcm(out)

    first = made("--text", "rain")
    assert np.array_equal(first, made("--text", "rain", "--seed", 0))
    for options in (
        ("--text", "wind"),
        ("--text", "rain", "--seed", 1),
        ("--text", "rain", "--cfg", 1),
        ("--text", "rain", "--solver", "rk4"),
        ("--text", "rain", "--schedule", "sway"),
        ("--text", "rain", "--cfg-interval", "0:0.7"),
        ("--text", "rain", "--cfg-rescale", 0.7),
        (),
    ):
        assert not np.array_equal(first, made(*options)), options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seconds", "0"), "--seconds takes a length above 0 and up to 600, got 0"),
        (("--seconds", "nan"), "--seconds takes a length above 0"),
        (("--seconds", "1", "--text", "x" * 41), "has 41 bytes, and the model takes 40; shorten it"),
        (
            ("--seconds", "1", "--solver", "ode"),
            "solver should be one of 'euler', 'midpoint', 'heun', 'rk4', got 'ode'",
        ),
        (("--seconds", "1", "--schedule", "cosine"), "schedule.name should be one of 'uniform', 'sway', 'shifted'"),
        (("--seconds", "1", "--cfg", "-1"), "guidance.scale should be a number of at least 0, got -1"),
        (("--seconds", "1", "--cfg-interval", "0.5"), "--cfg-interval takes two noise levels such as 0.2:0.8"),
        (("--seconds", "1", "--cfg-interval", "0.8:0.2"), "guidance.interval should be two noise levels"),
        (("--seconds", "1", "--cuda-graphs"), "cuda_graphs records kernels of a CUDA device"),
        (("--seconds", "1", "--plot", "a.txt"), "a.txt cannot be drawn"),
        (("--seconds", "1", "--seed", str(2**64)), "--seed is 18446744073709551616; it takes whole numbers"),
        (("--seconds", "1", "--text", "\udcff"), "--text holds bytes that are not valid UTF-8"),
        (("--seconds", "1e300"), "--seconds takes a length above 0 and up to 600, got 1e+300"),
        (("--seconds", "1", "--generator", "gone"), "the generator folder gone does not exist"),
    ],
)
def test_a_mistake_in_generating_is_one_sentence(losatok, models, tmp_path, options, message):
    result = losatok("generate", "-o", tmp_path / "out.wav", *models, *QUICK, *options)
    assert result.code == 2
    assert message in result.err
    assert len(result.sentences) == 1
    assert not (tmp_path / "out.wav").exists()


def test_models_that_are_missing_or_do_not_belong_together(losatok, models, model_folder, tmp_path):
    out = tmp_path / "out.wav"
    ask = ("generate", "--seconds", "1", "-o", out)
    assert "no generator: pass --generator DIR" in losatok(*ask, "--model", model_folder).err
    assert (
        LoSATok.from_pretrained("tiny").fingerprint() in losatok(*ask, *models[2:]).err
    )  # the bundled model is no match
    assert "holds a tokenizer, and a generator is needed here" in losatok(*ask, *models, "-g", model_folder).err
    other = make_generator(tmp_path / "other", "f" * 16)
    result = losatok(*ask, *models, "-g", other)
    assert result.code == 2
    assert "the generator was trained on latents of the tokenizer ffffffffffffffff" in result.err
    silent = make_generator(tmp_path / "silent", None, text_dim=0)
    result = losatok(*ask, *models, "-g", silent, "--text", "rain")
    assert "this generator takes no text" in result.err
    assert losatok(*ask, *models, "-g", silent, *QUICK).code == 0


# -- edit --------------------------------------------------------------------------------------------------------------


def test_edit_keeps_the_recording_bit_for_bit(losatok, models, tmp_path):
    out = tmp_path / "out.flac"
    result = losatok(
        "edit", SPEECH, "--span", "0.8:1.2", "--span", "2:2.04", "--text", "rain", "-o", out, *models, *QUICK,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "0.44 s of it generated" in result.out
    before, after = pcm(SPEECH), pcm(out)
    assert len(before) == len(after)
    fade = 2 * 640
    for start, stop in ((0, 12800 - fade), (19200 + fade, 32000 - fade), (32640 + fade, len(before))):
        assert np.array_equal(before[start:stop], after[start:stop])
    assert not np.array_equal(before[12800:19200], after[12800:19200])


def test_edit_of_decoded_audio_keeps_what_the_decoder_does_not_reach(losatok, models, model_folder, tmp_path):
    whole, out = tmp_path / "whole.wav", tmp_path / "out.wav"
    assert losatok("reconstruct", SPEECH, "-o", whole, "--model", model_folder).code == 0
    assert losatok("edit", SPEECH, "--span", "1:1.2", "--keep", "decoded", "-o", out, *models, *QUICK).code == 0
    reach = LoSATok.from_pretrained(model_folder).decoder.context_tokens * 640
    before, after = pcm(whole), pcm(out)
    assert np.array_equal(before[: 16000 - reach], after[: 16000 - reach])
    assert np.array_equal(before[19200 + reach :], after[19200 + reach :])


def test_insertion_and_continuation(losatok, models, tmp_path):
    out, samples = tmp_path / "out.wav", soundfile.info(SPEECH).frames
    result = losatok("edit", SPEECH, "--insert", "1:0.4", "-o", out, *models, *QUICK, "--plot", tmp_path / "insert.png")
    assert result.code == 0, result.err
    before, after = pcm(SPEECH), pcm(out)
    assert len(after) == samples + 6400
    assert np.array_equal(before[16000 + 1280 :], after[16000 + 6400 + 1280 :])
    result = losatok(
        "edit", SPEECH, "--continue-to", "3.5", "-o", out, "--overwrite", *models, *QUICK, "--plot", tmp_path / "b.png"
    )
    assert result.code == 0, result.err
    after = pcm(out)
    assert len(after) == 56000
    kept = samples // 640 * 640 - 1280
    assert np.array_equal(before[:kept], after[:kept])
    assert np.abs(after[samples:]).max() > 0


def test_latent_files_are_edited_too(losatok, models, model_folder, other_model_folder, tmp_path):
    assert losatok("encode", SPEECH, "-o", tmp_path, "--model", model_folder).code == 0
    file = tmp_path / "00000.losatok"
    result = losatok("edit", file, "--span", "1:1.2", "-o", tmp_path / "out.wav", *models, *QUICK)
    assert result.code == 0, result.err
    assert soundfile.info(tmp_path / "out.wav").frames == load_latents(file).header.samples
    result = losatok("edit", file, "--span", "1:1.2", "--keep", "recording", "-o", tmp_path / "b.wav", *models)
    assert result.code == 2
    assert "is a latent file and holds no recording" in result.err
    assert losatok("encode", SPEECH, "-o", tmp_path / "b", "--model", other_model_folder).code == 0
    result = losatok("edit", tmp_path / "b" / file.name, "--span", "1:1.2", "-o", tmp_path / "b.wav", *models)
    assert result.code == 2
    assert "was encoded by model" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to edit: give --span START:STOP, --insert AT:SECONDS or --continue-to SECONDS"),
        (("--span", "1:9"), "--span 1:9 does not lie within the recording, which has 2.76 s; use --continue-to"),
        (("--span", "-1:2"), "--span -1:2 does not lie within the recording"),
        (("--span", "2:1"), "--span 2:1 ends before it begins"),
        (("--span", "soon"), "--span takes START:STOP in seconds such as 1.2:2.0, got 'soon'"),
        (("--span", "1:nan"), "--span takes START:STOP"),
        (("--insert", "3:1"), "--insert 3:1: the recording has no 3 s, it is 2.76 s long"),
        (("--insert", "1:0"), "--insert 1:0: the seconds to insert should be more than 0 and at most 600"),
        (("--insert", "1:1e300"), "--insert 1:1e+300: the seconds to insert should be more than 0"),
        (("--continue-to", "1e300"), "--continue-to 1e+300 adds more than 600 s"),
        (("--span", "1:2", "--text", "\udcff"), "--text holds bytes that are not valid UTF-8"),
        (("--insert", "1"), "--insert takes AT:SECONDS such as 1.5:0.8, got '1'"),
        (("--continue-to", "2"), "--continue-to 2 lies within the recording, which has 2.76 s"),
        (("--span", "1:2", "--keep", "it"), "--keep takes recording or decoded, got 'it'"),
        (("--span", "1:2", "--text", "x" * 41), "has 41 bytes, and the model takes 40"),
        (("--span", "1:2", "--plot", SPEECH), "is the input and would be overwritten"),
    ],
)
def test_a_mistake_in_editing_is_one_sentence(losatok, models, tmp_path, options, message):
    result = losatok("edit", SPEECH, "-o", tmp_path / "out.wav", *models, *QUICK, *options)
    assert result.code == 2
    assert message in result.err
    assert len(result.sentences) == 1
    assert not (tmp_path / "out.wav").exists()


def test_outputs_are_told_apart(losatok, models, tmp_path):
    same = tmp_path / "out.png"
    result = losatok("generate", "--seconds", "1", "-o", same, "--plot", same, *models)
    assert "would be written twice" in result.err
    assert "is a folder" in losatok("generate", "--seconds", "1", "-o", tmp_path, *models).err


@pytest.mark.parametrize("command", ["generate", "edit"])
@pytest.mark.parametrize("existing", ["out.wav", "out.png"])
def test_existing_files_are_replaced_only_when_asked(losatok, models, tmp_path, command, existing):
    (tmp_path / existing).write_bytes(b"mine")
    asked = ("--seconds", "0.2") if command == "generate" else (SPEECH, "--span", "1:1.2")
    arguments = (command, *asked, "-o", tmp_path / "out.wav", "--plot", tmp_path / "out.png", *QUICK)
    refused = losatok(*arguments, "--model", "gone", "--generator", "gone")  # said before any model is opened
    assert (refused.code, len(refused.sentences)) == (2, 1)
    assert f"{tmp_path / existing} exists; pass --overwrite or choose another name" in refused.err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(existing, b"mine")]
    assert losatok(*arguments, *models, "--overwrite").code == 0
    assert (tmp_path / existing).read_bytes() != b"mine"
    if command == "edit":
        (tmp_path / "in.flac").write_bytes(SPEECH.read_bytes())
        own = (command, tmp_path / "in.flac", "--span", "1:1.2", "-o", tmp_path / "in.flac", "--overwrite", *models)
        assert "is the input and would be overwritten" in losatok(*own).err
