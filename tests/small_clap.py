"""A CLAP model of random weights and few of them, with a tokenizer of letters."""

import torch


def save_small_clap(folder):
    """Write model, feature extractor (16 kHz, one second) and tokenizer to ``folder``; return it."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    text = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 80, "pad_token_id": 0}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1], "num_mel_bins": 64}
    audio |= {"num_attention_heads": [2, 2, 2, 2], "window_size": 2}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16_000,
        max_length_s=1,
        truncation="rand_trunc",
        padding="repeatpad",
        fft_window_size=512,
        hop_length=160,
    ).save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 2)}
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)
    return folder
