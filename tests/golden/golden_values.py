"""What the golden files hold, computed anew. Few names of the package are touched, all imported here at the top."""

import itertools
import os
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.tiny_models import make_corpus, make_model
from safetensors.numpy import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from distill_lit.config import TermConfig, load_experiment, non_default_fields
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.losses import LOGIT_LOSSES, build_objective, distillation_loss
from distill_lit.losses.targets import SampledTarget, SpanTarget, TopKTarget
from distill_lit.training.feature_alignment import build_feature_alignment
from distill_lit.utils import hardware
from distill_lit.utils.files import read_jsonl

HERE = Path(__file__).parent
EXPERIMENTS = sorted((HERE.parents[1] / "experiments").glob("*.yaml"))
Facts = dict[str, Any]


@contextmanager
def environment(**changes: Any) -> Any:
    """Inside, these variables of the environment, and float32 as the fastest number format of any machine."""
    before, measured = {name: os.environ.get(name) for name in changes}, hardware.fastest_dtype
    os.environ.update({name: str(value) for name, value in changes.items()})
    hardware.fastest_dtype = lambda *_: "float32"
    try:
        yield
    finally:
        hardware.fastest_dtype = measured
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# ---------------------------------------------------------------- plans


def plans() -> Facts:
    """{experiments: {name: what it plans}, same: runs of several experiments that are one and the same}."""
    known, found = defaultdict(list), {}
    with environment():
        for path in EXPERIMENTS:
            runs = plan_runs(load_experiment(path))
            found[path.stem] = _plan(runs)
            for number, run in enumerate(runs):
                known[run.fingerprint].append(f"{path.stem} {number}")
    return {"experiments": found, "same": sorted(names for names in known.values() if len(names) > 1)}


def _plan(runs: list[Any]) -> Facts:
    """runs: one after the other, `needs` by their numbers, of each section of the config that is not its default the number
    of its value among the different ones in `sections`."""
    sections: dict[str, list[Any]] = defaultdict(list)
    numbers = {run.name: number for number, run in enumerate(runs)}
    described = []
    for run in runs:
        config = {}
        for name, value in non_default_fields(run.config).items():
            if value not in sections[name]:
                sections[name].append(value)
            config[name] = sections[name].index(value)
        own = {name: getattr(run, name) for name in ("label", "role", "student", "seed", "grid_values", "model_reference")}
        described.append({**own, "needs": [numbers[name] for name in run.depends_on], "config": config})
    return {"runs": described, "sections": dict(sections)}


# ---------------------------------------------------------------- losses

TOKENS, VOCABULARY, FOREIGN_VOCABULARY, KEPT, DRAWN = 6, 11, 13, 5, 7
OPTIONS: dict[str, list[Facts]] = {
    "ce": [{"label_smoothing": 0.1}],
    "symmetric_kl": [{"forward_weight": 0.3}],
    "jensen_shannon": [{"beta": 0.3}],
    "skew_forward_kl": [{"skew": 0.3}],
    "skew_reverse_kl": [{"skew": 0.3}],
    "adaptive_kl": [{"head_mass": 0.7}],
    "alpha_beta": [{"alpha": 0.4, "beta": 0.7}, {"alpha": 0.0, "beta": 1.0}, {"alpha": 1.0, "beta": 0.0}],
    "logit_mse": [{"center": True}, {"center": False}],
    "contrastive_skew_kl": [{"skew": 0.3}],
    "top_k_kl": [{"k": 3}],
    "truncated_kl": [{"k": 3}],
    "top_k_tail_kl": [{"k": 3}],
    "sampled_kl": [{"num_samples": 4}],
    "pairwise_ranking": [{"loss": "hinge", "k": 4}, {"loss": "logistic", "k": 4}, {"loss": "hinge", "margin": 0.2}],
    "uld": [{"k": 4}],
    "alm": [{"tau": 2.0}],
}
CHOICES: dict[str, dict[str, list[Any]]] = {
    "hidden_states": {
        "loss": ["mse", "cosine", "normalized"],
        "layers": ["uniform", "last", "cka", [[0, 2], [1, 0]]],
        "projector": [True, False],
    },
    "attention": {"loss": ["kl", "mse"], "layers": ["uniform", "last"], "heads": ["each", "mean"]},
    "qkv_relations": {
        "relations": [["q", "k", "v"], ["q"], ["k"], ["v"]],
        "layers": ["last", "uniform"],
        "num_relation_heads": [0, 1],
    },
}


