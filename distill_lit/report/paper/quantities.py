"""What a table can show of a model: the names that users write, and their units. Imports nothing, for `--help`."""

from typing import NamedTuple

FORMATS = ("md", "tex", "csv", "png", "pdf")
FIGURE_FORMATS = ("png", "pdf")
POINTS, PERCENT, COUNT, BYTES, NUMBER = "points", "percent", "count", "bytes", "number"
UNCERTAINTIES = ("auto", "std", "interval", "none")


class Quantity(NamedTuple):
    """column: of the score frame, or of runs.csv; usual: the digits after its point, None for large counts;
    uncertainty: what `auto` shows beside it."""

    name: str
    label: str
    column: str
    unit: str
    usual: int | None = None
    signed: bool = False
    uncertainty: str = "none"
    std: str = ""  # the column of its deviation over seeds
    about: str = ""


SCORE, ABOVE_CHANCE, RETAINED = "score", "above_chance", "retained"
_KNOWN = (
    Quantity(SCORE, "score", "score", POINTS, 1, uncertainty="std", std="seed_std", about="metric of a task, points"),
    Quantity(ABOVE_CHANCE, "above chance", "score", POINTS, 1, uncertainty="interval", std="seed_std",
             about="mean over tasks of (score − chance) / (1 − chance), points"),
    Quantity(RETAINED, "retained", "retention", PERCENT, 0, uncertainty="interval",
             about="share of the teacher's score above chance"),
    Quantity("delta_teacher", "Δ teacher", "teacher_delta", POINTS, 1, True, "interval",
             about="paired difference to the teacher, points"),
    Quantity("delta_ce_only", "Δ without teacher", "ce_only_delta", POINTS, 1, True, "interval",
             about="… to the same student trained without the teacher"),
    Quantity("delta_untrained", "Δ before training", "untrained_delta", POINTS, 1, True, "interval",
             about="… to the same student before training"),
    Quantity("margin", "margin", "margin", NUMBER, 3, uncertainty="interval", std="margin_std",
             about="of the right answer over the best other one, nats per character"),
    Quantity("p_gold", "p(right)", "p_gold", PERCENT, 1, uncertainty="interval", std="p_gold_std",
             about="probability of the right answer among the choices"),
    Quantity("bits_per_byte", "bits per byte", "bits_per_byte", NUMBER, 3, uncertainty="interval", std="bits_per_byte_std",
             about="of the right answer; less is better"),
    Quantity("probe_bits_per_byte", "bits per byte, probes", "probe_bits_per_byte", NUMBER, 3, uncertainty="interval",
             std="probe_bits_per_byte_std", about="of held-out text, mean over probes; less is better"),
    Quantity("probe_kl", "KL, probes", "probe_kl", NUMBER, 3, uncertainty="interval", std="probe_kl_std",
             about="to the teacher on probes, nats per token"),
    Quantity("seeds", "seeds", "num_seeds", COUNT, about="seeds that are averaged"),
    Quantity("val_kl", "val. KL", "val_kl", NUMBER, 2, about="KL to the teacher on held-out text, nats per token"),
    Quantity("val_ce", "val. cross-entropy", "val_ce", NUMBER, 2, about="of held-out text, nats per token"),
    Quantity("val_agreement", "agreement", "val_agreement", PERCENT, 1, about="tokens with the teacher's first choice"),
    Quantity("parameters", "parameters", "parameters", COUNT, about="all parameters"),
    Quantity("non_embedding_parameters", "non-emb. parameters", "non_embedding_parameters", COUNT,
             about="parameters without embeddings"),
    Quantity("num_layers", "layers", "num_layers", COUNT, about="transformer blocks"),
    Quantity("bytes", "size on disk", "bytes", BYTES, about="of the weights"),
    Quantity("flops_per_token", "FLOPs per token", "flops_per_token", COUNT, about="of a forward pass"),
    Quantity("kv_cache_bytes_per_token", "KV cache per token", "kv_cache_bytes_per_token", BYTES, about="of generation"),
    Quantity("training_tokens", "training tokens", "training_tokens", COUNT, about="that the student read"),
    Quantity("training_flops", "training FLOPs", "training_flops", COUNT, about="with the teacher's forward passes"),
)  # fmt: skip
QUANTITIES = {quantity.name: quantity for quantity in _KNOWN}


def describe_quantities() -> dict[str, str]:
    """{name: what it is} of QUANTITIES, for help."""
    return {quantity.name: quantity.about for quantity in _KNOWN}
