"""Text encoders: bytes by our own, and Hugging Face models from a local folder."""

import sys

import pytest
import torch

from losatok_ext.errors import ConfigError, UserError
from losatok_ext.models import ByteTextEncoder, Conditions, DiT, DiTConfig, HuggingFaceTextEncoder
from models.generator.dit_cases import SMALL, noisy
from small_models import lively

TEXTS = ["a dog barks", "", "Regen auf Blech, ünd wïnd", "雨"]


@pytest.fixture(scope="module")
def encoder():
    return lively(ByteTextEncoder(32, 2, max_bytes=40))


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_tokens_are_utf8(encoder):
    tokens, lengths = encoder.tokens(TEXTS)
    assert lengths.tolist() == [len(text.encode()) for text in TEXTS]
    for row, length, text in zip(tokens, lengths, TEXTS, strict=True):
        assert bytes(row[:length].tolist()).decode() == text
        assert not row[length:].any()
    assert encoder.tokens(["", ""])[0].shape == (2, 1)
    assert encoder.tokens([])[0].shape == (0, 1)


def test_a_text_is_the_same_alone_and_in_a_batch(encoder):
    features, lengths = encoder(TEXTS)
    assert features.shape == (4, int(lengths.max()), 32)
    for row, text in enumerate(TEXTS):
        count = int(lengths[row])
        alone, _ = encoder([text])
        torch.testing.assert_close(features[row, :count], alone[0, :count], rtol=1e-5, atol=1e-5)
        assert not features[row, count:].any()
    others, _ = encoder(["a dog barkt", "", "", ""])
    assert (others[0, 0] - features[0, 0]).abs().max() > 1e-3  # every byte sees every other


def test_byte_features_have_gradients():
    encoder = lively(ByteTextEncoder(64, 1)).train()
    encoder(TEXTS)[0].square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for name, parameter in encoder.named_parameters())


@pytest.mark.parametrize(
    ("texts", "error", "match"),
    [
        ("a dog", TypeError, r"texts should be a list of texts.* pass \['a dog'\]"),
        (["a", None], TypeError, "texts should hold texts .* got NoneType; an item without text is ''"),
        (["ok", "a \ud800 dog"], UserError, r"begins 'a \\ud800 dog' holds '\\ud800', which is no character"),
        (["ok", "a long text " * 10], UserError, "begins 'a long text .* has 120 bytes, and the model takes 40"),
    ],
)
def test_bad_texts(encoder, texts, error, match):
    with pytest.raises(error, match=match):
        encoder(texts)


# -- Hugging Face ------------------------------------------------------------------------------------------------------

WORDS = ["<pad>", "</s>", "<unk>", "a", "dog", "barks", "rain"]
TINY = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}


def tiny_model(transformers, kind):
    if kind == "t5":
        return transformers.T5Model(
            transformers.T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        )
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**TINY))
    if kind == "clip":
        vision = {**TINY, "image_size": 32, "patch_size": 16}
        del vision["vocab_size"]
        text = {**TINY, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2}
        return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    size = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    size |= {"vocab_size": 16, "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0}
    return transformers.BartModel(transformers.BartConfig(**size))


@pytest.fixture(scope="module", params=["t5", "bert", "clip", "bart"])
def folder(request, tmp_path_factory):
    """A tiny encoder with random weights and a tokenizer of seven words, which would pad on the left."""
    transformers = pytest.importorskip("transformers", reason="the extra text is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", WORDS.index("</s>"))]
    )
    path = tmp_path_factory.mktemp(request.param)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8,
        padding_side="left",
    ).save_pretrained(path)  # fmt: skip
    torch.manual_seed(0)
    tiny_model(transformers, request.param).save_pretrained(path)
    return path


def test_a_hugging_face_encoder(folder):
    encoder = HuggingFaceTextEncoder(folder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    features, lengths = encoder(["a dog barks", "", "rain"])
    assert features.shape == (3, 4, 32) == (3, 4, encoder.dim)
    assert lengths.tolist() == [4, 0, 2]  # with the end token; an empty text has none
    assert not features.requires_grad
    alone, _ = encoder(["rain"])
    torch.testing.assert_close(features[2, :2], alone[0], rtol=1e-4, atol=1e-5)
    assert not features[1].any()
    assert not features[2, 2:].any()
    assert encoder([])[0].shape == (0, 1, 32)
    with pytest.raises(UserError, match=r"begins 'a dog .* has 9 tokens, and .* takes 8; shorten it"):
        encoder(["a dog " * 4])


def test_a_generator_with_a_hugging_face_encoder(folder, tmp_path):
    model = lively(DiT(DiTConfig(**{**SMALL, "text_encoder": f"hf:{folder}"})))
    x, t = noisy(2, 7)
    text, lengths = model.encode_text(["a dog", ""])
    assert model(x, t, Conditions(text, lengths)).shape == (2, 7, 8)
    assert not any("model." in name for name in model.state_dict())  # the encoder is not part of it
    model.save_pretrained(tmp_path)
    assert torch.equal(DiT.from_pretrained(tmp_path).encode_text(["a dog", ""])[0], text)
    narrow = DiT(DiTConfig(**{**SMALL, "text_encoder": f"hf:{folder}", "text_dim": 16}))
    with pytest.raises(ConfigError, match=r"text_dim should be 32, the width of .* features, got 16"):
        narrow.encode_text(["a"])


def test_an_encoder_that_is_not_there(tmp_path):
    pytest.importorskip("transformers", reason="the extra text is not installed")
    with pytest.raises(UserError, match=r"the text encoder .*nothing.* cannot be loaded .*; pass the folder"):
        HuggingFaceTextEncoder(tmp_path / "nothing")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'losatok-ext\[text\]'"):
        HuggingFaceTextEncoder("any")
