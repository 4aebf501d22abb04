"""Typed configuration: what is read, what is named when it does not fit, and the learning rate."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.configuration import Configuration, setting
from losatok_ext.configuration.base import field_kinds
from losatok_ext.errors import ConfigError
from losatok_ext.nn.quantizers import GroupedConfig, ResidualVQConfig, VQConfig
from losatok_ext.training.config.train import TrainConfig, differences
from losatok_ext.training.engine.schedule import learning_rate


def test_the_defaults_are_the_papers():
    config = TrainConfig()
    assert config.sembo.reconstruction == 1e3
    assert config.sembo.relation == 1
    assert (config.tokenizer.mel, config.tokenizer.semantic_high, config.tokenizer.semantic_low) == (45, 45, 45)
    assert config.tokenizer.kl == 1e-2
    assert (config.tokenizer.feature_matching, config.tokenizer.adversarial) == (1, 1)
    assert config.discriminator.kinds == ("mfd",)
    assert (config.discriminator.channels, config.discriminator.loss) == (1, "hinge")
    assert config.optimizer.betas == (0.8, 0.99)
    assert config.optimizer.lr == 1e-4


def test_later_layers_win_and_the_result_survives_json(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 50\nbatch_size: 4\noptimizer:\n  lr: 1e-3\n  betas: [0.5, 0.9]\ndata: {crop_seconds: 1}\n")
    config = TrainConfig.load(
        file, {"batch_size": 8}, ["optimizer.lr=2e-3", "optimizer.clip_norm=null", "model.depth=2"]
    )
    assert (config.steps, config.batch_size, config.data.crop_seconds) == (50, 8, 1.0)
    assert config.optimizer.lr == 2e-3
    assert config.optimizer.betas == (0.5, 0.9)
    assert config.optimizer.clip_norm is None
    assert config.model == {"depth": 2}
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["optimizer.lrr=1"], "--set: optimizer.lrr is not a key; did you mean optimizer.lr?"),
        (["crop_second=1"], "--set: crop_second is not a key; did you mean data.crop_seconds?"),
        (["sembo.qqq=1"], "--set: sembo.qqq is not a key; the keys here are sembo.reconstruction, sembo.relation"),
        (
            ["discriminator.kinds=[msd]"],
            "--set: discriminator.kinds should be a list of any of 'mfd', 'mpd', 'mrd', 'msstft', each once",
        ),
        (
            ["discriminator.kinds=[mfd, mfd]"],
            "--set: discriminator.kinds should be a list of any of 'mfd', 'mpd', 'mrd', 'msstft', each once",
        ),
        (["discriminator.kinds=mfd"], "--set: discriminator.kinds should be a list, each text, got 'mfd'"),
        (
            ["discriminator.channels=0"],
            "--set: discriminator.channels should be a number above 0 and of at most 64, got 0",
        ),
        (
            ["discriminator.start_step=-1"],
            "--set: discriminator.start_step should be a whole number within 0..2147483647, got -1",
        ),
        (["supervision.kl_floor=-1"], "--set: supervision.kl_floor should be a number of at least 0 or null, got -1"),
        (
            ["sembo.prefixes=[8, 4]"],
            "--set: sembo.prefixes should be a list in ascending order, each number once, got [8, 4]",
        ),
        (["sembo.prefixes=[0]"], "--set: sembo.prefixes[0] should be a whole number within 1..2147483647, got 0"),
        (["sembo.prefixes=[1.5]"], "--set: sembo.prefixes[0] should be a whole number within 1..2147483647, got 1.5"),
        (["optimizer.lr=fast"], "--set: optimizer.lr should be a number above 0, got 'fast'"),
        (["optimizer.lr=.nan"], "--set: optimizer.lr should be a number above 0, got nan"),
        (["steps=1.5"], "--set: steps should be a whole number within 1..2147483647 or null, got 1.5"),
        (["steps=true"], "--set: steps should be a whole number within 1..2147483647 or null, got True"),
        (["steps=0"], "--set: steps should be a whole number within 1..2147483647 or null, got 0"),
        (["data=3"], "--set: data should be a mapping of keys to values, got 3"),
        (["optimizer.betas=[0.9]"], "--set: optimizer.betas should be a list of 2"),
        (["precision=float16"], "--set: precision should be one of 'float32', 'bfloat16'"),
        (["tokenizer.mel=-1"], "--set: tokenizer.mel should be a number of at least 0, got -1"),
        (
            ["sembo.reconstruction=0", "sembo.relation=0"],
            "--set: sembo.reconstruction should be above 0, unless another",
        ),
        (["steps"], "--set takes KEY=VALUE such as optimizer.lr=1e-3, got 'steps'"),
        (
            ["validation.data=x", "validation.share=0.1"],
            "--set: validation.share should be 0 where validation data are",
        ),
        (["optimizer=1", "optimizer.lr=1"], "--set optimizer.lr=1: optimizer was set to a value before"),
        (
            ["init=x", "preset=tiny"],
            "--set: preset should be left out where init is given",
        ),
        (["optimizer.betas=[1"], "--set optimizer.betas=[1: not valid YAML: "),
    ],
)
def test_what_does_not_fit_is_named(assignments, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        TrainConfig.load(assignments=assignments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"run.yaml:\d: not valid YAML"),
        ("- 1", r"run.yaml: the file should hold keys and values"),
        ("optimiser: {lr: 1}", r"run.yaml: optimiser is not a key; did you mean optimizer\?"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.load(file)


def test_a_missing_file_and_a_missing_device_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot read the configuration"):
        TrainConfig.load(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="device should be auto, cpu, cuda or cuda:N, got 'tpu'"):
        TrainConfig(device="tpu").torch_device()
    with pytest.raises(ConfigError, match="device cuda:99 is not there"):
        TrainConfig(device="cuda:99").torch_device()


def test_a_later_layer_may_make_an_earlier_one_fit(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optimizer: {final_lr: 5e-4}")
    assert TrainConfig.load(file, assignments=["optimizer.lr=1e-3"]).optimizer.final_lr == 5e-4
    with pytest.raises(ConfigError, match=r"run.yaml: optimizer.final_lr should be within 0..lr"):
        TrainConfig.load(file)


def test_differences_name_what_changes_the_result_only():
    one = TrainConfig.load(assignments=["optimizer.lr=1e-3", "checkpoint.every=5", "data.workers=0"]).to_dict()
    assert differences(TrainConfig().to_dict(), one) == ["optimizer.lr was 0.0001, is now 0.001"]


def test_every_key_says_what_it_is():
    def keys(cls, prefix=""):
        for name, kind in field_kinds(cls).items():
            yield prefix + name
            if isinstance(kind, type) and issubclass(kind, Configuration):
                yield from keys(kind, f"{prefix}{name}.")

    documented = {key: setting(TrainConfig, key) for key in keys(TrainConfig)}
    assert len(documented) > 70
    assert all(len(key.summary) > 5 and key.text.endswith(".") for key in documented.values())


def test_a_quantizer_is_checked_with_the_rest(tmp_path):
    config = TrainConfig.load(assignments=["quantizer.kind=rvq", "quantizer.stages=2"])
    assert config.quantizer == ResidualVQConfig(stages=2)
    assert TrainConfig(quantizer={"kind": "rvq", "stages": 2}) == config
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    each = ["quantizer.each.kind=vq", "quantizer.each.codebook_size=16"]
    config = TrainConfig.load(assignments=["quantizer.kind=grouped", "quantizer.groups=4", *each])
    assert config.quantizer == GroupedConfig(4, VQConfig(codebook_size=16))
    with pytest.raises(ConfigError, match=r"^--set: quantizer.stagse is not a key; did you mean quantizer.stages\?"):
        TrainConfig.load(assignments=["quantizer.kind=rvq", "quantizer.stagse=2"])


def test_runs_of_earlier_versions_are_read():
    earlier = TrainConfig().to_dict() | {"quantizer": {}}  # what they wrote down where there was none
    assert TrainConfig.from_dict(earlier) == TrainConfig()


def test_a_model_without_end_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("model: &m {depth: *m}")
    with pytest.raises(ConfigError, match=r"run.yaml: the YAML holds itself"):
        TrainConfig.load(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="options: model should have at most 32 levels"):
        endless = {}
        endless["depth"] = endless
        TrainConfig.load(options={"model": endless})


@given(steps=st.integers(1, 3000), warmup=st.integers(0, 3000), final=st.floats(0, 1e-3))
def test_the_learning_rate_rises_then_falls(steps, warmup, final):
    rates = [learning_rate(s, peak=1e-3, steps=steps, warmup_steps=warmup, final=final) for s in range(steps + 1)]
    top = min(warmup, steps // 10)
    assert all(0 < rate <= 1e-3 for rate in rates[:steps] if final or rate)
    assert rates[0] > 0
    assert rates[top] == pytest.approx(1e-3)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    assert rates[steps] == pytest.approx(final)
