"""How codebooks learn: moving means, the start, the revival of dead codes, losses and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import losatok_ext
from losatok_ext.nn import ResidualVQConfig, VectorQuantizer, VQConfig, build_quantizer
from losatok_ext.nn.quantizers.gradients import rotate_back
from losatok_ext.nn.quantizers.kmeans import kmeans
from losatok_ext.nn.quantizers.pool import spread
from nn.quantizer_cases import DIM, batch, spoiled

PLAIN = {"kmeans": False, "dead_below": 0.0}
LENGTHS = torch.tensor([20, 4, 13])


def rows_of(x, lengths):
    return torch.cat([clip[:end] for clip, end in zip(x, lengths, strict=True)])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
def test_moving_means_are_their_formula(cosine, backend):
    quantizer = VectorQuantizer(VQConfig(codebook_size=16, decay=0.8, epsilon=1e-3, cosine=cosine, **PLAIN), DIM)
    codes = quantizer.codebook.double()
    usage, sums = torch.ones(16, dtype=torch.float64), codes.clone()
    with losatok_ext.use_backend(backend):
        for step in range(4):
            x = batch(seed=step)
            result = quantizer(spoiled(x, LENGTHS), LENGTHS)
            rows = rows_of(x, LENGTHS).double()
            rows = F.normalize(rows, dim=-1) if cosine else rows
            chosen = torch.cdist(rows, codes).argmin(-1)
            assert torch.equal(chosen, rows_of(result.codes, LENGTHS))
            count = torch.bincount(chosen, minlength=16).double()
            total = torch.zeros_like(codes).index_add(0, chosen, rows)
            usage, sums = 0.8 * usage + 0.2 * count, 0.8 * sums + 0.2 * total
            smoothed = (usage + 1e-3) / (usage.sum() + 16e-3) * usage.sum()
            codes = sums / smoothed[:, None]
            codes = F.normalize(codes, dim=-1) if cosine else codes
            torch.testing.assert_close(quantizer.codebook.double(), codes, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(quantizer.codebooks.usage[0].double(), usage, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codebook", ["ema", "learned"])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_losses_and_gradients_are_those_of_plain_autograd(codebook, gradient):
    """The chain written out with autograd, in float64."""
    config = ResidualVQConfig(
        codebook_size=16,
        stages=3,
        codebook=codebook,
        gradient=gradient,
        codebook_weight=0.7,
        commitment_weight=0.3,
        **PLAIN,
    )
    quantizer = build_quantizer(config, DIM).double()
    books = quantizer.codebooks.codes.detach().clone().requires_grad_()
    x = batch(dtype=torch.float64)
    ours, plain = spoiled(x, LENGTHS).requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(3, 20, DIM, dtype=torch.float64)
    result = quantizer(ours, LENGTHS)
    ((result.quantized * weights).sum() + sum(result.losses.values())).backward()

    valid = (torch.arange(20) < LENGTHS[:, None])[..., None]
    residual, total, commitment, learned = plain, torch.zeros_like(plain), 0.0, 0.0
    for book in books:
        chosen = book[torch.cdist(residual.detach().flatten(0, 1), book.detach()).argmin(-1)].view_as(plain)
        count = LENGTHS.sum() * DIM
        commitment = commitment + torch.where(valid, (residual - chosen.detach()).square(), 0).sum() / count
        learned = learned + torch.where(valid, (residual.detach() - chosen).square(), 0).sum() / count
        total = total + chosen.detach()
        residual = residual - chosen.detach()
    torch.testing.assert_close(result.quantized, torch.where(valid, total, 0))
    torch.testing.assert_close(result.losses["commitment"], 0.3 * commitment)
    passed = plain * 1.0
    passed.register_hook(lambda grad: torch.where(valid, grad, 0))
    if gradient == "straight_through":
        passed = passed + (total - passed).detach()
    else:
        unit = [F.normalize(part.detach(), dim=-1) for part in (passed, total)]
        r = F.normalize(unit[0] + unit[1], dim=-1)
        turned = passed - 2 * r * (r * passed).sum(-1, keepdim=True)
        turned = turned + 2 * unit[1] * (unit[0] * passed).sum(-1, keepdim=True)
        passed = turned * (total.norm(dim=-1, keepdim=True) / plain.detach().norm(dim=-1, keepdim=True))
        torch.testing.assert_close(passed[valid.squeeze(-1)], total[valid.squeeze(-1)])
    ((passed * weights).sum() + 0.3 * commitment + 0.7 * learned).backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    if codebook == "learned":
        torch.testing.assert_close(result.losses["codebook"], 0.7 * learned)
        torch.testing.assert_close(quantizer.codebooks.codes.grad, books.grad)
    else:
        assert set(result.losses) == {"commitment"}


def test_each_stage_may_pass_its_own_gradient():
    x = batch().requires_grad_()
    options = {"codebook_size": 8, "stages": 3, "gradient": "straight_through", "commitment_weight": 0.0, **PLAIN}
    for each, factor in ((False, 1.0), (True, 3.0)):
        quantizer = build_quantizer(ResidualVQConfig(stage_gradients=each, **options), DIM)
        (grad,) = torch.autograd.grad(quantizer(x).quantized.sum(), x)
        assert (grad == factor).all()


def test_rotation_is_an_orthogonal_map_times_a_length():
    source, target = torch.randn(2, 40, 6, dtype=torch.float64)
    grads = torch.eye(6, dtype=torch.float64)
    # Row j of the map is what the j-th unit gradient comes back as.
    maps = torch.stack([rotate_back(grad.expand(40, 6), source, target) for grad in grads], dim=1)
    torch.testing.assert_close((maps @ source.unsqueeze(-1)).squeeze(-1), target)
    scale = (target.norm(dim=-1) / source.norm(dim=-1)).square()
    torch.testing.assert_close(maps @ maps.mT, scale.view(-1, 1, 1) * grads.expand(40, 6, 6))


def test_rotation_where_there_is_no_direction():
    grad = torch.randn(4, 6)
    source = torch.randn(4, 6)
    target = torch.stack((source[0], -source[1], torch.zeros(6), source[3]))
    source = torch.cat((source[:3], torch.zeros(1, 6)))
    result = rotate_back(grad, source, target)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result[0], grad[0])
    assert (result[2] == 0).all()
    assert torch.equal(result[3], grad[3])


def test_the_start_finds_separate_clusters():
    centres = 10 * torch.randn(8, DIM)
    x = centres.repeat(40, 1) + 0.01 * torch.randn(320, DIM)
    quantizer = VectorQuantizer(VQConfig(codebook_size=8), DIM)
    assert not quantizer.codebooks.ready
    result = quantizer(x)
    assert quantizer.codebooks.ready
    assert result.losses["commitment"] < 1e-3
    torch.testing.assert_close(
        torch.cdist(quantizer.codebook, centres).min(1).values, torch.zeros(8), atol=0.05, rtol=0
    )
    again = VectorQuantizer(VQConfig(codebook_size=8), DIM)
    again.load_state_dict(quantizer.state_dict())
    assert again.codebooks.ready


def test_lloyd_never_gets_worse():
    rows = torch.randn(500, DIM)
    noise, count = torch.rand(20), torch.tensor(500)
    errors = []
    for iterations in range(6):
        centres, chosen = kmeans(rows, count, 20, iterations, noise)
        assert chosen.sum() == 500
        errors.append(torch.cdist(rows, centres).min(1).values.square().sum().item())
    assert errors == sorted(errors, reverse=True)


def test_the_start_takes_a_bounded_part_of_a_large_batch(monkeypatch):
    from losatok_ext.nn.quantizers import codebooks

    seen = []

    def spy(rows, *rest):
        seen.append(rows)
        return kmeans(rows, *rest)

    monkeypatch.setattr(codebooks, "kmeans", spy)
    x = torch.arange(600.0).view(3, 200, 1)
    VectorQuantizer(VQConfig(codebook_size=8, kmeans_rows=50), 1)(x, torch.tensor([200, 0, 150]))
    (rows,) = seen
    assert rows.shape == (50, 1)
    assert len(rows.unique()) == 50
    assert rows.min() == 0
    assert ((rows < 200) | (rows >= 400)).all()
    assert rows.max() >= 540


@pytest.mark.parametrize("iterations", [0, 10])
def test_a_first_batch_smaller_than_the_codebook(iterations):
    quantizer = VectorQuantizer(VQConfig(codebook_size=64, kmeans_iterations=iterations), DIM)
    x = torch.randn(5, DIM)
    assert quantizer(x).losses["commitment"] < 1e-10
    assert torch.isfinite(quantizer.codebook).all()
    for step in range(30):
        quantizer(batch(seed=step))
    assert len(quantizer.encode(batch(seed=99)).unique()) > 20


@pytest.mark.parametrize("codebook", ["ema", "learned"])
def test_dead_codes_become_rows_of_the_batch(codebook):
    config = VQConfig(
        codebook_size=12, codebook=codebook, kmeans=False, dead_below=0.5, revived_at=2.0, usage_unit="frames"
    )
    quantizer = VectorQuantizer(config, DIM)
    books = quantizer.codebooks
    with torch.no_grad():
        books.codes[0, 4:] += 1000.0  # nobody chooses them
        if books.sums is not None:
            books.sums.copy_(books.codes)
        books.usage[0, 4:9] = 0.1  # and these die
    far = books.codes[0].clone()
    x = batch(seed=1)
    quantizer(spoiled(x, LENGTHS), LENGTHS)
    rows = rows_of(x, LENGTHS)
    revived = books.codes[0, 4:9]
    places = [(rows == code).all(-1).nonzero() for code in revived]
    assert all(len(place) == 1 for place in places)
    assert len({int(place) for place in places}) == 5
    assert (books.usage[0, 4:9] == 2.0).all()
    torch.testing.assert_close(books.codes[0, 9:], far[9:], rtol=1e-3, atol=0)
    if codebook == "ema":
        assert torch.equal(books.sums[0, 4:9], 2 * revived)
    else:
        assert torch.equal(books.codes[0, :4], far[:4])


def test_no_row_revives_two_codes():
    config = VQConfig(codebook_size=40, kmeans=False, dead_below=0.9, usage_unit="frames", decay=0.5)
    quantizer = VectorQuantizer(config, DIM)
    with torch.no_grad():
        quantizer.codebooks.codes += 1000.0
    x = torch.randn(1, 7, DIM)
    quantizer(x, torch.tensor([6]))
    codes = quantizer.codebook
    hits = (codes[:, None] == x[0, :6]).all(-1).sum(0)
    assert hits.tolist() == [1] * 6


def test_revival_is_repeatable_and_spread_over_the_batch():
    total = torch.tensor(1000)
    positions = [spread(torch.tensor(10), total, 16, torch.rand(16)) for _ in range(2)]
    for drawn in positions:
        assert torch.equal(drawn[:10] // 100, torch.arange(10))
        assert (drawn[10:] >= 1000).all()
    assert not torch.equal(*positions)
    quantizer = VectorQuantizer(VQConfig(codebook_size=64, dead_below=1.0), DIM)
    twins = quantizer, copy.deepcopy(quantizer)
    for twin in twins:
        torch.manual_seed(5)
        for step in range(3):
            twin(batch(seed=step))
    assert torch.equal(twins[0].codebook, twins[1].codebook)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 10**9), parts=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_positions_are_distinct_and_within(total, parts, seed):
    parts = min(parts, total)
    noise = torch.rand(parts, generator=torch.Generator().manual_seed(seed))
    noise[::2] = 1 - 2**-24  # the largest below 1
    for drawn in (
        spread(torch.tensor(parts), torch.tensor(total), parts, noise),
        spread(torch.tensor(parts), torch.tensor(total), parts),
    ):
        assert (drawn[1:] > drawn[:-1]).all()
        assert drawn[0] >= 0
        assert drawn[-1] < total


def test_every_code_stays_alive_on_bfloat16_latents():
    """Few steps of bfloat16 lie between the latents: codes and moving means in it would fall together."""
    x = (8 + 0.5 * torch.rand(2000, 2)).bfloat16()
    assert 64 < len(x.unique(dim=0)) < 90
    quantizer = VectorQuantizer(VQConfig(codebook_size=64, decay=0.9), 2).bfloat16()
    twin = VectorQuantizer(VQConfig(codebook_size=64, decay=0.9), 2)
    for module, rows in ((quantizer, x), (twin, x.float())):
        torch.manual_seed(1)
        for _ in range(40):
            codes = module(rows).codes
        assert len(codes.unique()) == 64
    assert quantizer.codebook.dtype == torch.float32
    assert torch.equal(quantizer.codebook, twin.codebook)
    before = quantizer.codebook.clone()
    assert torch.equal(quantizer.half().float().bfloat16().codebook, before)
    assert quantizer.double().codebook.dtype == torch.float64


def test_rows_that_are_not_finite_spoil_no_codebook():
    quantizer = VectorQuantizer(VQConfig(codebook_size=8), DIM)
    x = batch()
    x[0, 3], x[1, 5, 2] = torch.nan, torch.inf
    for _ in range(3):
        result = quantizer(x)
    assert not torch.isfinite(result.losses["commitment"])
    assert torch.isfinite(quantizer.codebook).all()
    assert torch.isfinite(quantizer.codebooks.sums).all()


def test_a_batch_without_frames_teaches_nothing():
    quantizer = VectorQuantizer(VQConfig(codebook_size=8, decay=0.0, kmeans=False), DIM)
    before = copy.deepcopy(quantizer.state_dict())
    result = quantizer(batch(), torch.zeros(3, dtype=torch.int64))
    assert result.losses["commitment"] == 0
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_an_empty_first_batch_is_no_start():
    quantizer = VectorQuantizer(VQConfig(codebook_size=8), DIM)
    assert quantizer(torch.zeros(2, 0, DIM)).losses["commitment"] == 0
    assert not quantizer.codebooks.ready
    quantizer(batch())
    assert quantizer.codebooks.ready


def test_dropout_leaves_out_the_last_stages_of_some_clips():
    config = ResidualVQConfig(codebook_size=8, stages=5, dropout=0.8, min_stages=2, dead_below=0.0)
    quantizer = build_quantizer(config, DIM)
    first = quantizer(batch(clips=40, time=5)).codes
    assert (first >= 0).all()  # the batch that the codebooks start from
    before = copy.deepcopy(quantizer)
    x = batch(clips=200, time=5)
    result = quantizer(x)
    used = (result.codes >= 0).sum(-1)
    assert (used == used[:, :1]).all()
    assert set(used[:, 0].tolist()) == {2, 3, 4, 5}
    assert 0.25 < (used[:, 0] == 5).double().mean() < 0.55  # 0.2 + 0.8 / 4
    codes = before.encode(x)
    kept = torch.where(torch.arange(5) < used[..., None], codes, -1)
    assert torch.equal(result.codes, kept)
    assert torch.equal(result.quantized, before.decode(kept))
    # The last codebook learns from whole clips alone.
    residual = (x - before.decode(codes[..., :4]))[used[:, 0] == 5].flatten(0, 1)
    chosen = codes[used[:, 0] == 5][..., 4].flatten()
    expected = before.codebooks.sums[4].lerp(torch.zeros(8, DIM).index_add(0, chosen, residual), 1 - config.decay)
    torch.testing.assert_close(quantizer.codebooks.sums[4], expected, rtol=1e-4, atol=1e-5)
    quantizer.eval()
    assert (quantizer(x).codes >= 0).all()


def test_dropout_in_multiples():
    config = ResidualVQConfig(codebook_size=8, stages=7, dropout=1.0, min_stages=2, dropout_multiple_of=3, kmeans=False)
    quantizer = build_quantizer(config, DIM)
    used = (quantizer(batch(clips=200, time=2)).codes[:, 0] >= 0).sum(-1)
    assert set(used.tolist()) == {3, 6, 7}
    assert 0.4 < (used == 6).double().mean() < 0.6  # of 2..7, three become 6


def test_fewer_codes_decode_too():
    quantizer = build_quantizer(ResidualVQConfig(codebook_size=8, stages=4, codebook_dim=5), DIM)
    quantizer(batch())
    codes = quantizer.encode(batch())
    dropped = torch.cat((codes[..., :2], torch.full_like(codes[..., 2:], -1)), dim=-1)
    assert torch.equal(quantizer.decode(codes[..., :2]), quantizer.decode(dropped))


def test_eval_changes_nothing():
    quantizer = VectorQuantizer(VQConfig(codebook_size=8), DIM).eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(batch())
    quantizer.train().encode(batch())
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    assert not quantizer.codebooks.ready
