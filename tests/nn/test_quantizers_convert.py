"""Ours beside vector-quantize-pytorch: the same codes, gradients, moving means and losses, step after step."""

import copy

import pytest
import torch
from torch import nn

from losatok_ext.nn import ResidualVQ, VectorQuantizer, from_vector_quantize_pytorch
from nn.quantizer_cases import batch, in_our_order

peers = pytest.importorskip("vector_quantize_pytorch")

DIM = 16
LENGTHS = torch.tensor([20, 4, 13])
VECTOR = {
    "straight-through": {"rotation_trick": False},
    "rotation": {},
    "projected": {"codebook_dim": 6},
    "cosine": {"use_cosine_sim": True},
    "learned": {"learnable_codebook": True, "ema_update": False, "rotation_trick": False},
    "weighted": {"commitment_weight": 0.25, "decay": 0.95, "eps": 1e-3},
    "without-commitment": {"commitment_weight": 0.0},
}
RESIDUAL = {
    "straight-through": {"rotation_trick": False},
    "rotation": {},
    "projected": {"codebook_dim": 6},
    "shared": {"shared_codebook": True},
    "learned": {"learnable_codebook": True, "ema_update": False},
}


def vector(**options):
    return peers.VectorQuantize(dim=DIM, codebook_size=32, **options)


def residual(**options):
    return peers.ResidualVQ(dim=DIM, codebook_size=24, num_quantizers=3, **options)


def below_threshold():
    module = vector(threshold_ema_dead_code=2)
    module._codebook.reset_cluster_size = 1
    return module


def step(quantizer, x, arguments, weights, optimizer):
    """Quantized, codes, the loss and the gradient to x of one training step."""
    x = x.clone().requires_grad_()
    quantized, codes, losses = quantizer(x, **arguments)
    loss = sum(losses.values(), torch.zeros(())) if isinstance(losses, dict) else losses.sum()
    if optimizer is not None:
        optimizer.zero_grad()
    ((quantized * weights).sum() + loss).backward()
    if optimizer is not None:
        optimizer.step()
    return quantized.detach(), codes, loss.item(), x.grad


def assert_trains_alike(theirs, lengths, ordered=lambda codes: codes):
    theirs.train()
    ours = from_vector_quantize_pytorch(theirs)
    assert ours.training
    parameters = [[p for p in module.parameters() if p.requires_grad] for module in (ours, theirs)]
    optimizers = [torch.optim.SGD(own, lr=0.01) if own else None for own in parameters]
    given = ({}, {}) if lengths is None else ({"lengths": lengths}, {"mask": torch.arange(20) < lengths[:, None]})
    for number in range(6):
        x, weights = batch(dim=DIM, seed=number), torch.randn(3, 20, DIM)
        mine = step(ours, x, given[0], weights, optimizers[0])
        other = step(theirs, x, given[1], weights, optimizers[1])
        masked = torch.ones(3, 20, dtype=torch.bool) if lengths is None else given[1]["mask"]
        assert torch.equal(mine[1][masked], ordered(other[1])[masked])
        torch.testing.assert_close(mine[0][masked], other[0][masked], rtol=1e-4, atol=1e-5)
        assert (mine[0][~masked] == 0).all()
        torch.testing.assert_close(mine[3], other[3], rtol=1e-4, atol=1e-5)
        yield ours, mine[2], other[2]
    theirs.eval()
    x = batch(dim=DIM, seed=9)
    assert torch.equal(ours.eval()(x).codes, ordered(theirs(x)[1]))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("options", VECTOR.values(), ids=VECTOR)
def test_vector_quantize_trains_alike(options, lengths):
    if lengths is not None and ("codebook_dim" in options or "use_cosine_sim" in options):
        # With a mask theirs compares codes with what was neither projected nor normalized.
        options = {**options, "commitment_weight": 0.0}
    theirs = vector(**options)
    for ours, loss, expected in assert_trains_alike(theirs, lengths):
        expected = 2 * expected if "learnable_codebook" in options else expected  # one loss, told as two
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
        book = theirs._codebook
        torch.testing.assert_close(ours.codebooks.codes, book.embed, rtol=1e-4, atol=1e-5)
        if "learnable_codebook" not in options:
            torch.testing.assert_close(ours.codebooks.usage, book.cluster_size, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.codebooks.sums, book.embed_avg, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("options", RESIDUAL.values(), ids=RESIDUAL)
def test_residual_vq_trains_alike(options, lengths):
    theirs = residual(**options)
    for ours, loss, expected in assert_trains_alike(theirs, lengths):
        expected = 2 * expected if "learnable_codebook" in options else expected
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
        books = [layer._codebook for layer in theirs.layers[: ours.codebooks.codes.shape[0]]]
        for stage, book in enumerate(books):
            torch.testing.assert_close(ours.codebooks.codes[stage], book.embed[0], rtol=1e-4, atol=1e-5)
            if "learnable_codebook" not in options:
                torch.testing.assert_close(ours.codebooks.usage[stage], book.cluster_size[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3, "rotation_trick": False}], ids=str)
