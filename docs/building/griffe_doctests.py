"""Examples in docstrings are shown as code: mkdocstrings would take the prompt of a doctest for a quotation."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around every doctest."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of any object with a docstring."""
        if obj.docstring is not None and ">>>" in obj.docstring.value:
            found = re.compile(r"^( *)>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
            obj.docstring.value = found.sub(self._fenced, obj.docstring.value)

    @staticmethod
    def _fenced(found: re.Match[str]) -> str:
        return f"{found.group(1)}```pycon\n{found.group(0)}\n{found.group(1)}```"
