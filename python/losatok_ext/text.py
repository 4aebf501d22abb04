"""Text that comes from outside (names of files, labels of a manifest), made safe to show."""

from __future__ import annotations

import os
import re

# Control characters, line and paragraph separators, marks that turn the direction of writing, and lone surrogates
# (how Python holds the bytes of a file name that are not UTF-8).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""``text`` with every character that could control a terminal or hide other text written as an escape.

    A file name may hold any character but ``/`` and NUL, escape sequences included; here ESC becomes the four
    characters ``\x1b``, a line break ``\n``, and a byte that is not UTF-8 for example ``\udcff``.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def name_as_text(name: str) -> str:
    """A file name that can be stored as UTF-8: bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")
