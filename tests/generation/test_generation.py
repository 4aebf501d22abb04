"""Generating and editing latents with a small generator: seeds, batches, kept tokens, guidance, what is refused."""

import dataclasses
import math

import pytest
import torch

import losatok_ext
from budget import assert_within_budget
from losatok_ext.errors import UserError
from losatok_ext.generation.generation import edit, generate
from losatok_ext.generation.guidance import Guidance
from losatok_ext.generation.sampling import SamplerConfig, item_noise
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.generator import Generator, GeneratorConfig
from losatok_ext.nn.flow_matching import ConditionDropout, FlowMatching, SpanMasking
from small_models import lively

CONFIG = SamplerConfig(steps=4, guidance=Guidance(2.0))


def make(context=True, direction="noise - data", text=True, seed=0):
    torch.manual_seed(seed)
    dit = DiTConfig(
        latent_dim=4,
        width=32,
        depth=3,
        heads=2,
        text_dim=32 if text else 0,
        text_layers=1,
        text_bytes=40,
        time_features=16,
        aligned_dim=5 if context else 0,
        tokenizer="0123456789abcdef",
    )
    generator = lively(Generator(GeneratorConfig(dit, FlowMatching(direction), context)))
    generator.dit.set_latents(torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.1, 2.0, 1.0, 0.5]))
    return generator


@pytest.fixture(scope="module", params=["noise - data", "data - noise"])
def generator(request):
    return make(direction=request.param)


def test_an_item_is_the_same_alone_and_in_any_batch(generator):
    lengths, texts, seeds = [9, 5, 12], ["rain", "", "a long sentence"], [7, 8, 3]
    batch = generate(generator, lengths, texts, CONFIG, seeds)
    assert batch.shape == (3, 12, 4)
    assert batch.isfinite().all()
    for i in range(3):
        alone = generate(generator, [lengths[i]], [texts[i]], CONFIG, seeds[i])[0]
        torch.testing.assert_close(batch[i, : lengths[i]], alone, rtol=1e-4, atol=1e-4)
        assert (batch[i, lengths[i] :] == 0).all()
    order = [2, 0, 1]
    turned = generate(
        generator, [lengths[i] for i in order], [texts[i] for i in order], CONFIG, [seeds[i] for i in order]
    )
    torch.testing.assert_close(turned, batch[order], rtol=1e-4, atol=1e-4)


def test_seed_and_text_decide(generator):
    a, b = generate(generator, [6, 6], ["rain", "rain"], CONFIG, seed=4)
    assert not torch.allclose(a, b, atol=1e-2)
    assert torch.equal(
        generate(generator, [6], ["rain"], CONFIG, seed=4), generate(generator, [6], ["rain"], CONFIG, 4)
    )
    torch.testing.assert_close(generate(generator, [6], ["rain"], CONFIG, seed=5)[0], b, rtol=1e-4, atol=1e-4)
    other = generate(generator, [6], ["wind"], CONFIG, seed=4)[0]
    assert not torch.allclose(a, other, atol=1e-2)
    plain = dataclasses.replace(CONFIG, guidance=Guidance(0.0))  # the unconditional model does not hear the text
    without = [generate(generator, [6], [text], plain, 4) for text in ("rain", "wind")]
    torch.testing.assert_close(without[0], without[1])


def test_guidance_is_its_formula_on_the_network(generator):
    """One Euler step, by hand: v = v_without + 2 (v_with - v_without)."""
    config = SamplerConfig(steps=1, guidance=Guidance(2.0))
    got = generate(generator, [5], ["rain"], config, seed=1)
    flow, noise = generator.flow, item_noise([1], [5], 4)
    conditions = generator.conditions(1, 5, ["rain"])
    t = torch.tensor([flow.time_at(1.0)])
    with torch.no_grad():
        with_, without = generator(noise, t, conditions), generator(noise, t, conditions.dropped())
    end = noise + (flow.time_at(0.0) - flow.time_at(1.0)) * (2 * with_ - without)
    torch.testing.assert_close(got, generator.dit.denormalise(end), rtol=1e-4, atol=1e-4)


def test_every_step_is_reported(generator):
    steps = []
    generate(generator, [5], ["rain"], CONFIG, on_step=lambda step: steps.append(step.step))
    assert steps == [1, 2, 3, 4]


