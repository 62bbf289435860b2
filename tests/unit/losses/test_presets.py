"""Presets: what they resolve to, and that they are the losses of those they are named after, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, reference_libraries
from torch import Tensor
from torch.nn import functional as F

from distill_lit import losses
from distill_lit.config import ExperimentConfig, ObjectiveConfig, TermConfig, load_experiment, to_dict
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.grid import expand_points, resolve_objective
from distill_lit.losses import PRESETS, build_objective, distillation_loss, resolve_preset
from distill_lit.utils.exceptions import UserError

IGNORED = -100
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"


def example() -> tuple[Tensor, Tensor, Tensor]:
    """(student (2, 5, 17), teacher, shifted labels (2, 5)) in float64; some tokens are not supervised."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 17, dtype=torch.float64) * 3
    labels = torch.randint(0, 17, (2, 5))
    labels[0, :2] = labels[1, -1] = IGNORED
    return student, teacher, labels


def ours(objective: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """(loss, gradient) of the example."""
    student, teacher, labels = example()
    student.requires_grad_()
    settled, chosen = resolve_objective(objective), labels != IGNORED
    built = build_objective(settled.terms, settled.temperature_scaling)
    total = distillation_loss(built, student[chosen], teacher[chosen], labels[chosen], denominator=chosen.sum()).total
    total.backward()
    return total.detach(), student.grad


def batchmean_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The textbook line: KL of softened logits, mean over tokens, times T²."""
    log_q, p = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def skewed_reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """As DistiLLM's code has it: −Σ q log(0.9 p + 0.1 q) + Σ q log q."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    return -(q * (0.9 * p + 0.1 * q).log() - q * student.log_softmax(-1)).sum(-1).mean()


FORMULAS = {
    "hinton": lambda s, t, y: 0.5 * F.cross_entropy(s, y) + 0.5 * batchmean_kl(s, t, 2.0),
    "distillkit": lambda s, t, y: 0.5 * F.cross_entropy(s, y) + 0.5 * batchmean_kl(s, t, 1.0),
    "distillm": lambda s, t, y: skewed_reverse_kl(s, t),
    "minillm": lambda s, t, y: (s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum(-1).mean(),
    "torchtune": lambda s, t, y: 0.5 * F.cross_entropy(s, y) - 0.5 * (t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean(),
}


@pytest.mark.parametrize("preset", FORMULAS)
def test_presets_equal_their_authors_formula(preset: str) -> None:
    student, teacher, labels = example()
    student.requires_grad_()
    chosen = labels != IGNORED
    expected = FORMULAS[preset](student[chosen], teacher[chosen], labels[chosen])
    expected.backward()
    loss, gradient = ours(ObjectiveConfig(preset=preset))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-13, atol=1e-15)


REFERENCE_LOSSES = {
    "torchtune forward": {"kind": "soft_cross_entropy"},
    "torchtune reverse": {"kind": "reverse_kl"},
    **{f"trl beta=0.0 T={t}": {"kind": "forward_kl", "temperature": t} for t in (1.0, 2.0)},
    **{f"trl beta=1.0 T={t}": {"kind": "reverse_kl", "temperature": t} for t in (1.0, 2.0)},
    **{
        f"trl beta={b} T={t}": {"kind": "jensen_shannon", "temperature": t, "options": {"beta": b}}
        for b in (0.1, 0.5)
        for t in (1.0, 2.0)
    },
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Losses and gradients of TRL and torchtune on the example."""
    folder = tmp_path_factory.mktemp("reference")
    names = ("student", "teacher", "labels")
    np.savez(folder / "in.npz", **{name: part.numpy() for name, part in zip(names, example(), strict=True)})
    script = ROOT / "tests/helpers/reference_losses.py"
    reference_libraries.run_script(script, str(folder / "in.npz"), str(folder / "out.npz"))
    return dict(np.load(folder / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_LOSSES)
def test_equal_to_the_code_of_trl_and_torchtune(name: str, theirs: dict[str, np.ndarray]) -> None:
    objective = ObjectiveConfig(terms={"it": TermConfig(**REFERENCE_LOSSES[name])}, temperature_scaling="none")
    compare(ours(objective), name, theirs)


@pytest.mark.slow
def test_torchtunes_symmetric_loss_is_two_terms(theirs: dict[str, np.ndarray]) -> None:
    terms = {
        "forward": TermConfig(kind="soft_cross_entropy", weight=0.3),
        "reverse": TermConfig(kind="reverse_kl", weight=0.7),
    }
    compare(ours(ObjectiveConfig(terms=terms)), "torchtune symmetric 0.3", theirs)


@pytest.mark.slow
def test_presets_equal_the_code_of_trl_and_torchtune(theirs: dict[str, np.ndarray]) -> None:
    compare(ours(ObjectiveConfig(preset="gkd")), "trl beta=0.5 T=1.0", theirs)
    only_kd = ObjectiveConfig(preset="torchtune", terms={"ce": None, "kd": TermConfig(weight=1.0)})
    compare(ours(only_kd), "torchtune forward", theirs)


def compare(found: tuple[Tensor, Tensor], name: str, theirs: dict[str, np.ndarray]) -> None:
    torch.testing.assert_close(found[0], torch.from_numpy(theirs[f"{name}/loss"]), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[1], torch.from_numpy(theirs[f"{name}/grad"]), rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------- in a config


def without_terms(*changes: str) -> ExperimentConfig:
    """The quickstart with changes and no terms of its own."""
    config = load_experiment(QUICKSTART, list(changes))
    config.objective.terms = {}
    return config


def test_a_preset_is_spelled_out() -> None:
    (_, point, _), *_ = expand_points(without_terms("objective.preset=hinton"))
    objective = to_dict(point.objective)
    assert (objective["preset"], objective["temperature_scaling"]) == ("", "hinton")
    assert objective["terms"] == {
        "ce": {"kind": "", "weight": 0.5, "temperature": 1.0, "options": {}},
        "kl": {"kind": "forward_kl", "weight": 0.5, "temperature": 2.0, "options": {}},
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset: str) -> None:
    config = resolve_objective(ObjectiveConfig(preset=preset))
    built = build_objective(config.terms, config.temperature_scaling)
    assert built.scales_by_temperature == (PRESETS[preset].temperature_scaling == "hinton")
    assert losses.preset(preset) == built
    assert build_objective(*resolve_preset(preset, {}, "auto")) == built


def test_presets_are_added_to_other_losses() -> None:
    """GKD's convention has no T², and no temperature to which that would matter."""
    loss = 0.5 * losses.preset("gkd") + 0.5 * losses.CrossEntropy()
    assert loss.weights(0.0) == {"jsd": 0.5, "ce": 0.5}
    assert (loss + losses.ForwardKL(temperature=3.0)).weights(0.0)["forward_kl"] == 9
    softened = losses.ForwardKL(temperature=3.0).with_temperature_scaling("none")
    assert softened.weights(0.0) == {"forward_kl": 1}
    assert softened.with_temperature_scaling("hinton").weights(0.0) == {"forward_kl": 9}
    with pytest.raises(UserError, match="cannot be added; give one of them .with_temperature_scaling"):
        softened + losses.ReverseKL(temperature=2.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.preset("gdk"), "losses.preset: unknown value 'gdk'; did you mean 'gkd'"),
        (
            lambda: losses.ForwardKL().with_temperature_scaling("non"),
            "unknown temperature scaling 'non'; did you mean 'none'",
        ),
        (
            lambda: build_objective({"ce": {"weights": 2}}),
            "objective.terms.ce: unknown field 'weights'; did you mean 'weight'",
        ),
    ],
)
def test_errors_of_presets_in_python(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_terms_change_single_fields_of_a_preset() -> None:
    terms = {"kl": TermConfig(temperature=4.0), "ce": None, "rkl": TermConfig(kind="reverse_kl", weight=0.1)}
    changed = resolve_objective(ObjectiveConfig(preset="hinton", terms=terms, temperature_scaling="none"))
    assert {name: (t.kind, t.weight, t.temperature) for name, t in changed.terms.items()} == {
        "kl": ("forward_kl", 0.5, 4.0),
        "rkl": ("reverse_kl", 0.1, 1.0),
    }
    assert changed.temperature_scaling == "none"
    skewed = resolve_objective(ObjectiveConfig(preset="distillm", terms={"srkl": TermConfig(options={"skew": 0.2})}))
    assert skewed.terms["srkl"].options == {"skew": 0.2}
    assert skewed.terms["srkl"].kind == "skew_reverse_kl"


def test_presets_are_an_axis_of_a_grid() -> None:
    runs = plan_runs(without_terms("grid={objective.preset: [gkd, hinton], student: [deep]}"))
    distilled = [run for run in runs if run.role == "distilled"]
    assert [run.label for run in distilled] == ["deep-preset=gkd", "deep-preset=hinton"]
    assert [sorted(run.config.objective.terms) for run in distilled] == [["jsd"], ["ce", "kl"]]
    plain = [run for run in runs if run.role == "ce_only"]
    assert [sorted(run.config.objective.terms) for run in plain] == [["ce"]]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.preset: unknown value 'hintn'; did you mean 'hinton'"):
        check_experiment(load_experiment(QUICKSTART, ["objective.preset=hintn"]))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("contrastive_skew_kl", "does not tell them apart"), ("policy_gradient_reverse_kl", "set on_policy.fraction to 1")],
)
def test_losses_that_ask_who_wrote_a_text_are_refused_for_a_corpus(kind: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"objective\.terms\.new: {kind} .*{words}"):
        check_experiment(load_experiment(QUICKSTART, [f"objective.terms.new={{kind: {kind}}}"]))


