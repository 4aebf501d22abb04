"""losatok profile: stages that add up, shares of the ceiling, and a trace that loads."""

import json
import re

import pytest
import soundfile

from small_models import tone


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(16_000).numpy(), 16_000)
    return path


def check_sums(out):
    """Read the table: stage -> milliseconds, percent of time, and if there are any GFLOP and percent of the ceiling."""
    table = {}
    for line in out.splitlines():
        match = re.fullmatch(r"\s*(\S.*?)\s{2,}([\d.–-]+(?:\s+[\d.–-]+){3})\s*", line)
        if match:
            table[match[1]] = [float(number) for number in match[2].split() if number != "–"]
    total = table.pop("all")
    assert sum(row[0] for row in table.values()) == pytest.approx(total[0], abs=0.2)
    assert sum(row[1] for row in table.values()) == pytest.approx(100, abs=1.5)
    assert sum(row[2] for row in table.values() if len(row) > 2) == pytest.approx(total[2], abs=0.05)
    assert re.search(r"Ceiling:\s+\d+\s+GFLOP/s", out)
    assert re.search(r"s of audio in .* real time", out)
    return table


def test_encode_and_decode(losatok, model_folder, recording, tmp_path):
    trace = tmp_path / "traces" / "encode.json"
    result = losatok("profile", "encode", recording, "--model", model_folder, "--trace", trace, "--device", "cpu")
    assert result.code == 0, result.err
    table = check_sums(result.out)
    assert {"semantic mel", "attention", "attention: linear", "MLP", "acoustic mel", "latent", "other"} <= set(table)
    assert "head: inverse STFT" not in table
    assert table["other"][0] >= 0
    assert any(
        event.get("name") == "losatok::dit_attention_forward" for event in json.loads(trace.read_text())["traceEvents"]
    )
    assert losatok("encode", recording, "-o", tmp_path, "--model", model_folder, "--device", "cpu").code == 0
    latents = recording.with_suffix(".losatok")
    report = tmp_path / "report"
    arguments = ("profile", "decode", latents, "--model", model_folder, "--device", "cpu", "-o", report)
    assert losatok(*arguments).code == 0
    assert sorted(path.name for path in report.iterdir()) == [f"profile.{s}" for s in ("html", "json", "md", "png")]
    assert "exists already; pass --overwrite" in losatok(*arguments).err
    for dtype in ("float32", "bfloat16"):
        result = losatok("profile", "decode", latents, "--model", model_folder, "--dtype", dtype, "--device", "cpu")
        assert result.code == 0, result.err
        table = check_sums(result.out)
        assert {"first convolution", "ConvNeXt: linear", "head: linear", "head: inverse STFT"} <= set(table)
        assert "MLP" not in table


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_flop_are_those_of_the_model(model_folder, monkeypatch, dtype):
    from losatok_ext.evaluation.tasks import profiling as stages
    from losatok_ext.evaluation.tasks.ceiling import Ceiling
    from losatok_ext.models import LoSATok

    monkeypatch.setattr(stages, "matrix_ceiling", lambda *_: Ceiling(1e9, "torch.mm"))
    model = LoSATok.from_pretrained(model_folder, dtype=dtype)
    config, tokens = model.config, 25
    found = {s.name: s.flop for s in stages.profile(model, lambda: model.encode(tone(16_000)), 1).stages}
    dim = config.embed_dim
    assert found["MLP"] == 2 * config.depth * tokens * 2 * config.mlp_ratio * dim**2
    assert found["attention: linear"] == 2 * config.depth * tokens * 4 * dim**2
    assert found["attention"] == 2 * config.depth * 2 * tokens**2 * dim
    z = model.encode(tone(16_000)).mu
    found = {s.name: s.flop for s in stages.profile(model, lambda: model.decode(z), 1).stages}
    frames, width = 2 * tokens, config.decoder_dim
    assert found["first convolution"] == 2 * frames * 7 * dim * width
    assert found["ConvNeXt: linear"] == 2 * config.decoder_depth * frames * 2 * width * config.decoder_hidden
    assert found["head: linear"] == 2 * frames * width * (config.istft_n_fft + 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bad_arguments(losatok, model_folder, recording, tmp_path):
    for arguments, words in (
        (
            ("encode", recording, "--model", model_folder, "--dtype", "int4"),
            "--dtype is 'int4'; it takes float32, bfloat16 or int8",
        ),
        (("encode", tmp_path / "none.wav", "--model", model_folder), "none.wav"),
        (("decode", recording, "--model", model_folder), "clip.wav"),
        (("encode", recording, "--model", model_folder, "--repeats", "0"), "--repeats"),
    ):
        result = losatok("profile", *arguments)
        assert result.code == 2, result.out
        assert words in result.err
        assert len(result.sentences) == 1