def test_grouped_residual_vq_trains_alike(options, lengths):
    theirs = peers.GroupedResidualVQ(dim=DIM, groups=4, codebook_size=16, num_quantizers=3, **options)
    for ours, loss, expected in assert_trains_alike(theirs, lengths, in_our_order):
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for group, other in zip(ours.quantizers, theirs.rvqs, strict=True):
            torch.testing.assert_close(group.codebooks.codes, other.codebooks, rtol=1e-4, atol=1e-5)
    codes = theirs(batch(dim=DIM))[1]
    torch.testing.assert_close(ours.decode(in_our_order(codes)), theirs.get_output_from_indices(codes))


def test_trained_modules_decode_alike():
    for theirs in (vector(kmeans_init=True, codebook_dim=5), residual(kmeans_init=True, codebook_dim=5)):
        for number in range(3):
            theirs(batch(dim=DIM, seed=number))
        ours = from_vector_quantize_pytorch(theirs.eval())
        assert not ours.training
        assert ours.codebooks.ready
        x = batch(dim=DIM, seed=9)
        quantized, codes, _ = theirs(x)
        assert torch.equal(ours.encode(x), codes)
        torch.testing.assert_close(ours(x).quantized, quantized, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(codes), theirs.get_output_from_indices(codes), rtol=1e-4, atol=1e-5)
        before = copy.deepcopy(theirs.state_dict())
        ours.train()(x)
        assert all(torch.equal(before[name], value) for name, value in theirs.state_dict().items())


def test_what_has_not_started_starts_here():
    ours = from_vector_quantize_pytorch(vector(kmeans_init=True, kmeans_iters=3))
    assert not ours.codebooks.ready
    assert ours.config.kmeans_iterations == 3
    ours(batch(dim=DIM))
    assert ours.codebooks.ready


def test_options_become_ours():
    ours = from_vector_quantize_pytorch(vector(threshold_ema_dead_code=2, decay=0.9))
    assert isinstance(ours, VectorQuantizer)
    assert (ours.config.dead_below, ours.config.revived_at, ours.config.usage_unit) == (2.0, 2.0, "frames")
    assert ours.config.decay == 0.9
    ours = from_vector_quantize_pytorch(residual(quantize_dropout=True, quantize_dropout_cutoff_index=1))
    assert isinstance(ours, ResidualVQ)
    assert (ours.config.dropout, ours.config.min_stages, ours.config.stages) == (1.0, 2, 3)
    used = (ours(batch(clips=50, dim=DIM)).codes >= 0).sum(-1)
    assert set(used.flatten().tolist()) == {2, 3}


