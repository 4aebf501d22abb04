"""Flow matching: both directions are one model, times follow their distributions, padding and masks never count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.errors import ConfigError
from losatok_ext.nn.flow_matching import ConditionDropout, FlowMatching, SpanMasking, shift_noise_level

DIRECTIONS = ("noise - data", "data - noise")


def pair(*shape):
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_path_runs_between_data_and_noise_at_the_velocity(direction):
    flow = FlowMatching(direction)
    data, noise = pair(3, 5, 2)
    at = {level: flow.interpolate(data, noise, torch.full((3,), flow.time_at(level))) for level in (0.0, 0.25, 1.0)}
    torch.testing.assert_close(at[0.0], data)
    torch.testing.assert_close(at[1.0], noise)
    torch.testing.assert_close(at[0.25], 0.75 * data + 0.25 * noise)
    step = flow.time_at(0.25) - flow.time_at(0.0)
    torch.testing.assert_close(at[0.25], at[0.0] + step * flow.velocity(data, noise))
    for t in (flow.time_at(0.25), torch.full((3,), flow.time_at(0.25))):
        estimated = flow.estimate(at[0.25], flow.velocity(data, noise), t)
        torch.testing.assert_close(estimated, (data, noise))


def test_directions_by_name():
    data, noise = pair(1, 2, 3)
    quarter = torch.tensor([0.25])
    torch.testing.assert_close(FlowMatching("noise - data").velocity(data, noise), noise - data)
    torch.testing.assert_close(FlowMatching("data - noise").velocity(data, noise), data - noise)
    torch.testing.assert_close(
        FlowMatching("noise - data").interpolate(data, noise, quarter), 0.75 * data + 0.25 * noise
    )
    torch.testing.assert_close(
        FlowMatching("data - noise").interpolate(data, noise, quarter), 0.75 * noise + 0.25 * data
    )


@pytest.mark.parametrize("time", ["uniform", "logit_normal", "mode", "cosmap"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_both_directions_train_the_same_model(time, shift):
    """A model that answers in one direction, negated and asked at 1 - t, has the same loss in the other."""
    weight = torch.randn(4, 4)

    def model(x, t):
        return x @ weight * (1 + t[:, None, None])

    def negated(x, t):
        return -model(x, 1 - t)

    data, lengths = torch.randn(3, 6, 4), torch.tensor([6, 2, 5])
    options = {"time": time, "time_mean": 0.3, "time_shift": shift}
    losses = [
        FlowMatching(direction, **options).loss(m, data, lengths, generator=torch.Generator().manual_seed(4))
        for direction, m in zip(DIRECTIONS, (model, negated), strict=True)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def cdf(time, level):
    """P(noise level <= level), by each distribution's formula."""
    if time == "uniform":
        return level
    if time == "logit_normal":
        return 0.5 * (1 + math.erf((math.log(level / (1 - level)) - 0.5) / (0.8 * math.sqrt(2))))
    if time == "cosmap":
        return 2 / math.pi * math.atan(1 / (1 / level - 1))  # level = 1 - 1 / (tan(pi u / 2) + 1) rises with u
    low, high = 0.0, 1.0  # mode: level falls with u; P(level(u) <= level) = 1 - u at equality
    for _ in range(60):
        u = (low + high) / 2
        value = 1 - u - 1.29 * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
        low, high = (u, high) if value > level else (low, u)
    return 1 - low


@pytest.mark.parametrize("time", ["uniform", "logit_normal", "mode", "cosmap"])
def test_times_follow_their_distribution(time):
    count = 40_000
    flow = FlowMatching(time=time, time_mean=0.5, time_std=0.8)
    t = flow.draw_time(count, generator=torch.Generator().manual_seed(0))
    assert t.shape == (count,)
    assert t.dtype == torch.float32
    assert bool(((t >= 0) & (t <= 1)).all())
    for level in (0.1, 0.3, 0.5, 0.8, 0.95):
        assert (t <= level).double().mean().item() == pytest.approx(cdf(time, level), abs=5 * 0.5 / count**0.5)


@given(st.floats(0.0, 1.0), st.floats(0.1, 10.0))
def test_shifting_by_a_factor_and_its_inverse_is_no_shift(level, shift):
    there = shift_noise_level(torch.tensor(level, dtype=torch.float64), shift)
    assert 0 <= there.item() <= 1 + 1e-12
    assert shift_noise_level(there, 1 / shift).item() == pytest.approx(level, abs=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_true_velocity_has_no_loss(direction):
    flow = FlowMatching(direction)
    data = torch.randn(2, 5, 3, dtype=torch.float64)

    def oracle(x, t):
        t = t.double()[:, None, None]
        level = t if direction == "noise - data" else 1 - t
        return flow.velocity(data, (x - (1 - level) * data) / level)

    assert flow.loss(oracle, data).item() == pytest.approx(0, abs=1e-12)


def test_padding_and_unmasked_tokens_never_count():
    flow, weight = FlowMatching(), torch.randn(3, 3, requires_grad=True)
    data, lengths = torch.randn(2, 7, 3), torch.tensor([7, 4])
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[:, 2:6] = True

    def loss(data, poison):
        def model(x, t):
            out = x @ weight
            past = torch.arange(7)[None, :, None] >= lengths[:, None, None]
            return torch.where(past, poison, out)

        weight.grad = None
        value = flow.loss(model, data, lengths, mask, torch.Generator().manual_seed(1))
        value.backward()
        return value.item(), weight.grad.clone()

    behind = data.clone()
    behind[1, 4:] = math.nan
    value, gradient = loss(behind, math.nan)
    expected, expected_gradient = loss(data, 0.0)
    assert value == expected
    assert torch.equal(gradient, expected_gradient)
    generator = torch.Generator().manual_seed(1)
    t = flow.draw_time(2, generator=generator)
    noise = torch.randn(data.shape, generator=generator)
    error = (flow.interpolate(data, noise, t) @ weight - flow.velocity(data, noise)).square().mean(-1)
    assert value == pytest.approx((error[0, 2:6].sum() + error[1, 2:4].sum()).item() / 6, rel=1e-5)
    nothing = flow.loss(lambda x, t: x, data, lengths, torch.zeros_like(mask))
    assert nothing.item() == 0


def test_conditions_are_dropped_together_and_alone():
    drop = ConditionDropout(joint=0.3, text=0.2, aligned=0.0, global_=1.0)
    masks = drop.draw(20_000, generator=torch.Generator().manual_seed(0))
    assert {name: mask.shape for name, mask in masks.items()} == dict.fromkeys(
        ("joint", "text", "aligned", "global_"), (20_000,)
    )
    assert masks["global_"].all()
    assert not masks["aligned"].any()
    assert masks["joint"].double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert masks["text"].double().mean().item() == pytest.approx(0.2, abs=0.02)
    assert (masks["text"] & masks["joint"]).double().mean().item() == pytest.approx(0.06, abs=0.01)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_spans_lie_within_the_clip_and_leave_something_to_generate(lengths, spans, whole, continuation, seed):
    masking = SpanMasking(whole=whole, continuation=continuation, spans=spans)
    lengths = torch.tensor(lengths)
    mask = masking.draw(lengths, 40, torch.Generator().manual_seed(seed))
    assert mask.shape == (len(lengths), 40)
    assert not mask[torch.arange(40) >= lengths[:, None]].any()
    assert torch.equal(mask.any(1), lengths > 0)


def test_spans_are_of_every_kind():
    lengths = torch.full((4000,), 50)
    mask = SpanMasking(whole=0.25, continuation=0.4, spans=1).draw(lengths, 50, torch.Generator().manual_seed(0))
    full = mask.all(1)
    assert full.double().mean().item() == pytest.approx(0.25, abs=0.03)
    at_end = mask[~full][:, -1].double().mean().item()
    assert at_end == pytest.approx(0.4 + 0.6 * 0.035, abs=0.04)
    sizes = mask[~full].sum(1)
    assert sizes.min() >= 5
    assert sizes.max() <= 35
    edges = (mask[~full].int().diff(dim=1) != 0).sum(1)
    assert edges.max() <= 2  # one span


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMatching("data to noise"), "direction should be one of 'noise - data', 'data - noise'"),
        (lambda: FlowMatching(time="normal"), "time should be one of 'uniform', 'logit_normal'"),
        (lambda: FlowMatching(time_std=0.0), "time_std should be a number above 0"),
        (lambda: FlowMatching(time_mean=math.nan), "time_mean should be a finite number"),
        (lambda: FlowMatching(mode_scale=2.0), "mode_scale should be a number within -1"),
        (lambda: FlowMatching(time_shift=-1.0), "time_shift should be a number above 0"),
        (lambda: ConditionDropout(text=1.5), "text should be a number within 0..1, got 1.5"),
        (lambda: SpanMasking(fraction=(0.5, 0.2)), "fraction should be two numbers, the smaller first"),
        (lambda: SpanMasking(spans=0), "spans should be a whole number within 1..1024"),
        (lambda: SpanMasking(whole=-0.1), "whole should be a number within 0..1"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
