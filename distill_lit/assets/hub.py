"""Model repositories of the Hugging Face hub as local folders."""

from pathlib import Path

from distill_lit.assets.reference import Reference
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import is_hub_offline


def snapshot_folder(parsed: Reference, local_only: bool) -> Path:
    """The folder of a repository's files in the hub's cache; local_only: without a connection."""
    from huggingface_hub import snapshot_download

    patterns = [
        "*.safetensors",
        "*.json",
        "*.jinja",
        "tokenizer.model",
        "*.txt",
        *(["*.py"] if parsed.trust_remote_code else []),
    ]
    return Path(
        snapshot_download(parsed.name, revision=parsed.pin or None, allow_patterns=patterns, local_files_only=local_only)
    )


def fetch_snapshot(reference: str, parsed: Reference) -> Path:
    """`snapshot_folder`, downloaded if need be. Raises UserError when it cannot be had."""
    try:
        return snapshot_folder(parsed, local_only=is_hub_offline())
    except Exception as error:
        reason = "offline and not in the cache" if is_hub_offline() else str(error).splitlines()[0]
        raise UserError(f"reference {reference!r} cannot be fetched: {reason}; run `distill-lit fetch` online") from error
