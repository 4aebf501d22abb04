"""Shares of domains: what they are, that any stretch of training has them, and that each domain has its own epochs."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli import main
from losatok_ext.errors import ConfigError, TrainingError
from losatok_ext.training import TrainConfig
from losatok_ext.training.config.data_options import BalanceConfig
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data.balance import DomainSchedule, domain_shares
from losatok_ext.training.data.corpus import Clip, Corpus
from losatok_ext.training.data.crops import CropSource

RATE, HOP = 16000, 640
CROP = 4000 // HOP * HOP  # a quarter of a second


def corpus(lengths):
    """Clips named domain/number, of samples that tell clip and place; ``lengths``: domain -> samples of each clip."""
    clips, audio = [], []
    for domain, sizes in lengths.items():
        for number, size in enumerate(sizes):
            clips.append(Clip(None, f"{domain}/{number}", size, domain=domain))
            audio.append(torch.arange(size, dtype=torch.float32) + 1e5 * len(clips))
    return Corpus(tuple(clips), RATE, HOP, (), tuple(audio))


def source(lengths, batch=8, seed=3, **balance):
    config = DataConfig(crop_seconds=CROP / RATE, workers=0, balance=BalanceConfig(**balance))
    return CropSource(corpus(lengths), config, batch_size=batch, seed=seed, multiple=HOP)


LENGTHS = {"speech": [30000] * 12, "music": [9000] * 3, "noise": [CROP]}


@given(
    visits=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**9), min_size=1),
    temperature=st.floats(0.05, 1e6),
    mode=st.sampled_from(["proportional", "equal", "weights"]),
    weights=st.lists(st.floats(0.001, 1000), min_size=6, max_size=6),
)
def test_shares_add_up_and_a_temperature_brings_them_together(visits, temperature, mode, weights):
    named = dict(zip(sorted(visits), weights, strict=False)) if mode == "weights" else {}
    base = {"proportional": visits, "equal": dict.fromkeys(visits, 1), "weights": named}[mode]
    shares = domain_shares(visits, BalanceConfig(mode, named, temperature))
    assert math.isclose(sum(shares.values()), 1)
    for one, other in itertools.combinations(shares, 2):
        wanted = math.log(base[one] / base[other]) / temperature
        if min(shares[one], shares[other]) > 1e-200:
            assert math.log(shares[one] / shares[other]) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    if temperature > 1e5:
        assert max(shares.values()) - min(shares.values()) < 1e-3


@settings(deadline=None, max_examples=25)
@given(parts=st.lists(st.floats(0, 1), min_size=1, max_size=7), seed=st.integers(0, 5), start=st.integers(0, 9000))
def test_any_stretch_of_crops_has_about_the_shares(parts, seed, start):
    parts = [part if part > 0.01 else 0.0 for part in parts]
    total = sum(parts)
    if total == 0:
        parts, total = [1.0], 1.0
    shares = [part / total for part in parts]
    schedule = DomainSchedule(shares, seed)
    assert int(schedule.counts.sum()) == schedule.block
    dealt = [schedule.place(number)[0] for number in range(start, start + 100)]
    for domain, share in enumerate(shares):
        assert abs(dealt.count(domain) - 100 * share) <= 4  # at most one off at each end, twice where a block ends
        assert share > 0 or domain not in dealt


def test_the_crops_of_a_domain_are_counted_through():
    schedule = DomainSchedule([0.5, 0.3, 0.2], seed=1)
    seen = Counter()
    for number in range(2 * schedule.block + 10):
        domain, rank = schedule.place(number)
        assert rank == seen[domain]
        seen[domain] += 1
    again = DomainSchedule([0.5, 0.3, 0.2], seed=1)
    assert again.place(5000) == schedule.place(5000)  # asked for the first time, far from the beginning


@pytest.mark.parametrize(
    ("balance", "shares"),
    [
        ({"mode": "equal"}, (1 / 3, 1 / 3, 1 / 3)),
        ({"mode": "weights", "weights": {"music": 6, "speech": 3, "noise": 1}}, (0.6, 0.1, 0.3)),
        ({"mode": "weights", "weights": {"music": 1, "speech": 1, "noise": 0}}, (0.5, 0, 0.5)),
        ({"temperature": 2.0}, (6**0.5, 1, 84**0.5)),
    ],
)
def test_batches_have_the_shares_and_domains_their_own_epochs(balance, shares):
    crops = source(LENGTHS, **balance)
    total = sum(shares)
    assert [domain.name for domain in crops.domains] == ["music", "noise", "speech"]
    assert [domain.share for domain in crops.domains] == pytest.approx([share / total for share in shares])
    assert [domain.visits for domain in crops.domains] == [6, 1, 84]
    seen = [name for batch in crops.batches(0, 50) for name in batch.names]
    for domain in crops.domains:
        own = [name for name in seen if name.startswith(domain.name)]
        assert abs(len(own) - 400 * domain.share) <= 4
        epoch = Counter(own[: domain.visits])
        if len(own) >= domain.visits:
            assert set(epoch.values()) == {domain.visits // domain.clips}
        assert len(own) / domain.visits == pytest.approx(domain.epochs(400), abs=4 / domain.visits)
    slowest = min(domain.epochs(8) for domain in crops.domains if domain.share)
    assert crops.steps_per_epoch == pytest.approx(1 / slowest)


def test_a_balanced_batch_is_a_function_of_seed_and_step_alone():
    first, again = source(LENGTHS, mode="equal"), source(LENGTHS, mode="equal")
    ahead = list(first.batches(0, 600))  # past the end of a block
    for step in (599, 3, 511, 512, 0):
        batch = again.batch(step)
        assert batch.names == ahead[step].names
        assert torch.equal(batch.audio, ahead[step].audio)
    other = source(LENGTHS, seed=4, mode="equal")
    assert any(other.batch(step).names != ahead[step].names for step in range(3))


def test_without_balance_crops_come_as_in_the_first_release():
    """Whoever goes on with a run of then trains on the same crops as if it had not stopped."""
    lengths = {"a": [9000 + 1700 * i for i in range(5)], "b": [9000 + 1700 * i for i in range(5, 9)]}
    config = DataConfig(crop_seconds=0.25, workers=0)
    crops = CropSource(corpus(lengths), config, batch_size=4, seed=11, multiple=HOP)
    starts = {0: [1732, 12350, 2040, 7268], 1: [1638, 663, 2476, 5676], 7: [7031, 2231, 3940, 2706]}
    clips = {0: "2627", 1: "6207", 7: "8435"}
    for step, numbers in clips.items():
        batch = crops.batch(step)
        assert batch.names == tuple(f"{'ab'[int(n) > 4]}/{int(n) if int(n) < 5 else int(n) - 5}" for n in numbers)
        assert [int(row[0]) % 100000 for row in batch.audio] == starts[step]
    assert crops.steps_per_epoch * 4 == sum(domain.visits for domain in crops.domains)


@settings(deadline=None, max_examples=20)
@given(parts=st.lists(st.integers(1, 4), min_size=1, max_size=5), step=st.integers(0, 30), equal=st.booleans())
def test_rows_are_those_of_the_whole_batch(parts, step, equal):
    lengths = {"speech": [700, 3000, 9000], "music": [1300] * 20}
    crops = source(lengths, batch=sum(parts), mode="equal" if equal else "proportional")
    whole, begin = crops.batch(step), 0
    for size in parts:
        rows = slice(begin, begin + size)
        part = crops.batch(step, rows)
        longest = int(part.lengths.max())
        assert part.names == whole.names[rows]
        assert torch.equal(part.lengths, whole.lengths[rows])
        assert longest <= part.audio.shape[1] < longest + HOP
        assert torch.equal(part.audio, whole.audio[rows, : part.audio.shape[1]])
        assert next(crops.batches(step, step + 1, rows)).names == part.names
        begin += size


def test_rows_outside_a_batch_are_refused():
    with pytest.raises(ValueError, match="rows should hold some of the 8 crops"):
        source(LENGTHS).batch(0, slice(8, 12))


def test_balance_that_does_not_fit_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"no clip names one: write \"domain\" into the manifest"):
        source({"": [9000, 9000]}, mode="equal")
    with pytest.raises(ConfigError, match=r"should name each domain of the data, 'music', .*it names 'musik'"):
        source(LENGTHS, mode="weights", weights={"musik": 1})
    assert source({"": [9000], "music": [9000]}, mode="equal").domains[0].name == ""


def test_too_little_data_for_a_batch_is_said():
    with pytest.raises(TrainingError, match=r"makes 7 crops of 0.24 s, too little for one batch of 8: add recordings"):
        source({"a": [CROP] * 7}).check_enough()
    with pytest.raises(TrainingError, match="makes 6 crops"):
        source(LENGTHS, mode="weights", weights={"music": 1, "speech": 0, "noise": 0}).check_enough()
    source({"a": [8 * CROP]}).check_enough()


def test_a_run_says_what_each_domain_gets(tmp_path, capsys):
    options = ["--preset", "tiny", "--steps", "2", "--batch-size", "6", "--set", "data.crop_seconds=0.4"]
    weights = [
        "--set",
        "data.balance.mode=weights",
        "--set",
        "data.balance.weights={speech: 3, music: 1, environment: 0}",
    ]
    manifest = str(sample_folder() / "manifest.jsonl")
    assert main(["train", "sembo", manifest, "-o", str(tmp_path / "run"), "--device", "cpu", *options, *weights]) == 0
    told = capsys.readouterr().err
    assert "domains: environment 16 clips, 0.9 minutes, 0.0 % of the crops (0.0 epochs); music 16 clips" in told
    assert "speech 16 clips, 0.4 minutes, 75.0 % of the crops (0." in told


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["data.balance.mode=fair"], "data.balance.mode should be one of 'proportional', 'equal', 'weights'"),
        (["data.balance.mode=weights"], "data.balance.weights should be given where mode is 'weights'"),
        (["data.balance.weights={a: 1}"], "data.balance.weights should be given where mode is 'weights'"),
        (
            ["data.balance.mode=weights", "data.balance.weights={a: -1}"],
            "weights.a should be a number of at least 0, got",
        ),
        (
            ["data.balance.mode=weights", "data.balance.weights={a: x}"],
            "weights.a should be a number of at least 0, got",
        ),
        (
            ["data.balance.mode=weights", "data.balance.weights={a: 0}"],
            "weights should be above 0 for at least one domain",
        ),
        (["data.balance.temperature=0"], "data.balance.temperature should be a number above 0"),
        (["data.ballance.mode=equal"], "did you mean data.balance"),
    ],
)
def test_options_that_mean_nothing_are_named(assignments, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.load(assignments=assignments)
