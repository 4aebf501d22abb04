"""The types of batches: which corpus gives which, and how they are padded and cut."""

import dataclasses
import math

import pytest
import torch

from losatok_ext.recordings.shard_index import FEATURES, LATENTS
from losatok_ext.training.data.batches import FeatureBatch, LatentBatch, RecordingBatch, recordings_of
from losatok_ext.training.data.corpus import Clip, Corpus, Crop
from losatok_ext.training.data.latent_corpus import LatentCorpus
from losatok_ext.training.data.paired_corpus import PairedCorpus
from losatok_ext.training.data.token_corpus import TokenCorpus

LENGTHS = torch.tensor([1280, 640])


def clip(name, samples, **more):
    return Clip(name, name, samples, text=f"text {name}", label=f"label {name}", **more)


def recording(name, samples, features=None):
    return Crop(torch.ones(samples), clip(name, samples), True, features)


def test_a_corpus_gives_batches_of_its_own_type():
    crops = [recording("a", 1280), recording("b", 640)]
    plain = Corpus((), 16000, 640).batch(crops, LENGTHS, 1920)
    assert isinstance(plain, RecordingBatch)
    assert (plain.names, plain.texts, plain.labels) == (("a", "b"), ("text a", "text b"), ("label a", "label b"))
    assert plain.seconds == 0.12
    assert plain.features is None
    assert plain.audio.shape == (2, 1920)
    assert plain.audio.sum(1).tolist() == [1280, 640]

    crops = [recording("a", 1280, torch.ones(2, 4)), recording("b", 640, torch.ones(1, 4))]
    paired = PairedCorpus((), 16000, 640, samples_per_token=640).batch(crops, LENGTHS, 1920)
    assert paired.features.sum((1, 2)).tolist() == [8, 4]
    assert paired.features.shape == (2, 3, 4)

    tokens = [
        Crop(torch.ones(3, 4), clip("a", 3, gram_energy=2.0), True, None),
        Crop(torch.ones(1, 4), clip("b", 5, gram_energy=7.0), False, None),
    ]
    lengths = torch.tensor([3, 1])
    features = TokenCorpus((), 25, 1, kind=FEATURES).batch(tokens, lengths, 3)
    assert isinstance(features, FeatureBatch)
    assert features.gram_energy[0] == 2.0
    assert math.isnan(features.gram_energy[1])  # a part of its clip: its own energy is not stored
    for corpus in (TokenCorpus((), 25, 1, kind=LATENTS), LatentCorpus((), 25, 1)):
        latents = corpus.batch(tokens, lengths, 3)
        assert isinstance(latents, LatentBatch)
        assert torch.equal(latents.latents, features.features)
    assert recordings_of(plain) is plain
    with pytest.raises(AssertionError, match="LatentBatch holds no recordings"):
        recordings_of(latents)


def batches():
    common = {"lengths": torch.tensor([2, 1, 2]), "names": ("a", "b", "c"), "seconds": 5.0, "texts": ("x", "y", "z")}
    rows = torch.arange(6.0).view(3, 2)
    vectors = rows[..., None].expand(3, 2, 4)
    yield RecordingBatch(audio=rows, **common), "audio"
    yield RecordingBatch(audio=rows, features=vectors[:, :1], **common), "audio"
    yield FeatureBatch(features=vectors, gram_energy=torch.tensor([1.0, 2.0, 3.0]), **common), "features"
    yield LatentBatch(latents=vectors, **common), "latents"


@pytest.mark.parametrize(("batch", "name"), list(batches()))
def test_padding_and_rows(batch, name):
    values = getattr(batch, name)
    padded = batch.padded(6)
    assert (batch.size(), padded.size()) == (2, 6)
    assert torch.equal(getattr(padded, name)[:, :2], values)
    assert not getattr(padded, name)[:, 2:].any()
    assert batch.padded(1) is batch
    assert batch.to(torch.device("cpu")) is batch
    if isinstance(batch, RecordingBatch) and batch.features is not None:
        assert padded.features.shape == (3, 3, 4)
    # The lengths of a step's rows are no rows of this batch, even where there are as many.
    part = dataclasses.replace(batch, step_lengths=torch.tensor([9, 9, 9])).rows(slice(1, 3))
    assert (part.names, part.texts, part.lengths.tolist()) == (("b", "c"), ("y", "z"), [1, 2])
    assert part.seconds == 3.0
    assert part.step_lengths.tolist() == [9, 9, 9]
    assert torch.equal(getattr(part, name), values[1:])
