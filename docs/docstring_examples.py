"""Shows the `Example:` of a docstring as a block of code in the API reference."""

import re
import textwrap
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:\n((?:[ \t]+.*\n?|\n)+)", re.M)


class DocstringExamples(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """obj: a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    return f"**Example**\n\n```python\n{textwrap.dedent(match[1]).strip()}\n```\n"