# -- editing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize(
    "where",
    [
        {"spans": [(4, 9)]},
        {"spans": [(0, 2), (10, 20)]},
        {"insertions": [(7, 4)]},
        {"continue_to": 26},
        {"spans": [(3, 5)], "insertions": [(0, 1), (20, 2)], "continue_to": 22},
    ],
)
def test_kept_tokens_are_kept_bit_for_bit(where, context):
    generator, latents = make(context), torch.randn(20, 4)
    edited = edit(generator, latents, text="rain", config=CONFIG, seed=[1, 2], **where)
    kept = ~edited.plan.generated
    assert edited.latents.shape == (2, len(kept), 4)
    for take in edited.latents:
        assert torch.equal(take[kept], latents[edited.plan.source[kept]])
    new = edited.latents[:, edited.plan.generated]
    assert new.isfinite().all()
    assert not torch.allclose(new[0], new[1], atol=1e-2)
    again = edit(generator, latents, text="rain", config=CONFIG, seed=2, **where)
    torch.testing.assert_close(again.latents[0], edited.latents[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [True, False])
def test_what_is_generated_hears_both_sides(context):
    generator, latents = make(context), torch.randn(20, 4)
    config = dataclasses.replace(CONFIG, guidance=Guidance(1.0))

    def middle(clip):
        return edit(generator, clip, [(8, 12)], "rain", config=config).latents[0, 8:12]

    for place in (2, 17):
        other = latents.clone()
        other[place] += 1.0
        assert not torch.allclose(middle(latents), middle(other), atol=1e-4)


def test_kept_tokens_go_straight_from_their_noise_to_their_data():
    generator, latents, seen = make(), torch.randn(10, 4), []
    edit(generator, latents, [(3, 5)], config=CONFIG, seed=6, on_step=seen.append)
    noise, data = item_noise([6], [10], 4)[0], generator.dit.normalise(latents)
    kept = [0, 1, 2, 5, 6, 7, 8, 9]
    for step in seen:
        expected = (1 - step.noise_level) * data + step.noise_level * noise
        torch.testing.assert_close(step.x[0, kept], expected[kept], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step.data[0, kept], data[kept], rtol=1e-4, atol=1e-5)


def test_a_generator_trained_with_context_edits_better_than_one_that_cannot_see_it():
    """On clips that are one random value from end to end, what stands between kept tokens can only be read off them."""
    torch.manual_seed(1)
    config = DiTConfig(latent_dim=1, width=32, depth=2, heads=2, text_dim=0, time_features=16, aligned_dim=2)
    generator = Generator(GeneratorConfig(config, FlowMatching(), context=True))
    optimizer = torch.optim.AdamW(generator.parameters(), 4e-3)
    masking = SpanMasking(whole=0.1)
    for _ in range(150):
        clips = torch.randn(32, 1, 1).expand(-1, 12, -1)
        generator.loss(clips, masking=masking, dropout=ConditionDropout(joint=0.1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    generator.eval()
    config = SamplerConfig(steps=10, guidance=Guidance(1.0))
    errors = []
    for value in (-1.5, 0.0, 1.5):
        edited = edit(generator, torch.full((12, 1), value), [(4, 8)], config=config, seed=range(4))
        errors.append((edited.latents[:, 4:8] - value).abs().mean().item())
    assert sum(errors) / 3 < 0.5  # what does not look is off by 1.3 on average


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_padding_never_reaches_the_loss(generator):
    latents, lengths = torch.randn(3, 9, 4), torch.tensor([9, 4, 1])

    def loss(clip):
        torch.manual_seed(2)
        generator.zero_grad()
        value = generator.loss(clip, lengths, ["rain", "", "wind"])
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None])
        return value.item(), gradient

    poisoned = latents.clone()
    poisoned[1, 4:] = poisoned[2, 1:] = math.nan
    value, gradient = loss(latents)
    other, other_gradient = loss(poisoned)
    assert value == other
    assert torch.equal(gradient, other_gradient)
    assert gradient.isfinite().all()


def test_hidden_conditions_are_not_seen():
    generator, latents = make(), torch.randn(4, 8, 4)

    def loss(texts, clips, **dropout):
        torch.manual_seed(3)
        options = ConditionDropout(**{"joint": 0.0, **dropout})
        return generator.loss(clips, None, texts, masking=SpanMasking(whole=0.0), dropout=options).item()

    rain, wind = ["rain"] * 4, ["wind"] * 4
    assert loss(rain, latents) != loss(wind, latents)
    assert loss(rain, latents, text=1.0) == loss(wind, latents, text=1.0) == loss(None, latents, text=1.0)
    assert loss(rain, latents, joint=1.0) == loss(wind, latents, joint=1.0)
    seen = []
    forward = generator.dit.forward
    generator.dit.forward = lambda x, t, conditions, lengths: (
        seen.append(conditions) or forward(x, t, conditions, lengths)
    )
    loss(rain, latents)
    loss(rain, latents, aligned=1.0)
    loss(rain, latents, joint=1.0)
    assert seen[0].aligned[..., -1].any()
    given = seen[0].aligned[..., -1] > 0
    torch.testing.assert_close(seen[0].aligned[given][:, :4], generator.dit.normalise(latents)[given])
    assert not seen[0].aligned[~given].any()
    assert not seen[1].aligned.any()
    assert seen[2].drop.all()
    assert not seen[0].drop.any()


def test_it_is_stored_with_all_that_it_needs(tmp_path):
    generator = make(direction="data - noise")
    generator.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert again.config == generator.config
    assert again.flow == FlowMatching("data - noise")
    got, expected = (generate(g, [5], ["rain"], CONFIG, 1) for g in (again, generator))
    assert torch.equal(got, expected)


def test_in_bfloat16_it_errs_no_more_than_plain_torch_does(tmp_path):
    generator = make()
    generator.save_pretrained(tmp_path)
    half = Generator.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert half.dit.statistics.std.dtype == torch.float32
    clip = generator.dit.denormalise(torch.randn(14, 4, generator=torch.Generator().manual_seed(1)))

    def made(of):
        edited = edit(of, clip, [(3, 9)], "wind", config=CONFIG, seed=2).latents[0]
        return torch.cat([generate(of, [9], ["rain"], CONFIG, 1)[0], edited])

    exact = made(Generator.from_pretrained(tmp_path, dtype=torch.float64))
    with losatok_ext.use_backend("reference"):
        theirs = made(half)
    ours = made(half)
    assert ours.dtype == torch.float32
    assert not torch.equal(ours, made(generator))
    assert_within_budget(ours, theirs, exact)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(generator):
    latents = torch.randn(10, 4)
    for arguments, message in (
        ({"spans": [(3, 12)]}, "the span 3:12 does not lie within the clip's 10 tokens"),
        ({"spans": []}, "there is nothing to edit"),
        ({"spans": [(1, 2)], "fingerprint": "f" * 16}, "trained on latents of the tokenizer 0123456789abcdef"),
        ({"spans": [(1, 2)], "text": "x" * 41}, r"has 41 bytes, and the model\s+takes 40"),
        ({"spans": [(1, 2)], "config": SamplerConfig(cuda_graphs=True)}, "cuda_graphs"),
    ):
        with pytest.raises(UserError, match=message):
            edit(generator, latents, **arguments)
    with pytest.raises(ValueError, match=r"latents should have shape \[T, d\] with d = 4, got \[10, 3\]"):
        edit(generator, latents[:, :3], [(1, 2)])
    with pytest.raises(ValueError, match="seed should be a number, or at least one"):
        edit(generator, latents, [(1, 2)], seed=[])
    latents[3] = math.nan
    with pytest.raises(UserError, match="latents holds NaN or infinity"):
        edit(generator, latents, [(1, 2)])
    with pytest.raises(ValueError, match="lengths should hold at least 1 token"):
        generate(generator, [3, 0])
    with pytest.raises(ValueError, match="texts should be one for each of the 2 items, got 1"):
        generate(generator, [3, 3], ["rain"])
    with pytest.raises(UserError, match=r"this generator takes no text \(text_dim=0\)"):
        generate(make(text=False), [3], ["rain"])
    with pytest.raises(UserError, match="trained without context"):
        make(context=False).conditions(1, 5, known=torch.zeros(1, 5, 4), given=torch.ones(1, 5, dtype=torch.bool))
