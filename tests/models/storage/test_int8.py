"""int8 models: what becomes int8, how far latents and audio move, their folders, names and commands."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from losatok_ext.models.storage.precision import dtype_name
from losatok_ext.models.tokenizer.stored_tokenizer import KEPT_IN_FLOAT32
from losatok_ext.nn.linear import Int8Linear, Linear
from losatok_ext.nn.quantizers import ResidualVQConfig
from models.storage.precision_cases import check_that_a_clip_is_its_own, relative
from small_models import put_weights, tone


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The same model saved in float32 and in int8."""
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "float32")
    LoSATok.from_pretrained(folder / "float32", dtype="int8").save_pretrained(folder / "int8")
    return folder


@pytest.fixture(scope="module")
def int8(folders):
    return LoSATok.from_pretrained(folders / "int8")


def test_what_is_int8(model, int8):
    layers = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    small = {name for name, module in int8.named_modules() if isinstance(module, Int8Linear)}
    assert layers - small == {"decoder.head.out"}
    assert len(small) == 4 * model.config.depth + 2 * model.config.decoder_depth
    for name, parameter in int8.named_parameters():
        owner = name.removesuffix(".weight")
        wanted = torch.int8 if owner in small else torch.float32 if name.startswith(KEPT_IN_FLOAT32) else torch.bfloat16
        assert parameter.dtype == wanted, name
    assert all(int8.get_submodule(name).scale.dtype == torch.float32 for name in small)
    assert (dtype_name(model), dtype_name(int8)) == ("float32", "int8")


def test_tokens_and_waveforms_stay_near(model, folders, int8):
    """A weight is off by up to 1/254 of the greatest of its row, about 1 % of most. Each layer adds to it."""
    audio = torch.stack([tone(24_000, seed) for seed in range(3)])
    lengths = torch.tensor([24_000, 9_001, 480])
    exact, ours = (m.encode(audio, lengths=lengths) for m in (model, int8))
    half = LoSATok.from_pretrained(folders / "float32", dtype="bfloat16")
    assert relative(half.encode(audio, lengths=lengths).mu, exact.mu) < relative(ours.mu, exact.mu) < 0.04
    assert relative(int8.decode(exact), model.decode(exact)) < 0.06
    assert not int8.decode(exact)[1, 9_001:].any()


def test_a_clip_is_its_own(int8):
    check_that_a_clip_is_its_own(int8)


def test_there_and_back(model, folders, int8, tmp_path):
    made = LoSATok.from_pretrained(folders / "float32", dtype=torch.int8)
    for (name, saved), (_, fresh) in zip(int8.state_dict().items(), made.state_dict().items(), strict=True):
        assert saved.dtype == fresh.dtype, name
        assert torch.equal(saved, fresh), name
    audio = tone(8000)
    assert torch.equal(int8.encode(audio).mu, made.encode(audio).mu)
    again = LoSATok.from_pretrained(folders / "int8", dtype="int8")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in int8.state_dict().items())
    for dtype in ("float32", "bfloat16"):
        wide = LoSATok.from_pretrained(folders / "int8", dtype=dtype)
        assert not any(isinstance(module, Int8Linear) for module in wide.modules())
        assert relative(wide.encode(audio).mu, int8.encode(audio).mu) < 0.01
        wide.save_pretrained(tmp_path / dtype)
        assert LoSATok.from_pretrained(tmp_path / dtype).fingerprint() == wide.fingerprint()
    published = int8.to_reference_state_dict()
    assert {value.dtype for value in published.values()} <= {torch.float32, torch.bfloat16, torch.int64}
    assert published.keys() == model.to_reference_state_dict().keys()


def test_a_quarter_of_the_size():
    """Of a model whose linear layers outweigh the rest, as in the published one."""
    config = LoSATokConfig(**{**LoSATokConfig.preset("tiny").to_dict(), "depth": 24, "decoder_depth": 16})
    model = LoSATok(config)

    def size():
        return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())

    whole = size()
    assert model.cast(torch.int8) is model
    assert size() / whole < 0.32


