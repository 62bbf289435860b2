"""The page of `offline_teacher.py`: its tables as Markdown, with what they mean."""

from pathlib import Path
from typing import Any

import pandas as pd

LEAD = (
    "SmolLM2-135M teaches 18 and 6 of its 30 layers. top: the teacher's best tokens, both distributions renormalized over "
    "them; truncated: the teacher's alone, the student's over the whole vocabulary, as is usual; tail: all other tokens as "
    "one more; sampled: tokens drawn from the teacher."
)
SECTION_NOTES = {
    "gradients": "Angle: degrees between the gradient over all weights and that of the full KL, 18 layers, before any "
    "step; mean ± standard deviation over batches; that of a sample falls with the root of the tokens in a batch. The "
    "paper has 48° for top-50 and 4° for 12 sampled labels. Bias: distance of the mean gradient, for draws over caches, "
    "from the full one, as a share of its length; an unbiased estimate leaves what sampling noise leaves, which falls with "
    "their number.",
    "times": "Medians of whole steps with AdamW, each kind in turn; 18 or 6 layers.",
}
COLUMNS = {
    "bytes_per_token": ("bytes per token", ".0f"),
    "angle": ("angle", ".1f"),
    "bias": ("bias", ".3f"),
    "sampling_noise": ("of it sampling noise", ".3f"),
    "seconds_18": ("step of 18, s", ".2f"),
    "ratio_to_ce_18": ("× CE", ".2f"),
    "speedup_over_online_18": ("speedup over online", ".2f"),
    "seconds_6": ("step of 6, s", ".2f"),
    "ratio_to_ce_6": ("× CE", ".2f"),
    "speedup_over_online_6": ("speedup over online", ".2f"),
}


def render(folder: Path) -> str:
    """Those of gradients.csv and times.csv that are in `folder`."""
    lines = ["# Teacher caches: what they cost and what they leave of the gradient", "", LEAD]
    for part, about in SECTION_NOTES.items():
        path = folder / f"{part}.csv"
        if path.is_file():
            measured = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
            table = pd.read_csv(path, comment="#").set_index("teacher")
            lines += ["", f"## {part.capitalize()}", "", f"{measured}.", "", *as_markdown(table), "", about]
    return "\n".join([*lines, ""])


def as_markdown(table: pd.DataFrame) -> list[str]:
    """A line for each teacher of which anything was measured."""
    columns = {key: column for key, column in COLUMNS.items() if key in table}
    lines = ["| teacher | " + " | ".join(title for title, _ in columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in table.dropna(how="all", subset=[key for key in columns if key != "bytes_per_token"]).iterrows():
        values = [format_value(row[key], row.get(f"{key}_sd"), form) for key, (_, form) in columns.items()]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return lines


def format_value(value: Any, deviation: Any, form: str) -> str:
    """A number with its deviation, where it has either."""
    if value != value:
        return "–"
    return f"{value:{form}}" + (f" ± {deviation:{form}}" if deviation is not None and deviation == deviation else "")
