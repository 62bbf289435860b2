"""Parts by name that plugins add to: losses, teachers, initializers, filters. One rule for all of them."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from distill_lit.utils.exceptions import UserError

EntryT = TypeVar("EntryT")


class Registry(dict[str, EntryT]):
    """{name: part}. A name is given once: that of a part of this package, or of another plugin, is refused. What is defined
    again, as by a notebook's cell that is run twice, takes its own place."""

    def __init__(
        self,
        decorator: str,
        entries: Mapping[str, EntryT] | None = None,
        defined_by: Callable[[EntryT], Any] = lambda entry: entry,
    ) -> None:
        """decorator: what users call it, for messages; defined_by: the function or class of an entry."""
        super().__init__(entries or {})
        self.decorator, self.defined_by = decorator, defined_by

    def check_name(self, name: Any) -> None:
        """Raises UserError for what is no name, as the function under a decorator without parentheses."""
        if not isinstance(name, str) or not name:
            raise UserError(f'{self.decorator}: it needs a name, as in @{self.decorator}("my_name")')

    def add(self, name: str, entry: EntryT) -> None:
        """Puts an entry under a name. Raises UserError where that is another's, and for what cannot be called."""
        new = self.defined_by(entry)
        if not callable(new):
            raise UserError(f"{self.decorator}({name!r}): {new!r} is no function")
        known = self.defined_by(self[name]) if name in self else new
        if not _is_same(known, new):
            module = _module(known)
            owner = "is part of distill_lit" if module.startswith("distill_lit.") else f"was registered by {_file(module)}"
            raise UserError(f"{self.decorator}({name!r}): what has this name {owner}; choose another")
        self[name] = entry


def _is_same(one: Any, other: Any) -> bool:
    """Whether both have one name in one module, or in one file that was read as two."""
    names = {getattr(part, "__qualname__", type(part).__qualname__) for part in (one, other)}
    modules = {_module(part) for part in (one, other)}
    return len(names) == 1 and (len(modules) == 1 or len({_file(module) for module in modules}) == 1)


def _module(part: Any) -> str:
    return str(part.__module__)


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or module