def test_it_has_the_name_of_the_model_it_was_made_from(model, int8, tmp_path):
    name = model.fingerprint()
    assert int8.fingerprint() == name
    int8.save_pretrained(tmp_path / "again")
    assert LoSATok.from_pretrained(tmp_path / "again").fingerprint() == name
    assert copy.deepcopy(int8).fingerprint() == name
    quantized = int8.with_quantizer(ResidualVQConfig(codebook_size=4, stages=2))
    assert quantized.fingerprint() != name
    assert quantized.with_quantizer(None).fingerprint() == name
    assert LoSATok.from_pretrained(tmp_path / "again", dtype="float32").fingerprint() != name
    changed = copy.deepcopy(int8)
    with torch.no_grad():
        changed.get_parameter("semantic_encoder.blocks.0.fc1.weight").neg_()
    assert changed.fingerprint() != name
    changed.save_pretrained(tmp_path / "changed")
    assert LoSATok.from_pretrained(tmp_path / "changed").fingerprint() == changed.fingerprint()


def test_bad_folders_are_named(folders, tmp_path):
    def broken(change=None, made_from=None):
        state = load_file(folders / "int8" / WEIGHTS_FILE)
        values = json.loads((folders / "int8" / CONFIG_FILE).read_text())
        if change is not None:
            change(state)
        values["made_from"] = made_from or values["made_from"]
        (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
        put_weights(tmp_path, state)
        return LoSATok.from_pretrained(tmp_path)

    weight = "decoder.backbone.blocks.0.fc1.weight"
    with pytest.raises(CheckpointError, match=r"lacks the tensor decoder.backbone.blocks.0.fc1.scale"):
        broken(lambda state: state.pop(weight.replace("weight", "scale")))
    with pytest.raises(CheckpointError, match=r"model.safetensors: the tensor fc_a.weight is int8"):
        broken(lambda state: state.update({"fc_a.weight": state["fc_a.weight"].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"has shape \[3, 24\]"):
        broken(lambda state: state.update({weight: state[weight][:3].contiguous()}))
    with pytest.raises(CheckpointError, match="made_from should hold fingerprint and weights"):
        broken(made_from={"fingerprint": 3})


def test_int8_is_not_trained(int8):
    int8.train_only("sembo")  # its encoder is frozen, and the bottleneck is no int8
    with pytest.raises(UserError, match="decoder of this model is int8, which cannot be trained"):
        int8.train_only("tokenizer")
    int8.requires_grad_(False)


def test_the_layer():
    layer = Linear(40, 24)
    with torch.no_grad():
        layer.weight[3] = 0
    small = Int8Linear.from_linear(layer)
    assert small.bias is layer.bias
    assert small.weight.abs().amax(1).tolist() == [127 if row != 3 else 0 for row in range(24)]
    error = (small.weight * small.scale[:, None] - layer.weight).abs()
    assert (error <= small.scale[:, None] / 2 * 1.0001).all()
    assert "in_features=40, out_features=24, bias=True" in repr(small)
    x = torch.randn(3, 7, 40)
    for gelu in (False, True):
        expected = small.to_linear(torch.float64)(x.double(), gelu)
        torch.testing.assert_close(small(x, gelu), expected.float())
        with torch.no_grad():
            torch.testing.assert_close(small(x, gelu), expected.float())
    assert Int8Linear.from_linear(Linear(4, 3, bias=False)).to_linear(torch.bfloat16).bias is None
    for moved in (copy.deepcopy(small).bfloat16(), copy.deepcopy(small).double(), nn.Sequential(small).half()[0]):
        assert (moved.weight.dtype, moved.scale.dtype) == (torch.int8, torch.float32)
        assert torch.equal(moved.scale, small.scale)


def test_it_compiles_without_graph_breaks(int8):
    z, lengths = torch.randn(2, 9, int8.config.latent_dim).bfloat16(), torch.tensor([9, 4])
    patches = torch.randn(2, 9, int8.config.semantic_mels, 4)
    torch.compiler.reset()
    with torch.no_grad():
        for function, inputs in (
            (int8.decoder, (z, lengths)),
            (int8.semantic_encoder.encode_chunks, (patches, lengths)),
        ):
            compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
            assert relative(compiled(*inputs)[0].float(), function(*inputs)[0].float()) < 0.02
    torch.compiler.reset()
