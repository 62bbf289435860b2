"""Model repositories of the Hugging Face hub as local folders, and what it means when the hub refuses one."""

from pathlib import Path
from typing import Literal

from distill_lit.assets.reference import Reference
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.files import is_hub_offline

SECOND_COPY = "consolidated*.safetensors"  # the same weights in Mistral's own format, beside transformers'
LOG_IN = "set HF_TOKEN or run `hf auth login`"


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
        snapshot_download(
            parsed.name,
            revision=parsed.pin or None,
            allow_patterns=patterns,
            ignore_patterns=SECOND_COPY,
            local_files_only=local_only,
        )
    )


def fetch_snapshot(reference: str, parsed: Reference) -> Path:
    """`snapshot_folder`, downloaded if need be. Raises UserError when it cannot be had."""
    try:
        return snapshot_folder(parsed, local_only=is_hub_offline())
    except Exception as error:
        if refusal := describe_refusal(error, "model", parsed.name):
            raise UserError(f"reference {reference!r} cannot be fetched: {refusal}") from error
        reason = "offline and not in the cache" if is_hub_offline() else one_line_message(error)
        raise UserError(f"reference {reference!r} cannot be fetched: {reason}; run `distill-lit fetch` online") from error


def describe_refusal(error: BaseException, kind: Literal["model", "dataset"], repository: str) -> str:
    """Why the hub does not give a repository, and what to do: it is gated, unknown or private, or lacks the revision. Empty
    for any other error. error: of `huggingface_hub`, or of `datasets`, which drops the hub's and keeps its words."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    text = str(error) if type(error).__name__ == "DatasetNotFoundError" else ""
    if isinstance(error, GatedRepoError) or "is a gated dataset" in text:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
        return f"{kind} {repository!r} is gated: accept its terms on {page}, and {LOG_IN}"
    if isinstance(error, RevisionNotFoundError) or text.startswith("Revision "):
        return f"{kind} {repository!r} of the hub has no such revision"
    if isinstance(error, RepositoryNotFoundError) or text:
        return f"the hub has no {kind} {repository!r}; if it is private, {LOG_IN}"
    return ""