def _random(seed: int, *shape: int) -> Tensor:
    """The same on every machine, which torch does not promise."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def targets(labels: Tensor) -> dict[str, Any]:
    """One teacher in every form that a loss may read."""
    logits = 2 * _random(1, TOKENS, VOCABULARY)
    log_p = logits.log_softmax(-1)
    at_labels = log_p.gather(-1, labels[:, None])[:, 0]
    best, drawn = log_p.topk(KEPT), torch.from_numpy(np.random.default_rng(2).integers(0, VOCABULARY, (TOKENS, DRAWN)))
    weights = _random(3, TOKENS, DRAWN).softmax(-1)
    size = torch.tensor([1, 2, 2, 0, 3, 1])
    spans = [-_random(seed, TOKENS).abs() - 0.1 for seed in (4, 5, 6)]
    span_target = SpanTarget(2 * _random(7, TOKENS, FOREIGN_VOCABULARY), torch.arange(TOKENS) % 3 != 1, size, *spans)
    return {
        "dense": logits,
        "top_k": TopKTarget(best.indices, best.values, at_labels),
        "sampled": SampledTarget(drawn, log_p.gather(-1, drawn), weights, at_labels),
        "cross_tokenizer": span_target,
    }


def losses() -> dict[str, Facts]:
    """Every loss on logits, with every form of a teacher it reads, at two temperatures where it has one."""
    labels = torch.from_numpy(np.random.default_rng(8).integers(0, VOCABULARY, TOKENS))
    teachers, on_policy_mask, found = targets(labels), torch.arange(TOKENS) % 2 == 0, {}
    for kind, loss in LOGIT_LOSSES.items():
        for options in ({}, *OPTIONS.get(kind, [])):
            for form in loss.target_forms or ("",):
                for temperature in (1.0, 2.0) if form in loss.softenable_forms else (1.0,):
                    student = (1.5 * _random(0, TOKENS, VOCABULARY)).requires_grad_()
                    torch.manual_seed(0)
                    said = distillation_loss(
                        build_objective({kind: TermConfig(temperature=temperature, options=options)}),
                        student,
                        teachers.get(form),
                        labels,
                        denominator=torch.tensor(TOKENS),
                        on_policy_mask=on_policy_mask,
                        compute_metrics=True,
                    )
                    said.total.backward()
                    measures = {name: _digits(value.item()) for name, value in sorted(said.metric_sums.items())}
                    found[_name(kind, form, options, temperature)] = _summary(said.total, [student]) | {
                        "measures": measures
                    }
    return found


def _name(kind: str, form: str, options: Facts, temperature: float) -> str:
    chosen = [f"{name}={value}" for name, value in options.items()]
    return " ".join([kind, *([form] if form else []), *chosen, *([f"T={temperature:g}"] if temperature != 1 else [])])


def representations() -> dict[str, Facts]:
    """Every loss between inner states, with every choice of its options, on states in float64."""
    found, teacher = {}, _model(3, 24, 4)
    for kind, choices in CHOICES.items():
        for values in itertools.product(*choices.values()):
            options = dict(zip(choices, values, strict=True))
            is_narrow = options.get("projector") or kind == "qkv_relations" or options.get("heads") == "mean"
            student = _model(2, 12, 2) if is_narrow else _model(2, 24, 4)
            found[_name(kind, "", options, 1.0)] = _between(kind, options, student, teacher)
    return found


def _between(kind: str, options: Facts, student: Any, teacher: Any) -> Facts:
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 0]])
    ids = torch.from_numpy(np.random.default_rng(9).integers(3, 40, documents.shape))
    batch = {"input_ids": ids, "document_ids": documents, "position_ids": positions}
    objective = build_objective({"t": TermConfig(kind=kind, options=options)})
    matching = build_feature_alignment(objective, student, teacher.config, teacher, [batch], 0).double()
    ours, theirs = (
        _states(model.config, wanted, seed, documents)
        for seed, model, wanted in zip((10, 20), (student, teacher), matching.captured_layers, strict=True)
    )
    with torch.no_grad():
        for number, weight in enumerate(matching.parameters()):
            weight.copy_(_random(30 + number, *weight.shape))
    leaves = [*(state.requires_grad_() for state in ours.values()), *matching.parameters()]
    chosen = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
    total = matching(ours, theirs, documents, chosen).sum() / chosen.sum()
    total.backward()
    return _summary(total, leaves) | {"pairs": [[list(pair) for pair in pairs] for _, pairs in matching.term_layer_pairs]}


def _states(config: Any, wanted: dict[str, set[int]], seed: int, documents: Tensor) -> dict[tuple[str, int], Tensor]:
    """Random inner states of a model, by what they are and their layer."""
    head = config.hidden_size // config.num_attention_heads
    widths = {"hidden_states": config.hidden_size, "queries": config.hidden_size}
    count = documents.shape[1]
    allowed = (documents[:, None, :, None] == documents[:, None, None, :]) & torch.ones(count, count).tril().bool()
    found = {}
    for what, layers in sorted(wanted.items()):
        for layer in sorted(layers):
            seed += 1
            if what == "attention":
                scores = _random(seed, len(documents), config.num_attention_heads, count, count)
                found[what, layer] = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
            else:
                width = widths.get(what, config.num_key_value_heads * head)
                found[what, layer] = _random(seed, *documents.shape, width)
    return found


def _model(layers: int, width: int, heads: int) -> Any:
    torch.manual_seed(layers)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    ).eval()


def _summary(total: Tensor, leaves: list[Tensor]) -> Facts:
    leaves = [leaf for leaf in leaves if leaf.grad is not None]
    gradient = torch.cat([leaf.grad.flatten() for leaf in leaves])
    first = leaves[0].grad.flatten()[:8].tolist()
    return {"loss": _digits(total.item()), "norm": _digits(gradient.norm().item()), "first": [_digits(x) for x in first]}


def _digits(value: float) -> float:
    """12 significant digits; what is 0 but for rounding is 0."""
    return float(f"{value:.12g}") if abs(value) > 1e-15 else 0.0


# ---------------------------------------------------------------- trainings


def trainings(folder: Path) -> dict[str, Facts]:
    """Every run of tiny.yaml, below `folder`: the losses of its steps and its last weights."""
    corpus = make_corpus(folder / "text.jsonl")
    teacher = make_model(folder / "teacher", num_layers=3)
    other_teacher = make_model(folder / "cross_tokenizer", num_layers=2, vocab_size=320, seed=3, tokens=280)
    file = folder / "tiny.yaml"
    file.write_text((HERE / "tiny.yaml").read_text().replace("TEACHER", str(teacher)).replace("CORPUS", str(corpus)))
    found = {}
    with environment(DISTILL_LIT_CACHE=folder / "cache"):
        other = load_experiment(file, [f"teacher.model=file:{other_teacher}", "grid.variant=[cross_tokenizer]"])
        for run in [*plan_runs(load_experiment(file)), *plan_runs(other)]:
            place = folder / "runs" / run.name
            place.mkdir(parents=True)
            build_run(run, place, lambda *_: None)
            if run.is_model:
                found[run.label] = _trained(place)
    return found


KEPT_METRICS = ("train/loss", "train/gradient_norm", "validation/loss")


def _trained(place: Path) -> Facts:
    lines = read_jsonl(place / "metrics.jsonl")
    metrics = {name: [line[name] for line in lines if name in line] for name in KEPT_METRICS}
    weights = load_file(place / "student" / "model.safetensors")
    return {
        **metrics,
        "shapes": {name: list(weight.shape) for name, weight in sorted(weights.items())},
        "sums": {name: float(np.abs(weight.astype(np.float64)).sum()) for name, weight in sorted(weights.items())},
        "first": {name: weight.reshape(-1)[:4].astype(np.float64).tolist() for name, weight in sorted(weights.items())},
    }
