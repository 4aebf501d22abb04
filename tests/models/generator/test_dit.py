"""The generator's network: shapes, conditions, every weight in use, saving, bad input."""

import copy
import dataclasses
import json

import pytest
import torch

from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.models import Conditions, DiT, DiTConfig, LoSATok
from models.generator.dit_cases import SMALL, all_conditions, noisy, small_dit
from small_models import small_config

NAN = float("nan")


@pytest.fixture(scope="module")
def dit():
    return small_dit()


def test_shapes_and_dtypes(dit):
    x, t = noisy(3, 7)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = dit(x.to(dtype), t)
        assert out.shape == (3, 7, 8)
        assert out.dtype == dtype
    torch.testing.assert_close(dit(x, torch.tensor(0.25)), dit(x, torch.full((3,), 0.25)))
    assert dit(x[:, :0], t).shape == (3, 0, 8)
    assert dit(x[:0], t[:0]).shape == (0, 7, 8)
    half = copy.deepcopy(dit).bfloat16()
    assert half(x, t, all_conditions(3, 7)).dtype == torch.float32
    assert half.statistics.mean.dtype == torch.float32


def test_a_new_model_gives_zero_and_learns_from_it():
    torch.manual_seed(0)
    model = DiT(DiTConfig(**SMALL))
    x, t = noisy(3, 7)
    out = model(x, t, all_conditions(3, 7))
    assert not out.any()
    (out - 1).square().sum().backward()
    assert model.proj_out.weight.grad is not None
    model.proj_out.weight.data.normal_()
    for part in (model.blocks[0].modulation.linear, model.final_modulation.linear):
        part.weight.grad = None
    model(x, t, all_conditions(3, 7)).square().sum().backward()
    for part in (model.blocks[0].modulation.linear, model.final_modulation.linear):
        assert part.weight.grad.any()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"modulation": "shared", "modulation_rank": 2, "norm_weights": "affine", "qk_norm": "layer"},
        {"activation": "gelu_tanh", "gate": "tanh(1-g)", "long_skip": False, "rotary": 0.5, "qk_norm": "none"},
    ],
    ids=["default", "shared", "other"],
)
def test_every_weight_has_a_gradient(overrides):
    model = small_dit(**overrides).train()
    x, t = noisy(4, 7)
    text, lengths = model.encode_text(["ab", "", "", "a ü"])
    drop = torch.tensor([False, False, True, False])
    conditions = dataclasses.replace(all_conditions(4, 7), text=text, text_lengths=lengths, drop=drop)
    model(x, t, conditions).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias of keys or of what comes before a softmax may cancel out; none of these models has one.
        assert parameter.grad.abs().max() > 0, name


def test_every_condition_counts(dit):
    x, t = noisy(3, 7)
    conditions = all_conditions(3, 7)
    with torch.no_grad():
        out = dit(x, t, conditions)
        others = all_conditions(3, 7, seed=1)
        for name in ("text", "text_lengths", "aligned", "global_"):
            other = torch.tensor([1, 2, 3]) if name == "text_lengths" else getattr(others, name)
            changed = dit(x, t, dataclasses.replace(conditions, **{name: other}))
            assert (changed - out).abs().amax(dim=(1, 2)).min() > 1e-3, name
        assert (dit(x, 1 - t, conditions) - out).abs().max() > 1e-3