# ---------------------------------------------------------------- one number that mixes


def weights_of(objective: ObjectiveConfig) -> dict[str, object]:
    return {name: term.weight for name, term in resolve_objective(objective).terms.items() if term is not None}


KL = TermConfig(kind="forward_kl")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_alpha_is_the_usual_sum_of_kl_and_cross_entropy(alpha: float) -> None:
    student, teacher, labels = example()
    student.requires_grad_()
    chosen = labels != IGNORED
    soft, hard = batchmean_kl(student[chosen], teacher[chosen], 2.0), F.cross_entropy(student[chosen], labels[chosen])
    (alpha * soft + (1 - alpha) * hard).backward()
    loss, gradient = ours(ObjectiveConfig(alpha=alpha, terms={"kl": TermConfig(kind="forward_kl", temperature=2.0)}))
    torch.testing.assert_close(loss, (alpha * soft + (1 - alpha) * hard).detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-12, atol=1e-14)


def test_alpha_multiplies_the_weights_there_are() -> None:
    """By hand: 0.3 · 0.5 and 0.7 · 0.5 of Hinton's halves, 0.3 · 0.2 of states, and 1 − 0.9 is 0.1."""
    states = {"hidden_states": TermConfig(weight=0.2)}
    hinton = ObjectiveConfig(preset="hinton", alpha=0.3, terms=states)
    assert weights_of(hinton) == {"ce": 0.35, "kl": 0.15, "hidden_states": 0.06}
    assert weights_of(ObjectiveConfig(alpha=0.9, terms={"kl": KL})) == {"kl": 0.9, "ce": 0.1}
    smoothed = {"labels": TermConfig(kind="ce", options={"label_smoothing": 0.1}), "kl": KL}
    assert weights_of(ObjectiveConfig(alpha=0.25, terms=smoothed)) == {"labels": 0.75, "kl": 0.25}
    once = resolve_objective(hinton)
    assert resolve_objective(once) == once and once.alpha is None