@pytest.mark.parametrize(("multiple", "ours"), [(1, 1), (2, 2), (3, 3), (8, 3)])
def test_dropout_in_multiples_leaves_as_many_stages(multiple, ours):
    theirs = residual(quantize_dropout=True, quantize_dropout_multiple_of=multiple)
    converted = from_vector_quantize_pytorch(theirs)
    assert converted.config.dropout_multiple_of == ours
    x = batch(clips=40, dim=DIM)
    found = {int((theirs(x, rand_quantize_dropout_fixed_seed=seed)[1][0, 0] >= 0).sum()) for seed in range(40)}
    assert set((converted(x).codes >= 0).sum(-1).flatten().tolist()) == found


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: vector(heads=2), "heads"),
        (lambda: vector(channel_last=False), "channel_last"),
        (lambda: vector(accept_image_fmap=True), "accept_image_fmap"),
        (lambda: vector(freeze_codebook=True), "freeze_codebook"),
        (lambda: vector(codebook_dim=4, layernorm_after_project_in=True), "layernorm_after_project_in"),
        (lambda: vector(commitment_use_cross_entropy_loss=True), "commitment_use_cross_entropy_loss"),
        (lambda: vector(orthogonal_reg_weight=1.0, ema_update=False), "orthogonal_reg_weight"),
        (lambda: vector(codebook_diversity_loss_weight=1.0), "codebook_diversity_loss_weight"),
        (lambda: vector(stochastic_sample_codes=True), "stochastic_sample_codes"),
        (lambda: vector(straight_through=True, rotation_trick=False), "straight_through"),
        (lambda: vector(affine_param=True), "affine_param"),
        (lambda: vector(manual_ema_update=True), "manual_ema_update"),
        (lambda: vector(ema_update=False), "ema_update"),
        (lambda: below_threshold(), "reset_cluster_size"),
        (lambda: vector(return_zeros_for_masked_padding=False), "return_zeros_for_masked_padding"),
        (lambda: vector(route_gradients_to_input=False), "route_gradients_to_input"),
        (lambda: peers.SimVQ(dim=4, codebook_size=8, channel_first=True), "channel_first"),
        (
            lambda: peers.SimVQ(dim=4, codebook_size=8, codebook_transform=nn.Sequential(nn.Linear(4, 4))),
            "codebook_transform",
        ),
        (lambda: residual(use_cosine_sim=True), "use_cosine_sim"),
        (lambda: residual(quant_grad_frac=0.5), "quant_grad_frac"),
        (lambda: residual(implicit_neural_codebook=True), "implicit_neural_codebook"),
        (lambda: residual(beam_size=2), "beam_size"),
        (lambda: residual(stochastic_sample_codes=True), "stochastic_sample_codes"),
        (lambda: peers.ResidualVQ(dim=DIM, num_quantizers=2, codebook_size=(8, 16)), "codebook_size"),
        (
            lambda: peers.GroupedResidualVQ(dim=4, groups=2, num_quantizers=2, codebook_size=8, accept_image_fmap=True),
            "accept_image_fmap",
        ),
        (lambda: peers.FSQ([4, 4], preserve_symmetry=True), "preserve_symmetry"),
        (lambda: peers.FSQ([4, 4], channel_first=True), "channel_first"),
        (lambda: peers.FSQ([4, 4], dim=3, projection_has_bias=False), "projection_has_bias"),
        (lambda: peers.FSQ([4, 4], keep_num_codebooks_dim=True), "keep_num_codebooks_dim"),
        (lambda: peers.ResidualFSQ(levels=[4, 4], num_quantizers=2, bound_hard_clamp=False), "bound_hard_clamp"),
        (lambda: peers.ResidualFSQ(levels=[4, 4], num_quantizers=2, noise_dropout=0.1), "noise_dropout"),
        (lambda: peers.ResidualFSQ(levels=[4, 4], num_quantizers=2, is_channel_first=True), "is_channel_first"),
        (
            lambda: peers.ResidualLFQ(dim=4, codebook_size=16, num_quantizers=2, soft_clamp_input_value=2.0),
            "soft_clamp_input_value",
        ),
        (lambda: peers.LFQ(dim=4, spherical=True), "spherical"),
        (lambda: peers.LFQ(dim=4, frac_per_sample_entropy=0.5), "frac_per_sample_entropy"),
        (lambda: peers.LFQ(dim=4, has_projections=True), "has_projections"),
        (lambda: peers.LFQ(dim=5, codebook_size=16, cosine_sim_project_in=True), "cosine_sim_project_in"),
        (lambda: peers.LFQ(dim=4, straight_through_activation=nn.Tanh()), "straight_through_activation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_ours_lack_are_refused_by_name(make, option):
    with pytest.raises(ValueError, match=rf" has {option} = "):
        from_vector_quantize_pytorch(make())


def test_other_modules_are_refused():
    for module in (nn.Linear(2, 2), peers.LatentQuantize([4, 4], dim=4)):
        with pytest.raises(TypeError, match="VectorQuantize, ResidualVQ, GroupedResidualVQ"):
            from_vector_quantize_pytorch(module)


def test_stages_that_have_not_all_started_are_refused():
    theirs = residual(kmeans_init=True)
    theirs.layers[0](batch(dim=DIM))
    with pytest.raises(ValueError, match="not yet started from k-means"):
        from_vector_quantize_pytorch(theirs)
