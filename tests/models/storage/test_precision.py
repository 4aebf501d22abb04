"""bfloat16 models: what stays in float32, how far latents and audio move, and linear layers through oneDNN."""

import copy

import pytest
import torch
import torch.nn.functional as F

from losatok_ext.models import LoSATok
from losatok_ext.models.tokenizer.stored_tokenizer import KEPT_IN_FLOAT32
from losatok_ext.nn.linear import Linear
from models.storage.precision_cases import check_that_a_clip_is_its_own, relative
from small_models import tone


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def half(folder):
    return LoSATok.from_pretrained(folder, dtype="bfloat16")


def test_what_stays_in_float32(half):
    dtypes = {name: p.dtype for name, p in half.named_parameters()}
    for name, dtype in dtypes.items():
        assert dtype == (torch.float32 if name.startswith(KEPT_IN_FLOAT32) else torch.bfloat16), name
    assert all(any(name.startswith(kept) for name in dtypes) for kept in KEPT_IN_FLOAT32 if kept != "quantizer.")
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in half.buffers())


def test_tokens_and_waveforms_stay_near(model, half):
    """As near as bfloat16 weights allow, which round by 2^-9, 0.2 %; and nearer than with all of it in bfloat16."""
    audio = torch.stack([tone(24_000, seed) for seed in range(3)])
    lengths = torch.tensor([24_000, 9_001, 480])
    exact, ours = (m.encode(audio, lengths=lengths) for m in (model, half))
    everything = copy.deepcopy(model).bfloat16()
    assert relative(ours.mu, exact.mu) < 0.02
    assert relative(ours.mu, exact.mu) < relative(everything.encode(audio, lengths=lengths).mu.float(), exact.mu)
    waveform = model.decode(exact)
    assert relative(half.decode(exact), waveform) < 0.03
    assert relative(half.decode(exact), waveform) < relative(everything.decode(exact), waveform)
    assert not half.decode(exact)[1, 9_001:].any()


def test_a_clip_is_its_own_in_bfloat16_too(half):
    check_that_a_clip_is_its_own(half)


def test_there_and_back(folder, half, tmp_path):
    half.save_pretrained(tmp_path)
    as_saved, wide = LoSATok.from_pretrained(tmp_path), LoSATok.from_pretrained(tmp_path, dtype=torch.float32)
    for name, parameter in half.named_parameters():
        assert torch.equal(as_saved.get_parameter(name), parameter), name
        assert torch.equal(wide.get_parameter(name), parameter.float()), name
    assert half.fingerprint() == LoSATok.from_pretrained(folder).fingerprint()
    for dtype in ("int4", torch.float16):
        with pytest.raises(ValueError, match="dtype should be one of 'float32', 'bfloat16'"):
            LoSATok.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_linear_is_linear(dtype, bias, gelu):
    layer = Linear(40, 24, bias).to(dtype)
    for shape in ((3, 7, 40), (1, 40), (0, 40), (2, 3, 80)):
        x = torch.randn(shape, dtype=dtype)[..., :: shape[-1] // 40]
        expected = F.linear(x, layer.weight, layer.bias)
        expected = F.gelu(expected) if gelu else expected
        assert torch.equal(layer(x, gelu), expected)  # with gradients it is PyTorch's own
        with torch.no_grad():
            torch.testing.assert_close(
                layer(x, gelu), expected.detach(), **({"rtol": 0.02, "atol": 0.01} if dtype == torch.bfloat16 else {})
            )


def test_packed_weights_follow_the_weight():
    layer = Linear(64, 32).bfloat16()
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(layer(x), before)
        packed = layer._packed
        layer(x)
        assert layer._packed is packed  # once, not at each call
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        assert torch.equal(layer(x), 2 * before)
        twin = copy.deepcopy(layer)
        assert twin._packed is None
        assert torch.equal(twin(x), 2 * before)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x.float()).dtype == torch.bfloat16


def test_a_weight_in_the_place_of_another_is_packed_anew():
    layer, x = Linear(64, 48).bfloat16().requires_grad_(False), torch.randn(8, 64).bfloat16()
    with torch.no_grad():
        for _ in range(20):  # each weight is gone before the next is made, and leaves it its place
            layer.weight = None
            layer.weight = torch.nn.Parameter(torch.randn(48, 64).bfloat16(), requires_grad=False)
            torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_nothing_grows_over_calls(half):
    """Weights are packed by the first call; later ones leave nothing behind."""
    audio = tone(8000)
    half.reconstruct(audio)
    kept = {name: module._packed for name, module in half.named_modules() if isinstance(module, Linear)}
    for _ in range(3):
        half.reconstruct(audio)
    for name, module in half.named_modules():
        assert not isinstance(module, Linear) or module._packed is kept[name]


def test_cast_is_in_place(model):
    twin = copy.deepcopy(model)
    assert twin.cast(torch.bfloat16) is twin
    assert model.fc_mu.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoder_and_encoder_compile_without_graph_breaks(model, dtype):
    twin = copy.deepcopy(model).cast(dtype)
    z, lengths = torch.randn(2, 9, model.config.latent_dim).to(dtype), torch.tensor([9, 4])
    patches = torch.randn(2, 9, model.config.semantic_mels, 4)
    torch.compiler.reset()
    with torch.no_grad():
        for function, inputs in (
            (twin.decoder, (z, lengths)),
            (twin.semantic_encoder.encode_chunks, (patches, lengths)),
        ):
            compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
            result, expected = compiled(*inputs), function(*inputs)
            difference = (result - expected)[0].float().norm() / expected[0].float().norm()
            assert difference < (1e-5 if dtype == torch.float32 else 0.02)
    torch.compiler.reset()
