"""Files that are either complete or not there: temporary file in the same folder, fsync, rename; and their hashes."""

import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill_lit.utils.exceptions import Unwritable, UserError

CHUNK_BYTES = 1 << 20
TEMPORARY_PREFIX = ".writing-"  # begins the name of whatever is not complete


def is_hub_offline() -> bool:
    """Whether the environment forbids connections (`HF_HUB_OFFLINE=1`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cache_root() -> Path:
    """The folder that all experiments share: `DISTILL_LIT_CACHE`, or `~/.cache/distill-lit`.

    Everything in it can be fetched or computed again, but not for nothing: `remote/` and `generated/` hold what servers
    were paid for. No command removes them.
    """
    try:
        folder = Path(os.environ.get("DISTILL_LIT_CACHE") or "~/.cache/distill-lit").expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"DISTILL_LIT_CACHE: {folder} is no folder")
    except RuntimeError:  # what pathlib raises for a user without a home
        raise UserError("this user has no home folder; set DISTILL_LIT_CACHE to a folder that can be written to") from None
    except OSError as error:
        raise UserError(
            f"DISTILL_LIT_CACHE: {error.filename} cannot be reached ({error.strerror}); set it to a folder that can be"
        ) from error
    return folder


PERMISSION_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS)


def permission_error_message(error: BaseException | None) -> str:
    """One line about a folder that this user may not write to and the variable that names another, or a file that it may
    not read; empty where an error, or what it came from, is not about that."""
    while error is not None:
        if isinstance(error, OSError) and "No usable temporary directory" in str(error):
            return "there is no folder for temporary files; set TMPDIR to one that can be written to"
        if isinstance(error, OSError) and error.errno in PERMISSION_ERRNOS and error.filename:
            denied_path = Path(os.path.abspath(os.fsdecode(error.filename)))
            # `Path.is_file` would be denied, too
            if os.path.isfile(denied_path) and not os.access(denied_path, os.R_OK):
                return f"{denied_path} cannot be read ({error.strerror}); change its rights or name another"
            if (closed := _closed_folder(denied_path)) is not None:
                return f"{closed} cannot be looked into ({error.strerror}); change its rights or name another"
            inside = [(len(folder), name) for name, folder in _folders() if denied_path.is_relative_to(folder)]
            variable = max(inside)[1] if inside else ""  # of the innermost
            remedy = f"set {variable} to a folder that can be" if variable else "change its rights or choose another --root"
            return f"{denied_path} cannot be written to ({error.strerror}); {remedy}"
        error = error.__cause__ or error.__context__
    return ""


def _closed_folder(path: Path) -> Path | None:
    """The outermost folder above a path that this user may not look into; None where there is none."""
    for folder in reversed(path.parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return folder
    return None


def _folders() -> Iterator[tuple[str, str]]:
    """(environment variable, the folder that it names now) of every folder of which one may choose another."""
    with suppress(UserError):
        yield "DISTILL_LIT_CACHE", str(cache_root())
    usual = {"HF_HOME": "~/.cache/huggingface", "MPLCONFIGDIR": "~/.config/matplotlib", "TRITON_CACHE_DIR": "~/.triton",
             "TORCHINDUCTOR_CACHE_DIR": "", "TMPDIR": "/tmp", "XDG_CACHE_HOME": "~/.cache"}  # fmt: skip
    for name, place in usual.items():
        if found := os.environ.get(name) or place:
            yield name, os.path.abspath(os.path.expanduser(found))


@contextmanager
def explain_permission_errors() -> Iterator[None]:
    """Inside, a folder that may not be written to is an `Unwritable` that says which."""
    try:
        yield
    except OSError as error:
        if message := permission_error_message(error):
            raise Unwritable(message) from error
        raise


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Inside, this process alone makes `path`; others wait. Raises UserError where its folder cannot be written to."""
    with explain_permission_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def try_write_json(path: Path, value: Any) -> None:
    """Writes what can be computed again at any time, unless there is nowhere to write it."""
    with suppress(UserError):
        write_json(path, value)


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that identify a JSON-like value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def cached_file_sha256(path: Path) -> str:
    """Like `sha256_of`, but a file that has not been touched since is hashed once per process: weights are gigabytes."""
    stat = path.stat()
    return _remembered_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=4096)
def _remembered_sha256(path: Path, *_: int) -> str:
    return sha256_of(path)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(CHUNK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def hashes_of(folder: Path) -> dict[str, str]:
    """{relative path: sha256} of every file below `folder`, in sorted order, but for what is being written, or was when its
    writer was killed."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    return {name: sha256_of(path) for name, path in paths.items() if not _is_unfinished(name) and path.is_file()}


def _is_unfinished(name: str) -> bool:
    return any(part.startswith(TEMPORARY_PREFIX) for part in Path(name).parts)


def folder_stamp(folder: Path, is_watched: Callable[[str], bool]) -> list[int]:
    """[number, total size, latest change in ns] of the files below `folder` whose names are watched: what tells without
    reading them whether one has changed."""
    count = size = latest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if is_watched(name):
                status = os.stat(os.path.join(place, name))
                count, size, latest = count + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return [count, size, latest]


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """The rights that this process takes from what it makes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:")[1].split()[0], 8)  # without changing it for the other threads
    except (OSError, LookupError, ValueError):
        os.umask(mask := os.umask(0o077))
        return mask


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on leaving without an error it is synced and renamed to `path`."""
    with explain_permission_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        # not its whole name, which may be as long as a name can be
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=_short(path.suffix), dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _short(suffix: str) -> str:
    return suffix if len(suffix.encode()) <= 20 else ""


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, for a folder: all its files are synced, then it is renamed to `path`, replacing an old one."""
    with explain_permission_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~umask())
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o777 & ~umask())
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_unsynced(path: Path, text: str) -> None:
    """Like `write_text`, but without waiting for the disk: what matters only as long as its writer lives, or until it is
    written again."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def merge_json(
    path: Path, additions: Mapping[str, Any], read: Callable[[Path], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Adds keys to the JSON object in `path`; those that it has keep their values. Of several writers at once none loses
    another's keys. read: of what the file holds; by default `read_mapping`. Returns all that it holds then."""
    with file_lock(path):
        merged = {**additions, **(read or read_mapping)(path)}
        write_json(path, merged)
    return merged


def read_json(path: Path) -> Any:
    """The JSON value in `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_mapping(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is none, or it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line, as `parse_jsonl` finds them; none where there is no file."""
    return parse_jsonl(path.read_bytes()) if path.is_file() else []


def parse_jsonl(content: bytes) -> list[dict[str, Any]]:
    """The JSON objects of lines. One cut short by a crash, damaged, or no object counts for nothing."""
    objects = []
    for line in content.split(b"\n"):
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files and folders that a killed process left in `folder` or one level below. Only for the one
    process that may write there."""
    for pattern in (".*", "*/.*"):
        for path in folder.glob(pattern):
            if path.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def disk_free(path: Path) -> int:
    """Bytes free on the file system that holds `path` or its nearest existing parent."""
    return shutil.disk_usage(_existing(path)).free


def filesystem_id(path: Path) -> int:
    """Number of the file system that holds `path` or its nearest existing parent."""
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
