"""Conditions of a batch: moved, picked, joined, and dropped for guidance."""

import dataclasses

import pytest
import torch

from losatok_ext.models import Conditions
from models.generator.dit_cases import all_conditions


def fields(conditions):
    return {field.name: getattr(conditions, field.name) for field in dataclasses.fields(conditions)}


def assert_same(ours, theirs):
    for name, x in fields(ours).items():
        y = getattr(theirs, name)
        assert (x is None) == (y is None), name
        assert x is None or torch.equal(x, y), name


def test_items_are_picked():
    conditions = dataclasses.replace(all_conditions(4, 7), drop=torch.tensor([True, False, True, False]))
    for index, rows in (
        (slice(1, 3), [1, 2]),
        ([3, 0, 0], [3, 0, 0]),
        (2, [2]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ):
        picked = conditions[index]
        assert picked.batch() == len(rows)
        for name, x in fields(picked).items():
            assert torch.equal(x, getattr(conditions, name)[rows]), name
    assert Conditions()[[0, 1]] == Conditions()


def test_moving_keeps_what_counts_whole():
    moved = dataclasses.replace(all_conditions(2, 7), drop=torch.tensor([True, False])).to("meta", torch.bfloat16)
    assert moved.text.device.type == "meta"
    assert (moved.text.dtype, moved.aligned.dtype, moved.global_.dtype) == (torch.bfloat16,) * 3
    assert (moved.text_lengths.dtype, moved.drop.dtype) == (torch.int64, torch.bool)
    assert Conditions(text=torch.zeros(1, 2, 3)).to("meta").aligned is None


def test_joining_undoes_picking():
    conditions = dataclasses.replace(all_conditions(5, 7), drop=torch.arange(5) == 1)
    assert_same(Conditions.cat([conditions[:2], conditions[2:4], conditions[4:]]), conditions)
    assert Conditions.cat([Conditions(), Conditions()]) == Conditions()


def test_joined_texts_are_padded_to_the_longest():
    long, short = all_conditions(2, 7, size=6), all_conditions(3, 7, size=4, seed=1)
    joined = Conditions.cat([short, long])
    assert joined.text.shape == (5, 6, 32)
    assert torch.equal(joined.text[:3, :4], short.text)
    assert not joined.text[:3, 4:].any()
    assert joined.text_lengths.tolist() == [*short.text_lengths.tolist(), *long.text_lengths.tolist()]
    # Lengths that were not given are those of whole texts.
    whole = Conditions.cat([Conditions(text=short.text), Conditions(text=long.text)])
    assert whole.text_lengths.tolist() == [4, 4, 4, 6, 6]
    assert Conditions.cat([Conditions(text=long.text)] * 2).text_lengths is None


def test_the_unconditional_half():
    conditions = all_conditions(2, 7)
    assert conditions.dropped().drop.tolist() == [True, True]
    assert conditions.guided().drop.tolist() == [False, False, True, True]
    assert torch.equal(conditions.guided().text, torch.cat([conditions.text] * 2))
    dropped = dataclasses.replace(conditions, drop=torch.tensor([True, False]))
    assert dropped.guided().drop.tolist() == [True, False, True, True]
    assert Conditions().guided(batch=2).drop.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="batch should be given"):
        Conditions().guided()


def test_some_parts_with_drop():
    conditions = all_conditions(2, 7)
    joined = Conditions.cat([conditions, conditions.dropped()])
    assert joined.drop.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "parts should hold at least one"),
        ([all_conditions(2, 7), Conditions(text=torch.zeros(2, 6, 32))], "given in all parts or in none"),
        (
            [Conditions(global_=torch.zeros(2, 3)), Conditions(global_=torch.zeros(2, 4))],
            "global_ should have",
        ),
        (
            [Conditions(aligned=torch.zeros(2, 7, 5)), Conditions(aligned=torch.zeros(2, 8, 5))],
            r"aligned should have the same sizes .* \[2, 7, 5\] and \[2, 8, 5\]",
        ),
    ],
)
def test_what_does_not_join_is_named(parts, match):
    with pytest.raises(ValueError, match=match):
        Conditions.cat(parts)
