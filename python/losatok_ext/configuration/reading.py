"""Mappings from JSON files, YAML files and ``KEY=VALUE`` on the command line, of bounded size and depth."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from losatok_ext.configuration.values import MAX_DEPTH, MAX_VALUES, MisfitError, plain, show
from losatok_ext.errors import ConfigError

MAX_YAML_BYTES = 2**18
"""Bytes that a YAML file may have; a whole training configuration has about two thousand."""
MAX_JSON_BYTES = 2**24
"""Bytes that a JSON file may have; that of a model with its Hugging Face encoder has up to a few hundred thousand."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file ``path``; an empty file is an empty mapping. ``1e-4`` is a number.

    Raises:
        ConfigError: the file is missing, too large, is not YAML, nested too deeply, or holds something other than a
            mapping.
    """
    values = _parse_yaml(_read(path, MAX_YAML_BYTES), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the file should hold keys and values such as 'steps: 1000', got {show(values)}")
    return values


def read_json(path: Path) -> Any:
    """The value in the JSON file ``path``.

    Raises:
        ConfigError: the file is missing, too large, is not JSON, or nested too deeply.
    """
    data = _read(path, MAX_JSON_BYTES)
    try:
        return plain(json.loads(data.decode("utf-8-sig")))
    except MisfitError as misfit:
        raise ConfigError(f"{path}: the file {misfit.problem}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not readable JSON ({error})") from None
    except RecursionError:
        raise ConfigError(f"{path}: the file should have at most {MAX_DEPTH} levels, and has more") from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["a.b=c", ...]`` as nested mappings; values are read as YAML (numbers, true, null, lists, else text).

    Raises:
        ConfigError: an assignment without ``=`` or without a key, a value that is not YAML, or a key that is given both
            a value and keys below it.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            raise ConfigError(f"--set takes KEY=VALUE such as optimizer.lr=1e-3, got {show(assignment)}")
        value = _parse_yaml(text.encode("utf-8", "surrogatepass"), f"--set {assignment[:100]}")
        group = values
        for part in parts[:-1]:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise ConfigError(
                    f"--set {assignment}: {part} was set to a value before; set either {part} or keys below it"
                )
        group[parts[-1]] = value
    return values


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ConfigError(f"{path}: too large for a configuration, which has at most {limit} bytes")
        return data
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None


def _parse_yaml(data: bytes, source: str) -> Any:
    loader = _loader()
    import yaml

    try:
        nodes = loader(data.decode("utf-8-sig"))
        root = nodes.get_single_node()
        if root is None:
            return None
        _measure(root, source)
        return plain(nodes.construct_document(root))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark and "=" not in source else source
        cure = "; put text with special characters in quotes" if "=" in source else ""
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}{cure}") from None
    except MisfitError as misfit:
        raise ConfigError(f"{source}: the YAML {misfit.problem}") from None
    except ConfigError:
        raise
    except ValueError as error:  # a date such as 2026-13-45, a number of too many digits
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: the YAML should have at most {MAX_DEPTH} levels, and has more") from None


def _measure(root: Any, source: str) -> None:
    """Raise ConfigError where the YAML graph ``root`` holds itself, or too many values once its aliases are written
    out. Every node is visited once, so that this is quick for any graph."""
    import yaml

    sizes: dict[int, int | None] = {}  # None: being visited

    def size(node: Any) -> int:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise ConfigError(f"{source}: the YAML holds itself: an alias stands within what it names")
            return known
        sizes[id(node)] = None
        below: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        sizes[id(node)] = total = 1 + sum(map(size, below))
        return total

    if size(root) > MAX_VALUES:
        raise ConfigError(f"{source}: the YAML holds more than {MAX_VALUES} values once its aliases are written out")


@functools.cache
def _loader() -> Any:
    """PyYAML's safe loader, which also reads ``1e-4`` as a number, as YAML 1.2 does (in 1.1 it needs a point)."""
    try:
        import yaml
    except ImportError:
        raise ConfigError("reading YAML needs PyYAML, which is not installed; pip install 'losatok-ext[cli]'") from None

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader
