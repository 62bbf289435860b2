"""Python files beside an experiment, whose losses, filters, initializers and teachers are registered when they are run."""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.files import sha256_of
from distill_lit.utils.path_variables import expand_path, missing

_loaded: dict[Path, str] = {}


def load_plugins(paths: Iterable[str]) -> None:
    """Runs each file once in this process. Raises UserError for one that is missing, fails, or has changed since."""
    for name in paths:
        path = expand_path(name, "plugins").resolve()
        digest = plugin_hash(name)
        if _loaded.get(path) == digest:
            continue
        if path in _loaded:
            raise UserError(f"plugins: {name} has changed while it is in use; start again")
        module_name = f"distill_lit_plugin_{digest[:12]}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"plugins: {name} is no Python file")
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a script that ends itself, which would end the experiment without a word
            del sys.modules[module_name]
            line = error.lineno if isinstance(error, SyntaxError) else None
            where = f", line {line}" if line else ""
            raise UserError(f"plugins: {name}{where}: {type(error).__name__}: {one_line_message(error)}") from error
        _loaded[path] = digest


def plugin_hash(name: str) -> str:
    """The sha256 of a plugin's file, by which it is part of a fingerprint. Raises UserError for one that is missing."""
    path = expand_path(name, "plugins")
    if not path.is_file():
        raise UserError(f"plugins: {name}: {missing(path)}")
    return sha256_of(path)