def test_a_dropped_item_is_one_without_conditions(dit):
    x, t = noisy(3, 7)
    conditions = all_conditions(3, 7)
    drop = torch.tensor([False, True, False])
    with torch.no_grad():
        out = dit(x, t, dataclasses.replace(conditions, drop=drop))
        alone = dit(x, t)
        kept = dit(x, t, conditions)
    torch.testing.assert_close(out[1], alone[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[[0, 2]], kept[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (kept[1] - alone[1]).abs().max() > 1e-2


def test_an_item_without_text_attends_to_the_null_token(dit):
    x, t = noisy(2, 7)
    text = torch.full((2, 4, 32), NAN)
    with torch.no_grad():
        none = dit(x, t, Conditions(text=text, text_lengths=torch.tensor([0, 0])))
        empty = dit(x, t, Conditions(text=text[:, :0], text_lengths=torch.tensor([0, 0])))
        torch.testing.assert_close(none, dit(x, t), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(empty, dit(x, t), rtol=1e-5, atol=1e-5)


def test_both_halves_of_guidance_in_one_batch(dit):
    x, t = noisy(3, 7)
    conditions = all_conditions(3, 7)
    with torch.no_grad():
        out = dit(x.repeat(2, 1, 1), t.repeat(2), conditions.guided())
        torch.testing.assert_close(out[:3], dit(x, t, conditions), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out[3:], dit(x, t), rtol=1e-5, atol=1e-5)


def test_long_skips_are_nested():
    model = small_dit(depth=6)
    outputs, merged = [], []

    def record(module, arguments, keywords, out):
        outputs.append(out)
        merged.append(keywords["skip"])

    for block in model.blocks:
        block.register_forward_hook(record, with_kwargs=True)
    with torch.no_grad():
        model(*noisy(2, 7))
    assert [skip is None for skip in merged] == [True, True, True, True, False, False]
    assert torch.equal(merged[4], outputs[1])
    assert torch.equal(merged[5], outputs[0])


def test_recomputed_blocks_give_the_same_gradients():
    model = small_dit().train()
    x, t = noisy(2, 7)
    grads = []
    for recompute in (False, True):
        model.recompute_blocks = recompute
        model.zero_grad()
        model(x, t, all_conditions(2, 7), torch.tensor([7, 4])).square().sum().backward()
        grads.append([p.grad.clone() for p in model.blocks.parameters()])
    torch.testing.assert_close(*grads)


def test_a_model_of_no_conditions():
    model = small_dit(text_dim=0, aligned_dim=0, global_dim=0)
    x, t = noisy(2, 7)
    assert model(x, t).shape == (2, 7, 8)
    assert model(x, t, Conditions(drop=torch.tensor([True, False]))).shape == (2, 7, 8)
    with pytest.raises(ValueError, match=r"conditions\.text should be None: this model takes none \(text_dim=0\)"):
        model(x, t, Conditions(text=torch.zeros(2, 3, 4)))
    with pytest.raises(UserError, match="no text encoder"):
        model.encode_text(["a"])


def test_autocast_keeps_the_residual_stream_in_float32(dit):
    x, t = noisy(2, 7)
    seen = []
    hook = dit.blocks[2].register_forward_hook(lambda module, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = dit(x, t, all_conditions(2, 7))
    hook.remove()
    assert seen == [(torch.float32, torch.float32)]
    assert mixed.dtype == torch.float32
    exact = dit(x, t, all_conditions(2, 7))
    assert (mixed - exact).square().mean().sqrt() < 0.1 * exact.square().mean().sqrt()


@pytest.mark.gpu
def test_a_gpu_gives_the_same_and_waits_for_nothing(dit):
    x, t = noisy(3, 50)
    conditions = dataclasses.replace(all_conditions(3, 50), drop=torch.tensor([False, True, False]))
    lengths = torch.tensor([50, 17, 0])
    with torch.no_grad():
        exact = dit(x, t, conditions, lengths)
        model = copy.deepcopy(dit).cuda()
        inputs = x.cuda(), t.cuda(), conditions.to("cuda"), lengths.cuda()
        model(*inputs)  # compiles the kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = model(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (out.cpu() - exact).square().mean().sqrt() < 0.01 * exact.square().mean().sqrt()


# -- latents -----------------------------------------------------------------------------------------------------------


def test_latents_are_normalised_by_their_statistics(dit):
    model = copy.deepcopy(dit)
    z = 3 + 2 * torch.randn(50, 8)
    model.set_latents(z.mean(0), z.std(0), "0123456789abcdef")
    normal = model.normalise(z)
    torch.testing.assert_close(normal.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.std(0), torch.ones(8))
    torch.testing.assert_close(model.denormalise(normal), z)
    assert model.config.tokenizer == "0123456789abcdef"
    model.check_tokenizer("0123456789abcdef")
    with pytest.raises(UserError, match="trained on latents of the tokenizer 0123456789abcdef, and these are of f00"):
        model.check_tokenizer("f00")
    dit.check_tokenizer("f00")  # it stores none
    tokenizer = LoSATok(small_config())
    model.set_latents(z.mean(0), z.std(0), tokenizer.fingerprint())
    model.check_tokenizer(tokenizer.fingerprint())


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        (torch.zeros(7), torch.ones(8), r"mean should have shape \[d\] = \[8\]"),
        (torch.zeros(8), torch.zeros(8), r"std should be positive, got 0\.0 in dimension 0"),
        (torch.full((8,), NAN), torch.ones(8), "mean should be finite"),
        (torch.zeros(8), torch.full((8,), float("inf")), "std should be finite"),
    ],
)
def test_bad_statistics(dit, mean, std, match):
    with pytest.raises(ValueError, match=match):
        dit.set_latents(mean, std)


# -- saving ------------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(dit, tmp_path):
    model = copy.deepcopy(dit)
    model.set_latents(torch.randn(8), torch.rand(8) + 0.5, "0123456789abcdef")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = DiT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    x, t = noisy(2, 7)
    assert torch.equal(loaded(x, t, all_conditions(2, 7)), model(x, t, all_conditions(2, 7)))
    assert torch.equal(loaded.normalise(x), model.normalise(x))
    for ours, theirs in zip(loaded.encode_text(["ab"]), model.encode_text(["ab"]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_low_precision_model_keeps_its_statistics(dit, tmp_path):
    model = copy.deepcopy(dit)
    mean = torch.randn(8)
    model.set_latents(mean, torch.rand(8) + 0.5)
    model.bfloat16().save_pretrained(tmp_path)
    loaded = DiT.from_pretrained(tmp_path)
    assert loaded.proj_in.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.statistics.mean, mean)


def test_a_tokenizer_is_no_generator(dit, tmp_path):
    dit.save_pretrained(tmp_path / "generator")
    LoSATok(small_config()).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="holds a tokenizer, and the network of a generator is needed here"):
        DiT.from_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="holds the network of a generator, and a tokenizer is needed here"):
        LoSATok.from_pretrained(tmp_path / "generator")
    values = json.loads((tmp_path / "generator" / "config.json").read_text())
    values["config"]["width"] = 128
    (tmp_path / "generator" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"null_text|proj_in\.weight has shape \[64, 8\]"):
        DiT.from_pretrained(tmp_path / "generator")


# -- bad input ---------------------------------------------------------------------------------------------------------


def without(**fields):
    return dataclasses.replace(all_conditions(2, 7), **fields)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.zeros(2, 7, 9), torch.zeros(2)), ValueError, r"x should have shape \[B, T, d\] = \[\*, \*, 8\]"),
        ((torch.zeros(2, 7, 8, dtype=torch.int64), torch.zeros(2)), TypeError, "x should be one of float32"),
        ((torch.zeros(2, 7, 8), torch.zeros(3)), ValueError, r"t should have shape \[B\] = \[2\]"),
        ((torch.zeros(2, 7, 8), 0.5), TypeError, "t should be a torch.Tensor"),
        ((torch.zeros(2, 7, 8), torch.zeros(2, dtype=torch.int64)), TypeError, "t should be one of float32"),
        ((torch.zeros(2, 7, 8), torch.zeros(2), None, torch.tensor([8, 1])), ValueError, r"lengths should lie within"),
        ((torch.zeros(2, 7, 8), torch.zeros(2), without(text=torch.zeros(2, 3, 9))), ValueError, "text_dim of 32"),
        ((torch.zeros(2, 7, 8), torch.zeros(2), without(text=torch.zeros(3, 6, 32))), ValueError, "conditions.text"),
        ((torch.zeros(2, 7, 8), torch.zeros(2), without(text=None)), ValueError, "should come with conditions.text"),
        (
            (torch.zeros(2, 7, 8), torch.zeros(2), without(text_lengths=torch.tensor([7, 1]))),
            ValueError,
            r"conditions\.text_lengths should lie within 0\.\.6",
        ),
        ((torch.zeros(2, 7, 8), torch.zeros(2), without(aligned=torch.zeros(2, 6, 5))), ValueError, "aligned_dim of 5"),
        ((torch.zeros(2, 7, 8), torch.zeros(2), without(global_=torch.zeros(2, 4))), ValueError, "global_dim of 3"),
        (
            (torch.zeros(2, 7, 8), torch.zeros(2), without(drop=torch.zeros(2))),
            TypeError,
            "conditions.drop should be a bool",
        ),
        (
            (torch.zeros(2, 7, 8), torch.zeros(2), without(global_=torch.zeros(2, 3, device="meta"))),
            ValueError,
            r"conditions\.global_ should be on x's device cpu, got meta; use conditions\.to",
        ),
        (
            (torch.zeros(2, 7, 8), torch.zeros(2), without(drop=torch.zeros(3, dtype=torch.bool))),
            ValueError,
            r"conditions\.drop should have shape \[B\] = \[2\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(dit, arguments, error, match):
    with pytest.raises(error, match=match):
        dit(*arguments)
