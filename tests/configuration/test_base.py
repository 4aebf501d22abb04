"""Configurations: fields are checked by their annotations, paths are named in full, mappings go there and back."""

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from losatok_ext.configuration import Configuration, Count, Length, Multiple, Range, Share, from_layers, setting
from losatok_ext.errors import ConfigError


@dataclass(frozen=True)
class Shape(Configuration):
    @classmethod
    def variants(cls) -> Mapping[str, type[Any]]:
        return {kind.kind: kind for kind in (Circle, Square)}


@dataclass(frozen=True)
class Circle(Shape):
    kind = "circle"
    radius: float = 1.0


@dataclass(frozen=True)
class Square(Shape):
    kind = "square"
    side: Annotated[int, Range(1, 64), Multiple(2)] = 2


@dataclass(frozen=True)
class Inner(Configuration):
    share: Share = 0.5
    """How much of it. The rest is left."""
    pair: tuple[int, float] = (1, 2.0)
    sizes: Annotated[tuple[Count, ...], Length(1, 3)] = (1,)
    named: dict[str, Share] = field(default_factory=dict)

    def _check_fit(self) -> None:
        self._require(self.pair[0] <= self.pair[1], "pair", "ascending")


@dataclass(frozen=True)
class Outer(Configuration):
    count: Count | None = None
    """``count`` of :class:`losatok_ext.things.Thing`."""
    mode: Literal["fast", "slow"] = "fast"
    on: bool = False
    text: str = ""
    free: dict[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    shape: Shape | None = None


def test_a_mapping_becomes_a_configuration_and_a_mapping_again():
    values = {"count": 3, "mode": "slow", "on": True, "text": "a", "free": {"x": [1, {"y": None}]}}
    values |= {"inner": {"share": 1, "pair": [1, 2], "sizes": [4, 5], "named": {"a": 1}}}
    values |= {"shape": {"kind": "square", "side": 8}}
    config = Outer.from_dict(values)
    assert config.inner == Inner(share=1.0, pair=(1, 2.0), sizes=(4, 5), named={"a": 1.0})
    assert type(config.inner.share) is float
    assert config.shape == Square(side=8)
    assert config.to_dict() == values
    assert Outer.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Outer.from_dict({}) == Outer()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "cuont is not a key; did you mean count?"),
        ({"pairs": 1}, "pairs is not a key; did you mean inner.pair?"),
        ({"inner": {"zzz": 1}}, "inner.zzz is not a key; the keys here are inner.share, inner.pair, inner.sizes"),
        ({3: 1}, "3 is not a key"),
        ({"count": True}, "count should be a whole number within 1..2147483647 or null, got True"),
        ({"count": 1.0}, "count should be a whole number within 1..2147483647 or null, got 1.0"),
        ({"count": 10**5000}, "count should be a whole number within 1..2147483647 or null, got "),
        ({"mode": "medium"}, "mode should be one of 'fast', 'slow', got 'medium'"),
        ({"on": 1}, "on should be true or false, got 1"),
        ({"text": None}, "text should be text, got None"),
        ({"free": {"x": {1, 2}}}, "free should hold text, numbers, true, false, null, lists and mappings, got {1, 2}"),
        ({"inner": 3}, "inner should be a mapping of keys to values, got 3"),
        ({"inner": {"share": 1.5}}, "inner.share should be a number within 0..1, got 1.5"),
        ({"inner": {"share": float("nan")}}, "inner.share should be a number within 0..1, got nan"),
        ({"inner": {"share": 10**400}}, "inner.share should be a number within 0..1, got "),
        ({"inner": {"pair": [1]}}, "inner.pair should be a list of 2: a whole number, a finite number, got [1]"),
        ({"inner": {"pair": [1, "x"]}}, "inner.pair[1] should be a finite number, got 'x'"),
        ({"inner": {"pair": [3, 2]}}, "inner.pair should be ascending, got [3, 2.0]"),
        ({"inner": {"sizes": []}}, "inner.sizes should be a list of 1 to 3 values, each a whole number within"),
        ({"inner": {"named": {"a": 2}}}, "inner.named.a should be a number within 0..1, got 2"),
        ({"shape": {}}, "shape.kind should be one of 'circle', 'square', got None"),
        ({"shape": {"kind": "circle", "side": 2}}, "shape.side is not a key; the keys here are shape.radius"),
        ({"shape": {"kind": "square", "side": 3}}, "shape.side should be a whole number within 1..64 that is even"),
        ([1], "the configuration should be a mapping of keys to values, got [1]"),
    ],
)
def test_what_does_not_fit_is_named_by_its_full_path(values, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)) as error:
        Outer.from_dict(values)
    assert len(str(error.value)) < 500
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    with pytest.raises(ConfigError, match="^" + re.escape(f"run.json: {message}")):
        Outer.from_dict(values, "run.json")


def test_python_code_is_checked_like_files():
    with pytest.raises(ConfigError, match=r"share should be a number within 0\.\.1, got 2"):
        Inner(share=2)
    assert Outer(inner={"share": 0.25}).inner == Inner(share=0.25)


def test_values_without_end_are_refused():
    endless = {}
    endless["x"] = [endless]
    with pytest.raises(ConfigError, match="free should have at most 32 levels"):
        Outer(free=endless)
    wide = [0] * 1000
    with pytest.raises(ConfigError, match="free should hold at most 100000 values"):
        Outer(free={"x": [wide] * 1000})
    with pytest.raises(ConfigError, match="text should be text"):
        Outer(text=endless)


def test_of_several_layers_the_last_one_counts_and_the_message_names_where_a_key_stood():
    layers = [("file", {"count": 1, "inner": {"pair": [1, 3]}}), ("--set", {"inner": {"share": 1}})]
    config = from_layers(Outer, {"text": "base"}, layers)
    assert (config.text, config.count, config.inner.pair, config.inner.share) == ("base", 1, (1, 3.0), 1.0)
    with pytest.raises(ConfigError, match=r"^file: inner\.pair\[0\] should"):
        from_layers(Outer, {}, [("file", {"inner": {"pair": ["a", 3]}}), layers[1]])
    with pytest.raises(ConfigError, match=r"^--set: inner\.share should"):
        from_layers(Outer, {}, [layers[0], ("--set", {"inner": {"share": 3}})])
    with pytest.raises(ConfigError, match=r"^--set: inner\.pear is not a key"):
        from_layers(Outer, {}, [layers[0], ("--set", {"inner": {"pear": 3}})])


def test_keys_of_another_kind_are_replaced_not_merged():
    base = {"shape": {"kind": "square", "side": 4}}
    assert from_layers(Outer, base, [("--set", {"shape": {"side": 6}})]).shape == Square(side=6)
    assert from_layers(Outer, base, [("--set", {"shape": {"kind": "circle"}})]).shape == Circle()


def test_the_documentation_of_a_key_is_the_text_below_its_field():
    key = setting(Outer, "inner.share")
    assert (key.key, key.kind, key.default) == ("inner.share", float, 0.5)
    assert (key.text, key.summary) == ("How much of it. The rest is left.", "How much of it.")
    assert setting(Outer, "count").text == "count of Thing."
    assert setting(Outer, "count").kind is int
    with pytest.raises(KeyError):
        setting(Outer, "nothing")