def test_alpha_scales_schedules_point_by_point() -> None:
    line = {"shape": "linear", "start": 1.0, "end": 0.5, "from": 0.2}
    steps = {"shape": "piecewise", "points": {"0": 1.0, "0.5": 2.0}}
    terms = {"kl": TermConfig(kind="forward_kl", weight=line), "ce": TermConfig(weight=steps)}
    assert weights_of(ObjectiveConfig(alpha=0.4, terms=terms)) == {
        "kl": {"shape": "linear", "start": 0.4, "end": 0.2, "from": 0.2},
        "ce": {"shape": "piecewise", "points": {"0": 0.6, "0.5": 1.2}},
    }


def test_alpha_is_an_axis_whose_ends_are_what_they_say() -> None:
    """At 0 the teacher says nothing: that point is the baseline without it. What weights say is the same run."""
    grid = "grid={objective.alpha: [0.0, 0.5, 1.0], student: [deep]}"
    runs = plan_runs(load_experiment(QUICKSTART, ["objective.terms={ce: null}", "objective.terms.kl.weight=1.0", grid]))
    trained = {run.label: run for run in runs if run.role.is_trained}
    assert {label: run.role for label, run in trained.items()} == {
        "deep-ce_only": "ce_only",
        "deep-alpha=0.5": "distilled",
        "deep-alpha=1.0": "distilled",
    }
    terms = trained["deep-alpha=1.0"].config.objective.terms
    assert {name: term.weight for name, term in terms.items() if term} == {"kl": 1.0, "ce": 0.0}
    by_hand = ["objective.terms.kl.weight=0.5", "objective.terms.ce.weight=0.5", "grid={student: [deep]}"]
    (same,) = [run for run in plan_runs(load_experiment(QUICKSTART, by_hand)) if run.role == "distilled"]
    assert trained["deep-alpha=0.5"].fingerprint == same.fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["objective.alpha=1.5"], r"^objective\.alpha: 1\.5 is above its maximum 1"),
        (["objective.alpha=half"], r"^objective\.alpha: 'half' is text; write it without quotes, as a number"),
        (["objective.alpha=0.5", "objective.terms={kl: null}"], r"^objective\.alpha: no term compares with the teacher"),
        (
            ["objective.alpha=0.5", "objective.terms={ce: {kind: reverse_kl}}"],
            r"^objective\.alpha: it adds a term `ce` on labels, and terms\.ce compares with the teacher",
        ),
    ],
)
def test_an_alpha_with_nothing_to_mix_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load_experiment(QUICKSTART, changes))
