"""The build backend that pip calls: scikit-build-core, after a check that the build will see the right torch.

The native ops are compiled against one torch and load beside that torch alone. pip builds in an isolated environment by
default, in which the user's torch is not visible. A torch of the build's own would be downloaded (several GB), compiled
against for minutes, and fit only by chance. The isolated build therefore stops before it starts and says what to type.

Build tools call ``get_requires_for_build_*`` only for isolated builds, or to check that everything is installed.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from typing import Any

from scikit_build_core import build as scikit_build
from scikit_build_core.build import *  # noqa: F403 - the hooks of PEP 517 and PEP 660 that are not replaced below

OVERRIDE = "LOSATOK_BUILD_TORCH"
CMAKE = "cmake>=3.25.2"
"""The first CMake that can compile C++20 with nvcc; without CUDA an older one would do."""


def _torch_of_user() -> str | None:
    """The version of torch in the environment that pip installs into, or None.

    pip hides that environment's packages from an isolated build, but runs the build by its interpreter. Build tools
    that make an environment of their own (``build``, ``uv``) do not show the user's environment; the answer is None.
    """
    paths = list({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    return next((found.version for found in distributions(name="torch", path=paths)), None)


def _requirements(base: Callable[[Any], list[str]], settings: Mapping[str, Any] | None) -> list[str]:
    """What to install into the build environment.

    Raises:
        SystemExit: the build environment has no torch, and nobody named the one to build against.
    """
    if importlib.util.find_spec("torch") is not None:  # not isolated, or put there on purpose
        return base(settings)
    if wanted := os.environ.get(OVERRIDE):
        return [*base(settings), wanted, CMAKE]
    installed = _torch_of_user()
    first = f"for your torch {installed}" if installed else "after `pip install torch`"
    raise SystemExit(
        "losatok_ext is compiled against the torch that it runs with, and an isolated build cannot see that torch. "
        f"Type, {first}: pip install scikit-build-core pybind11 cmake ninja && pip install --no-build-isolation . "
        f"(To build a wheel in isolation for a torch that you choose, set {OVERRIDE}, such as "
        f"{OVERRIDE}=torch=={installed or '2.13.0'})"
    )


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """Hook of PEP 517: what an isolated build of a wheel needs. Raises SystemExit where torch is missing."""
    return _requirements(scikit_build.get_requires_for_build_wheel, config_settings)


def get_requires_for_build_editable(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """Hook of PEP 660: what an isolated editable build needs. Raises SystemExit where torch is missing."""
    return _requirements(scikit_build.get_requires_for_build_editable, config_settings)
