"""Plans of edits, and the waveform around them: what is kept is kept bit for bit."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.errors import UserError
from losatok_ext.generation.edit_plan import plan_edit, seconds_to_tokens
from losatok_ext.generation.splice import splice
from losatok_ext.models import LoSATok
from small_models import lively, small_config

# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_says_where_each_token_comes_from():
    plan = plan_edit(6, spans=[(1, 3)], insertions=[(4, 2)], continue_to=8)
    assert plan.source.tolist() == [0, -1, -1, 3, -1, -1, 4, 5, -1, -1]
    assert plan.generated.tolist() == [s < 0 for s in plan.source.tolist()]
    assert plan.continues
    assert not plan_edit(6, [(4, 6)]).continues
    assert plan_edit(6, [(4, 6)], [(6, 1)]).continues
    runs = [(run.start, run.stop, run.source) for run in plan.runs()]
    assert runs == [(0, 1, 0), (1, 3, None), (3, 4, 3), (4, 6, None), (6, 8, 4), (8, 10, None)]
    latents = torch.arange(12.0).view(6, 2)
    placed = plan.place(latents)
    assert torch.equal(placed[~plan.generated], latents[[0, 3, 4, 5]])
    assert (placed[plan.generated] == 0).all()


@st.composite
def edits(draw):
    tokens = draw(st.integers(1, 30))
    edges = st.tuples(st.integers(0, tokens - 1), st.integers(1, tokens)).filter(lambda e: e[0] < e[1])
    spans = draw(st.lists(edges, max_size=3))
    insertions = draw(st.lists(st.tuples(st.integers(0, tokens), st.integers(1, 5)), max_size=3))
    continue_to = draw(st.none() | st.integers(tokens + 1, tokens + 9))
    if not spans and not insertions and continue_to is None:
        spans = [(0, tokens)]
    return tokens, spans, insertions, continue_to


@given(edits())
def test_a_plan_keeps_the_rest_in_its_order(edit):
    tokens, spans, insertions, continue_to = edit
    plan = plan_edit(tokens, spans, insertions, continue_to)
    kept = [s for s in plan.source.tolist() if s >= 0]
    anew = {i for start, stop in spans for i in range(start, stop)}
    assert kept == [i for i in range(tokens) if i not in anew]
    added = sum(count for _, count in insertions) + (0 if continue_to is None else continue_to - tokens)
    assert len(plan.source) == tokens + added
    runs = plan.runs()
    assert [run.start for run in runs[1:]] == [run.stop for run in runs[:-1]]
    assert (runs[0].start, runs[-1].stop) == (0, len(plan.source))
    for run in runs:
        expected = [-1] * (run.stop - run.start)
        if run.source is not None:
            expected = list(range(run.source, run.source + run.stop - run.start))
        assert plan.source[run.start : run.stop].tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spans": [(3, 11)]}, "the span 3:11 does not lie within the clip's 10 tokens"),
        ({"spans": [(-1, 4)]}, "the span -1:4 does not lie within"),
        ({"spans": [(4, 4)]}, "or is empty"),
        ({"insertions": [(11, 2)]}, "new tokens cannot be inserted at 11: the clip has 10"),
        ({"insertions": [(1, 0)]}, "the insertion at 1 should have at least one token"),
        ({"continue_to": 10}, "continue_to should be more than the clip's 10 tokens"),
        ({}, "there is nothing to edit: give a span"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        plan_edit(10, **arguments)
    with pytest.raises(UserError, match="the clip has no tokens"):
        plan_edit(0, [(0, 1)])


def test_seconds_are_the_tokens_they_touch():
    assert seconds_to_tokens(1.2, 2.0, 25) == (30, 50)
    assert seconds_to_tokens(1.21, 1.99, 25) == (30, 50)
    assert seconds_to_tokens(0.0, 0.04, 25) == (0, 1)
    assert seconds_to_tokens(0.28, 0.56, 25) == (7, 14)  # 0.28 * 25 is a little above 7, 0.56 * 25 above 14
    for start, stop in ((2.0, 1.0), (-0.1, 1.0), (0.0, float("nan")), (0.0, float("inf"))):
        with pytest.raises(UserError, match="a span should go from an earlier time to a later one"):
            seconds_to_tokens(start, stop, 25)


# -- waveforms ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    model = lively(LoSATok(small_config()))
    assert model.decoder.context_tokens < 12  # so that the clips below have samples out of reach
    return model


def latents_of(tokens, seed=0):
    return torch.randn(tokens, 8, generator=torch.Generator().manual_seed(seed))


def edited(plan, latents):
    new = latents_of(len(plan.source), seed=9)
    return torch.where(plan.generated[:, None], new, plan.place(latents))


EDITS = {
    "span": {"spans": [(30, 38)]},
    "spans": {"spans": [(20, 22), (24, 27), (60, 61)]},
    "beginning": {"spans": [(0, 5)]},
    "insertion": {"insertions": [(33, 6)]},
    "continuation": {"continue_to": 85},
    "all of it": {"spans": [(10, 14)], "insertions": [(0, 3), (50, 2)], "continue_to": 75},
    "everything": {"spans": [(0, 70)]},
}


@pytest.mark.parametrize("name", EDITS)
def test_the_waveform_is_the_decoded_one_and_beyond_the_decoders_reach_the_old_one(tokenizer, name):
    latents, reach, size = latents_of(70), tokenizer.decoder.context_tokens, tokenizer.samples_per_token
    before = tokenizer.decode(latents[None])[0]
    plan = plan_edit(70, **EDITS[name])
    after = edited(plan, latents)
    got = splice(tokenizer, plan, after, before)
    torch.testing.assert_close(got, tokenizer.decode(after[None])[0], rtol=1e-4, atol=1e-5)
    out_of_reach = 0
    for i, source in enumerate(plan.source.tolist()):
        near = plan.generated[max(i - reach, 0) : i + reach + 1].any()
        if source >= 0 and not near:
            out_of_reach += 1
            assert torch.equal(got[i * size : (i + 1) * size], before[source * size : (source + 1) * size])
    assert (out_of_reach > 0) == (name != "everything")


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("missing", [0, 77])
def test_a_recording_is_kept_but_for_the_fade(tokenizer, name, missing):
    latents, size, fade = latents_of(70), tokenizer.samples_per_token, 2
    recording = torch.randn(70 * size - missing)
    recording[::7] = -0.0
    plan = plan_edit(70, **EDITS[name])
    after = edited(plan, latents)
    got = splice(tokenizer, plan, after, recording, keep="recording", fade=fade)
    added = name in ("continuation", "all of it")
    assert len(got) == len(plan.source) * size - (0 if added else missing)
    decoded = tokenizer.decode(after[None])[0]
    padded = torch.cat([recording, torch.zeros(missing)])
    for i, source in enumerate(plan.source.tolist()):
        here = slice(i * size, min((i + 1) * size, len(got)))
        if source < 0:
            torch.testing.assert_close(got[here], decoded[here], rtol=1e-4, atol=1e-5)
        elif not plan.generated[max(i - fade, 0) : i + fade + 1].any():
            kept = padded[source * size : (source + 1) * size][: here.stop - here.start]
            assert torch.equal(got[here].view(torch.int32), kept.view(torch.int32))  # every bit, signs of zeros too


def test_the_fade_goes_from_the_recording_to_the_decoded_without_a_step(tokenizer):
    latents, size = latents_of(70), tokenizer.samples_per_token
    plan = plan_edit(70, [(30, 34)])
    got = splice(tokenizer, plan, edited(plan, latents), torch.zeros(70 * size), keep="recording", fade=2)
    decoded = tokenizer.decode(edited(plan, latents)[None])[0]
    weight = got[28 * size : 36 * size] / decoded[28 * size : 36 * size]
    steps = weight.diff().abs()
    assert steps[decoded[28 * size + 1 : 36 * size].abs() > 1e-3].max() < 2 / size
    assert (weight[2 * size : 6 * size] == 1).all()


def test_a_splice_that_does_not_fit_is_refused(tokenizer):
    plan, latents = plan_edit(4, [(1, 2)]), latents_of(4)
    with pytest.raises(ValueError, match="keep should be 'decoded' or 'recording', got 'nothing'"):
        splice(tokenizer, plan, latents, torch.zeros(2560), keep="nothing")
    with pytest.raises(ValueError, match="edited should have the plan's 4 tokens"):
        splice(tokenizer, plan, latents[:3], torch.zeros(2560))
    with pytest.raises(ValueError, match="original should have at most 2560 samples"):
        splice(tokenizer, plan, latents, torch.zeros(2561))
    assert dataclasses.is_dataclass(plan)
