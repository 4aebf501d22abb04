"""Fitting a quantizer to latent files: as good as what it should be, the same each time, and clear about bad input."""

from dataclasses import replace

import pytest
import torch

from formats.latent_cases import latents
from losatok_ext.errors import ConfigError, UserError
from losatok_ext.formats.latent_files import load_latents, save_latents
from losatok_ext.models import LoSATok
from losatok_ext.nn import (
    AffineConfig,
    FSQConfig,
    GroupedConfig,
    LFQConfig,
    ResidualFSQConfig,
    ResidualVQConfig,
    SimVQConfig,
    VQConfig,
)
from losatok_ext.training.fitting.latent_stream import LatentStream
from losatok_ext.training.fitting.quantizer_fit import FitOptions, fit_quantizer
from small_models import lively, small_config

DIM = 8


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(LoSATok(small_config()))


def write(path, mu, fingerprint, storage="float32"):
    made = latents(len(mu), DIM, fingerprint=fingerprint)
    save_latents(path, replace(made, mu=mu, storage=storage))
    return path


def clustered(frames, generator, centres=12):
    """Rows around a few far centres: what a codebook of as many codes finds exactly."""
    places = 6 * torch.randn(centres, DIM, generator=torch.Generator().manual_seed(9))
    return places[torch.randint(centres, (frames,), generator=generator)] + 0.05 * torch.randn(
        frames, DIM, generator=generator
    )


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Five files of clustered latents, 1500 frames."""
    folder, generator = tmp_path_factory.mktemp("latents"), torch.Generator().manual_seed(3)
    return [write(folder / f"{i}.losatok", clustered(300, generator), model.fingerprint()) for i in range(5)]


@pytest.fixture(scope="module")
def plain_files(model, tmp_path_factory):
    """Four files of correlated Gaussian latents of different widths, 2000 frames."""
    folder, generator = tmp_path_factory.mktemp("plain"), torch.Generator().manual_seed(4)
    mix = torch.randn(DIM, DIM, generator=generator) * torch.logspace(0.5, -1, DIM)
    rows = torch.randn(2000, DIM, generator=generator) @ mix + 1
    return [write(folder / f"{i}.losatok", part, model.fingerprint()) for i, part in enumerate(rows.split(500))]


def rows_of(files):
    return torch.cat([load_latents(path).mu for path in files])


def error_of(fit, files):
    """Relative error over all frames, by the model's own way there and back."""
    rows = rows_of(files)
    z, _ = fit.model.quantize(rows[None])
    return ((z[0] - rows).square().sum() / (rows - rows.mean(0)).square().sum()).sqrt().item()


def test_a_codebook_finds_the_clusters(model, files):
    fit = fit_quantizer(model, files, VQConfig(codebook_size=24))
    assert fit.relative_rms < 0.015  # of 0.05 sqrt(8) around 6 sqrt(8)
    assert fit.relative_rms == pytest.approx(error_of(fit, files), rel=1e-3)
    assert (fit.frames, fit.files, fit.failures) == (1500, 5, ())
    assert fit.used == (1.0,)
    assert fit.model.quantizer_name == "vq 24"
    assert not fit.model.training


def test_each_stage_leaves_less_over(model, plain_files):
    errors = [
        fit_quantizer(model, plain_files, ResidualVQConfig(stages=stages, codebook_size=32)).relative_rms
        for stages in (1, 2, 4)
    ]
    assert errors[1] < 0.75 * errors[0]
    assert errors[2] < 0.75 * errors[1]


def test_many_frames_are_streamed_and_fit_as_well(model, plain_files):
    config = VQConfig(codebook_size=32)
    whole = error_of(fit_quantizer(model, plain_files, config), plain_files)
    drawn = FitOptions(sample_frames=100, passes=0)
    streamed = replace(drawn, passes=3)
    few, many = (error_of(fit_quantizer(model, plain_files, config, o), plain_files) for o in (drawn, streamed))
    assert many < 0.97 * few  # the passes over all frames are of use
    assert many < 1.1 * whole


def test_what_is_streamed_is_the_running_mean_of_each_code(model, tmp_path):
    """One code, two files: the mean of every frame, whatever was drawn first."""
    rows = torch.randn(400, DIM, generator=torch.Generator().manual_seed(1))
    paths = [write(tmp_path / f"{i}.losatok", p, model.fingerprint()) for i, p in enumerate(rows.split(200))]
    fit = fit_quantizer(model, paths, VQConfig(codebook_size=1), FitOptions(sample_frames=50, passes=1))
    drawn = LatentStream(paths, model.fingerprint(), DIM).sample(50, 0)
    expected = (drawn.mean(0) * 50 + rows.sum(0)) / 450
    torch.testing.assert_close(fit.model.quantizer.codebook[0], expected, rtol=1e-4, atol=1e-5)


