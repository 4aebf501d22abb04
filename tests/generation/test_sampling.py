"""Samplers against closed forms: a Gaussian's velocity is known, and so is every sample that follows it exactly.

With data ~ N(mean, c^2) the point of a sample at noise level s is ``(1-s) mean + sqrt((1-s)^2 c^2 + s^2) z``, z the
noise it began with, so that its end is ``mean + c z``. Two Gaussians of one c and means m0, m1 under guidance w flow as
the Gaussian of mean ``m0 + w (m1 - m0)``: direction, schedule and guidance are checked to rounding.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.errors import ConfigError, UserError
from losatok_ext.generation.guidance import Guidance
from losatok_ext.generation.sampling import SamplerConfig, integrate, item_noise, item_seeds, model_velocity
from losatok_ext.generation.schedules import Schedule
from losatok_ext.generation.solvers import SOLVERS, at_number
from losatok_ext.nn.flow_matching import FlowMatching

DIRECTIONS = ("noise - data", "data - noise")
SCHEDULES = (Schedule(), Schedule("sway"), Schedule("shifted"))
DEVICE = torch.device("cpu")


def gaussian(flow, mean, spread):
    """The exact velocity model (x, t [B]) of data ~ N(mean, spread^2), for numbers or tensors that broadcast."""

    def velocity(x, t):
        t = t.double()[:, None, None]
        s = t if flow.direction == "noise - data" else 1 - t
        variance = (1 - s) ** 2 * spread**2 + s**2
        away = (x - (1 - s) * mean) / variance
        noise, data = s * away, mean + (1 - s) * spread**2 * away
        return flow.velocity(data, noise)

    return velocity


def noise_of(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def mean_and_spread():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, dtype=torch.float64, generator=generator), torch.linspace(0.2, 1.5, 6, dtype=torch.float64)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gaussian_is_sampled_exactly_in_the_limit(solver, schedule, direction):
    flow, (mean, spread), noise = FlowMatching(direction), mean_and_spread(), noise_of(4, 9, 6)
    velocity = at_number(gaussian(flow, mean, spread))
    exact = mean + spread * noise
    steps = {"euler": 4000, "midpoint": 400, "heun": 400, "rk4": 60}[solver]
    tolerance = {"euler": 4e-3, "midpoint": 2e-4, "heun": 2e-4, "rk4": 2e-5}[solver]
    got = integrate(velocity, noise, flow, SamplerConfig(steps, solver, schedule))
    assert (got - exact).abs().max() < tolerance


@pytest.mark.parametrize("solver", SOLVERS)
def test_errors_fall_with_the_order_of_the_solver(solver):
    """On dx/dt = x^2 cos t, whose solution is 1 / (c - sin t); on a Gaussian's flow some methods do better by luck."""
    start = torch.linspace(0.2, 0.9, 8, dtype=torch.float64).view(1, 4, 2)
    exact = 1 / (1 / start + math.sin(1))

    def velocity(x, t):
        return x.square() * math.cos(t)

    errors = [
        (integrate(velocity, start, FlowMatching(), SamplerConfig(steps, solver)) - exact).abs().max().item()
        for steps in (32, 64)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(SOLVERS[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_asks_as_often_as_it_says_and_never_outside_of_the_path(solver):
    flow, times = FlowMatching(), []

    def velocity(x, t):
        times.append(t)
        return torch.zeros_like(x)

    integrate(velocity, noise_of(1, 2, 3), flow, SamplerConfig(7, solver, Schedule("sway")))
    assert len(times) == 7 * SOLVERS[solver].evaluations
    assert times[0] == 1.0
    assert all(0 <= t <= 1 for t in times)


def test_both_directions_take_the_same_way():
    (mean, spread), noise = mean_and_spread(), noise_of(2, 5, 6)
    got = [
        integrate(at_number(gaussian(flow, mean, spread)), noise, flow, SamplerConfig(5, "heun", Schedule("sway")))
        for flow in map(FlowMatching, DIRECTIONS)
    ]
    torch.testing.assert_close(got[0], got[1], rtol=1e-6, atol=1e-6)  # t is handed over as float32


# -- guidance ----------------------------------------------------------------------------------------------------------


def guided_sample(flow, guidance, noise, means, spread, config, lengths=None):
    with_, without = (gaussian(flow, mean, spread) for mean in means)

    def joint(x, t):
        one, other = x.chunk(2)
        return torch.cat([with_(one, t[: len(one)]), without(other, t[: len(one)])])

    config = SamplerConfig(config.steps, config.solver, config.schedule, guidance)
    velocity = model_velocity(with_, joint, flow, config, DEVICE, lengths)
    return integrate(velocity, noise, flow, config)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_moves_a_gaussian_as_its_formula_says(scale, direction):
    flow, (mean, _), noise = FlowMatching(direction), mean_and_spread(), noise_of(3, 4, 6)
    other, spread = mean.flip(0), 0.7
    got = guided_sample(flow, Guidance(scale), noise, (mean, other), spread, SamplerConfig(60, "rk4"))
    exact = other + scale * (mean - other) + spread * noise
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_outside_of_its_interval_guidance_is_not_there(direction):
    """Three Gaussian flows one after the other, joined where the interval begins and ends."""
    flow, (mean, _), noise = FlowMatching(direction), mean_and_spread(), noise_of(3, 4, 6)
    other, spread, scale, (low, high) = mean.flip(0), 0.7, 3.0, (0.25, 0.75)
    levels = Schedule().noise_levels(200)
    assert low in levels
    assert high in levels
    guidance = Guidance(scale, interval=(low, high))
    got = guided_sample(flow, guidance, noise, (mean, other), spread, SamplerConfig(200, "euler"))

    def deviation(s):
        return math.sqrt((1 - s) ** 2 * spread**2 + s**2)

    def flow_of(m, x, start, end):
        return (1 - end) * m + deviation(end) * (x - (1 - start) * m) / deviation(start)

    exact = flow_of(mean, noise, 1.0, high)
    exact = flow_of(other + scale * (mean - other), exact, high, low)
    exact = flow_of(mean, exact, low, 0.0)
    assert (got - exact).abs().max() < 0.06  # Euler's own error at 200 steps, and one step guided too many
    unlimited = guided_sample(flow, Guidance(scale), noise, (mean, other), spread, SamplerConfig(200, "euler"))
    assert (unlimited - exact).abs().max() > 0.5


def test_guidance_is_asked_for_only_where_it_acts():
    asked = []

    def model(name):
        def velocity(x, t):
            asked.append((name, round(t[0].item(), 6), len(x)))
            return torch.zeros_like(x)

        return velocity

    flow, config = FlowMatching(), SamplerConfig(4, guidance=Guidance(2.0, (0.5, 0.8)))
    velocity = model_velocity(model("single"), model("joint"), flow, config, DEVICE)
    integrate(velocity, noise_of(3, 2, 2), flow, config)
    assert asked == [("single", 1.0, 3), ("joint", 0.75, 6), ("joint", 0.5, 6), ("single", 0.25, 3)]


@given(st.floats(0, 1), st.floats(0, 8), st.integers(0, 1000))
def test_rescaling_draws_the_spread_back(rescale, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    with_, without = (torch.randn(2, 6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    lengths = torch.tensor([6, 3])
    guided = without + scale * (with_ - without)
    got = Guidance(scale, rescale=rescale).combine(with_, without, lengths)
    for i, length in enumerate(lengths.tolist()):
        ratio = with_[i, :length].std(correction=0) / guided[i, :length].std(correction=0)
        expected = guided[i] * (rescale * ratio + (1 - rescale))
        torch.testing.assert_close(got[i], expected, rtol=1e-9, atol=1e-12)


def test_padding_never_reaches_the_spread_or_the_sample():
    with_, without = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    lengths = torch.tensor([5, 2])
    clean = Guidance(3.0, rescale=0.7).combine(with_, without, lengths)
    with_[1, 2:] = without[1, 2:] = math.nan
    poisoned = Guidance(3.0, rescale=0.7).combine(with_, without, lengths)
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1, :2], poisoned[1, :2])
    flow, config = FlowMatching(), SamplerConfig(3)

    def model(x, t):
        assert x.isfinite().all()
        return torch.where(torch.arange(5)[None, :, None] < lengths[:, None, None], -x, math.nan)

    velocity = model_velocity(model, None, flow, config, DEVICE, lengths)
    got = integrate(velocity, item_noise([1, 2], [5, 2], 3), flow, config)
    assert got.isfinite().all()
    assert (got[1, 2:] == 0).all()


# -- noise, schedules, steps -------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-(2**40), 2**63), st.integers(0, 30)), min_size=1, max_size=5))
def test_an_items_noise_is_its_own(items):
    seeds, lengths = zip(*items, strict=True)
    noise = item_noise(seeds, lengths, 3)
    for row, seed, length in zip(noise, seeds, lengths, strict=True):
        alone = item_noise([seed], [length], 3)[0]
        assert torch.equal(row[:length], alone)
        assert (row[length:] == 0).all()


def test_seeds_of_a_batch():
    assert item_seeds(7, 3) == [7, 8, 9]
    assert item_seeds([4, 4], 2) == [4, 4]
    with pytest.raises(ValueError, match="seed should be one number or 3 of them, got 2"):
        item_seeds([1, 2], 3)
    with pytest.raises(ValueError, match="seeds should have one entry per item"):
        item_noise([1], [2, 3], 4)
    with pytest.raises(ValueError, match="a seed should lie within"):
        item_noise([2**64], [1], 1)
    assert item_noise([0], [4000], 4).std().item() == pytest.approx(1, abs=0.03)


@given(st.sampled_from(["uniform", "sway", "shifted"]), st.integers(1, 60), st.floats(-1, 1.7), st.floats(0.2, 9))
def test_schedules_fall_from_noise_to_data(name, steps, sway, shift):
    levels = Schedule(name, sway, shift).noise_levels(steps)
    assert len(levels) == steps + 1
    assert levels[0] == 1
    assert levels[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_schedules_by_formula():
    assert Schedule().noise_levels(4) == [1, 0.75, 0.5, 0.25, 0]
    # F5-TTS, equation 7, with s = -1: t = 1 - cos(pi u / 2), t = 1 - s data-ward
    assert Schedule("sway").noise_levels(2)[1] == pytest.approx(math.cos(math.pi / 4))
    assert Schedule("sway", sway=0.0).noise_levels(4) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert Schedule("shifted", shift=3.0).noise_levels(2)[1] == pytest.approx(1.5 / 2)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_step_is_reported(direction):
    flow, (mean, _), noise = FlowMatching(direction), mean_and_spread(), noise_of(2, 3, 6)
    steps = []
    velocity = at_number(gaussian(flow, mean, 0.0))  # data is one point: every step sees it at once
    got = integrate(velocity, noise, flow, SamplerConfig(5), steps.append)
    assert [(s.step, s.steps) for s in steps] == [(i, 5) for i in range(1, 6)]
    assert [round(s.noise_level, 6) for s in steps] == [0.8, 0.6, 0.4, 0.2, 0]
    assert torch.equal(steps[-1].x, got)
    for step in steps:
        torch.testing.assert_close(step.data, mean.expand_as(noise), rtol=0, atol=1e-6)


def test_the_bar_counts_steps():
    import io

    from rich.console import Console

    from losatok_ext.cli.sampling_progress import SamplingProgress

    for terminal in (True, False):
        stream = io.StringIO()
        with SamplingProgress("generating", Console(file=stream, force_terminal=terminal, width=100)) as progress:
            integrate(lambda x, t: -x, noise_of(1, 2, 2), FlowMatching(), SamplerConfig(3), progress.on_step)
            progress._bar.refresh()
        assert ("3/3" in stream.getvalue()) == terminal


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplerConfig(steps=0), "steps should be a whole number within 1..100000"),
        (
            lambda: SamplerConfig(solver="ode45"),
            "solver should be one of 'euler', 'midpoint', 'heun', 'rk4', got 'ode45'",
        ),
        (lambda: Schedule("cosine"), "name should be one of 'uniform', 'sway', 'shifted'"),
        (lambda: Schedule("sway", sway=2.0), "sway should be a number within -1..1.75"),
        (lambda: Schedule("shifted", shift=0.0), "shift should be a number above 0"),
        (lambda: Guidance(-1.0), "scale should be a number of at least 0"),
        (lambda: Guidance(math.nan), "scale should be a number of at least 0"),
        (lambda: Guidance(interval=(0.6, 0.4)), "interval should be two noise levels"),
        (lambda: Guidance(rescale=1.5), "rescale should be a number within 0..1"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_cuda_graphs_are_refused_on_a_cpu():
    config = SamplerConfig(cuda_graphs=True)
    with pytest.raises(UserError, match=r"cuda_graphs .* is on cpu; move it to a GPU, or leave cuda_graphs off"):
        model_velocity(lambda x, t: x, None, FlowMatching(), config, DEVICE)


@pytest.mark.gpu
def test_recorded_evaluations_give_the_same_samples():
    weight, flow, noise = torch.randn(8, 8, device="cuda") / 4, FlowMatching(), item_noise([1, 2], [30, 30], 8, "cuda")

    def model(x, t):
        return torch.tanh(x @ weight) * (1 + t[:, None, None])

    got = []
    for graphs in (False, True):
        config = SamplerConfig(8, "heun", guidance=Guidance(2.0, (0.2, 0.7)), cuda_graphs=graphs)
        velocity = model_velocity(model, model, flow, config, noise.device)
        got.append(integrate(velocity, noise, flow, config))
    torch.testing.assert_close(got[0], got[1])
    with pytest.raises(ValueError, match=r"recorded for x \[2, 30, 8\]"):
        velocity(noise[:, :7], 1.0)