def test_levels_follow_the_principal_components(model, plain_files):
    fits = {
        levels: fit_quantizer(model, plain_files, FSQConfig(levels=levels))
        for levels in ((8, 5, 5, 5), (64, 64, 64, 64), (3, 3), (5, 5, 5, 8))
    }
    errors = {levels: fit.relative_rms for levels, fit in fits.items()}
    rows = rows_of(plain_files)
    spread = torch.linalg.svdvals(rows - rows.mean(0)).square()
    floor = (spread[4:].sum() / spread.sum()).sqrt().item()  # what four components cannot hold
    assert floor < errors[64, 64, 64, 64] < 1.15 * floor + 0.05
    assert errors[64, 64, 64, 64] < errors[8, 5, 5, 5] < errors[3, 3] < 1
    assert errors[5, 5, 5, 8] == pytest.approx(errors[8, 5, 5, 5], rel=1e-3)  # the widest gets the most levels
    assert error_of(fits[8, 5, 5, 5], plain_files) == pytest.approx(errors[8, 5, 5, 5], rel=1e-3)


def test_several_codes_of_levels_hold_more_than_one(model, plain_files):
    one, two = (
        fit_quantizer(model, plain_files, FSQConfig(levels=(5, 5), num_codebooks=n)).relative_rms for n in (1, 2)
    )
    assert two < 0.9 * one


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 1e-4, 0.01), (4, 0.01, 0.15)])
def test_affine_integers_are_measured(model, plain_files, bits, least, most):
    fit = fit_quantizer(model, plain_files, AffineConfig(bits=bits))
    assert least < fit.relative_rms < most
    assert fit.used == ()
    assert fit.model.quantizer_name == f"affine {bits}"


@pytest.mark.parametrize(
    "each",
    [VQConfig(codebook_size=32), ResidualVQConfig(stages=2, codebook_size=16), FSQConfig((5, 3)), AffineConfig(4)],
    ids=["vq", "rvq", "fsq", "affine"],
)
def test_groups_are_fitted_each_to_its_features(model, plain_files, each):
    options = FitOptions(sample_frames=500, passes=1)
    fit = fit_quantizer(model, plain_files, GroupedConfig(2, each), options)
    rows = rows_of(plain_files)
    z, codes = fit.model.quantize(rows[None])
    assert fit.model.quantizer_name.startswith(f"2 groups of {each.kind} ")
    assert len(fit.used) == (0 if each.kind == "affine" else codes.shape[-1])
    for group, part in enumerate(rows.chunk(2, dim=-1)):
        error = (z[0].chunk(2, dim=-1)[group] - part).square().sum() / (part - part.mean(0)).square().sum()
        assert error < (0.35 if each.kind == "fsq" else 0.2)
    whole = fit_quantizer(model, plain_files, each, options)
    assert error_of(fit, plain_files) < error_of(whole, plain_files)


@pytest.mark.parametrize("config", [ResidualVQConfig(stages=2, codebook_size=8), FSQConfig(levels=(5, 3))])
def test_the_same_again(model, plain_files, config):
    options = FitOptions(sample_frames=300, passes=1, seed=7)
    names = set()
    for _ in range(2):
        torch.rand(3)  # the caller's random numbers have no part in it
        before = torch.random.get_rng_state()
        names.add(fit_quantizer(model, plain_files, config, options).model.fingerprint())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert len(names) == 1
    if config.kind == "rvq":
        assert fit_quantizer(model, plain_files, config, replace(options, seed=8)).model.fingerprint() not in names


def test_the_rest_of_the_model_stays(model, files, tmp_path):
    fit = fit_quantizer(model, files, VQConfig(codebook_size=8))
    assert fit.model.with_quantizer(None).fingerprint() == model.fingerprint()
    fit.model.save_pretrained(tmp_path)
    again = LoSATok.from_pretrained(tmp_path)
    assert again.fingerprint() == fit.model.fingerprint()
    rows = rows_of(files[:1])[None]
    assert torch.equal(again.quantize(rows)[1], fit.model.quantize(rows)[1])
    again.quantizer.train()  # training goes on from it, and does not begin anew
    before = again.quantizer.codebook.clone()
    again.quantizer(rows)
    assert 0 < (again.quantizer.codebook - before).abs().max() < 1


def test_progress_is_told_to_the_end(model, files):
    said = []
    options = FitOptions(sample_frames=50, passes=2)
    fit_quantizer(model, files, ResidualVQConfig(stages=2, codebook_size=4), options, lambda *x: said.append(x))
    last = {what: (done, total) for what, done, total in said}
    assert last == {
        "drawing frames": (1500, 1500),
        "k-means of stages": (2, 2),
        "pass 1 of 2 over all frames": (1500, 1500),
        "pass 2 of 2 over all frames": (1500, 1500),
    }


def test_unusable_files_are_left_out_and_named(model, files, tmp_path):
    cut = tmp_path / "cut.losatok"
    cut.write_bytes(files[0].read_bytes()[:-5])
    flipped = bytearray(files[0].read_bytes())
    flipped[-3] ^= 64
    late = tmp_path / "flipped.losatok"  # found out only when it is read
    late.write_bytes(flipped)
    other = write(tmp_path / "other.losatok", torch.zeros(5, DIM), "ffffffffffffffff")
    codes = tmp_path / "codes.losatok"
    save_latents(codes, latents(5, DIM, storage="codes", fingerprint=model.fingerprint()))
    missing = tmp_path / "missing.losatok"
    bad = [cut, late, other, codes, missing]
    fit = fit_quantizer(model, [*files, *bad], VQConfig(codebook_size=24))
    assert (fit.frames, fit.files) == (1500, 5)
    said = {failure.path: failure.message for failure in fit.failures}
    assert set(said) == set(bad)
    assert "truncated" in said[cut]
    assert "checksum" in said[late]
    assert "was encoded by model ffffffffffffffff, and this is model" in said[other]
    assert "holds codes; encode the recording with --store float32" in said[codes]
    assert "does not exist" in said[missing]
    with pytest.raises(
        UserError, match=r"no latents to fit a quantizer to; the first: .*other\.losatok was encoded by"
    ):
        fit_quantizer(model, [other, codes], VQConfig(codebook_size=2))
    with pytest.raises(UserError, match=r"no latents to fit a quantizer to; the first: .*checksum"):
        fit_quantizer(model, [late], VQConfig(codebook_size=2))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (VQConfig(codebook_size=1501), "there are 1500 frames of latents, too few for a codebook of 1501 codes"),
        (ResidualVQConfig(codebook_size=4096, stages=2), "too few for a codebook of 4096"),
    ],
)
def test_too_few_latents_are_said(model, files, config, says):
    with pytest.raises(UserError, match=says):
        fit_quantizer(model, files, config)


def test_too_few_latents_for_levels(model, tmp_path):
    path = write(tmp_path / "a.losatok", torch.randn(3, DIM), model.fingerprint())
    with pytest.raises(UserError, match="there are 3 frames of latents, too few for 4 dimensions of levels"):
        fit_quantizer(model, [path], FSQConfig(levels=(5, 5, 5, 5)))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (VQConfig(codebook_size=4, cosine=True), "of the latent's own width"),
        (ResidualVQConfig(codebook_size=4, shared=True), "of the latent's own width"),
        (VQConfig(codebook_size=4, codebook_dim=3), "of the latent's own width"),
        (FSQConfig(levels=(3,) * 8), "levels should be fewer than the latent's 8 dimensions"),
        (GroupedConfig(2, VQConfig(cosine=True)), "of the latent's own width"),
        (GroupedConfig(2, FSQConfig((3,) * 4)), "levels should be fewer than the latent's 4 dimensions"),
        (GroupedConfig(3), "groups should divide the 8 features of the latent, got 3"),
        (ResidualFSQConfig(levels=(5, 3)), "a quantizer of kind rfsq is not fitted afterwards"),
        (SimVQConfig(codebook_size=4), "a quantizer of kind simvq is not fitted afterwards"),
        (LFQConfig(bits=4), "a quantizer of kind lfq is not fitted afterwards"),
    ],
)
def test_what_cannot_be_fitted_is_said(model, files, config, says):
    with pytest.raises(ConfigError, match=says):
        fit_quantizer(model, files, config)


def test_options_have_ranges():
    with pytest.raises(ConfigError, match="iterations should be at least 1, got 0"):
        FitOptions(iterations=0)


def test_a_sample_draws_every_frame_equally_often(model, tmp_path):
    """30 of 120 frames, in files of unequal lengths, over many seeds: each about a quarter of the time."""
    sizes = (50, 3, 40, 27)
    numbered = torch.arange(120.0).repeat_interleave(DIM).view(120, DIM)
    paths = [
        write(tmp_path / f"{i}.losatok", part, model.fingerprint())
        for i, part in enumerate(numbered.split(list(sizes)))
    ]
    stream = LatentStream(paths, model.fingerprint(), DIM)
    counts = torch.zeros(120)
    for seed in range(200):
        drawn = stream.sample(30, seed)[:, 0].to(torch.int64)
        assert len(drawn.unique()) == 30
        counts[drawn] += 1
    # 50 +- 6.1 each; 5 deviations are passed once in 15 000 runs of 120 counts
    assert ((counts - 50).abs() < 5 * 6.1).all()
    by_file = torch.stack([part.mean() for part in counts.split(list(sizes))])
    assert ((by_file - 50).abs() < 50 * 0.25).all()
    assert torch.equal(stream.sample(500, 1).sort(0).values, numbered)


def test_memory_does_not_grow_with_the_latents(model, tmp_path, monkeypatch):
    """What is held at once is the sample and one file."""
    monkeypatch.setattr("losatok_ext.training.fitting.latent_stream.FRAMES_AT_ONCE", 64)
    path = write(tmp_path / "a.losatok", torch.randn(1000, DIM), model.fingerprint())
    stream = LatentStream([path], model.fingerprint(), DIM)
    assert [len(batch) for batch in stream.batches(0)] == [64] * 15 + [40]
    assert stream.sample(10, 0).untyped_storage().nbytes() == 10 * DIM * 4
