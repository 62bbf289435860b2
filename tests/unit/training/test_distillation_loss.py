"""`DistillationLoss` and `Distiller` with a teacher of one's own; models, targets and denominators that both are given."""

import functools
from typing import Any

import pytest
import torch
from helpers.tiny_architectures import make_family
from torch import Tensor, nn

from distill_lit import DistillationLoss, Distiller, align_features, losses
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.targets import DenseTarget, TopKTarget
from distill_lit.teachers import OnlineTeacher
from distill_lit.utils.exceptions import UserError

NUM_TOKENS = 7  # supervised tokens of BATCH
BATCH = {
    "input_ids": torch.tensor([[5, 9, 14, 3, 8], [7, 2, 11, 6, 0]]),
    "labels": torch.tensor([[5, 9, 14, 3, 8], [7, 2, 11, 6, -100]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
}
make_model = functools.cache(make_family)


class LogitsTeacher:
    """What anyone tries first: a model's logits at the tokens whose loss counts, in the place of `answer`."""

    def __init__(self, model: Any = None, answer: Any = None) -> None:
        self.model, self.answer = model, answer

    def to(self, device: torch.device) -> None:
        pass

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> Any:
        if self.answer is not None:
            return self.answer
        with torch.inference_mode():
            return self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][loss_mask]


def test_logits_are_a_target() -> None:
    """The same loss, gradient and metrics as of the model whose logits they are."""
    student, teacher = make_model("llama", 0), make_model("llama", 1)
    loss = losses.ForwardKL(temperature=2.0) + losses.TopKKL(k=3) + losses.LogitMSE()
    found = []
    for source in (OnlineTeacher(teacher), LogitsTeacher(teacher)):
        student.zero_grad()
        output = DistillationLoss(loss, source)(student, BATCH, compute_metrics=True)
        output.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in student.parameters()])
        found.append([output.total.detach(), gradient, *output.metric_sums.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def dense(num_tokens: int, width: int) -> DenseTarget:
    """Of a head that reads 4 channels."""
    return DenseTarget(torch.zeros(num_tokens, width), LMHead(torch.zeros(120, 4), None, 1.0, 0.0, 120))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.zeros(2, 5, 120), r"gave logits \(2, 5, 120\); needed are logits \(N, V\) of the N = 7 tokens"),
        (torch.zeros(8, 120), r"gave logits \(8, 120\); needed .* as logits\[:, :-1\]\[loss_mask\]"),
        (torch.zeros(7, 120, dtype=torch.long), "gave torch.int64; needed"),
        (torch.zeros(7, 100), "120 tokens are compared, and the teacher gives 100"),
        ((torch.zeros(7, 120),), "gave tuple; needed"),
        (dense(6, 4), r"gave hidden_states \(6, 4\)"),
        (
            dense(7, 3),
            "3 wide, and its lm_head reads 4",
        ),
        (TopKTarget(torch.zeros(7, 2).long(), torch.zeros(7, 3), torch.zeros(7)), "are to be of one shape"),
        (TopKTarget(torch.zeros(7, 2).long(), torch.zeros(7, 2), torch.zeros(7, 1)), r"label_logprobs \(7, 1\)"),
    ],
)
def test_what_is_no_target_is_refused(answer: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DistillationLoss(losses.TopKKL(), LogitsTeacher(answer=answer))(make_model("llama", 0), BATCH)


class Targetless:
    def to(self, device: torch.device) -> None:
        pass


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (3, "teacher: int has no target and no to; give a causal language model, or an object with target"),
        (Targetless(), "teacher: Targetless has no target; give"),
        (OnlineTeacher, "teacher: OnlineTeacher is a class; give an object of it"),
        (nn.Linear(2, 2), "teacher: Linear is a module and no causal language model"),
    ],
)
def test_what_is_no_teacher_is_refused_before_the_first_batch(teacher: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DistillationLoss(losses.ForwardKL(), teacher)
    with pytest.raises(UserError, match=words):
        Distiller(make_model("llama", 0), teacher, vocab_size=120)


@pytest.mark.parametrize(
    ("student", "words"),
    [(3, "student: int is no model; give a causal"), (nn.Linear(2, 2), "Linear has no output embeddings, so it is not")],
)
def test_what_is_no_student_is_refused(student: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Distiller(student, make_model("llama", 1), vocab_size=120)


def test_a_denominator_may_be_a_number() -> None:
    """As `num_items_in_batch` of a Trainer: the sum over the tokens, divided by it; hidden-state terms too."""
    student, loss = make_model("llama", 0), losses.ForwardKL() + losses.HiddenStates()
    criterion = DistillationLoss(loss, make_model("llama", 1))
    mean, half = criterion(student, BATCH).total, criterion(student, BATCH, denominator=2 * NUM_TOKENS).total
    torch.testing.assert_close(half, mean / 2)
    logits, labels = torch.randn(4, 9), torch.arange(4)
    objective = losses.as_objective(losses.CrossEntropy())
    reference = losses.distillation_loss(objective, logits, None, labels, denominator=8)
    torch.testing.assert_close(reference.total, nn.functional.cross_entropy(logits, labels) / 2)


# ---------------------------------------------------------------- hidden states


def test_layers_are_aligned_at_the_first_batch_where_nothing_is_trained_or_measured() -> None:
    student, teacher = make_model("llama", 0), make_model("llama", 1)
    loss = losses.HiddenStates(loss="cosine")
    expected = Distiller(student, teacher, loss).loss(student, BATCH).total
    torch.testing.assert_close(DistillationLoss(loss, teacher)(student, BATCH).total, expected)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [({"projector": True}, r"teacher\)"), ({"layers": "cka"}, r"teacher, \[batch\]\)")],
)
def test_what_must_be_aligned_before_says_how(options: dict[str, Any], remedy: str) -> None:
    """By plain batches; the layers most alike of a model and itself are each with itself."""
    student, teacher = make_model("llama", 0), make_model("llama", 1)
    loss = losses.HiddenStates(**options)
    with pytest.raises(UserError, match=rf"feature_alignment=distill_lit.align_features\(loss, student, {remedy}"):
        DistillationLoss(loss, teacher)
    alignment = align_features(loss, student, student, [BATCH])
    assert alignment.term_layer_pairs[0][1] == [(i, i) for i in range(4)]
    assert Distiller(student, teacher, loss, feature_alignment=alignment).loss(student, BATCH).total.isfinite()


def test_layers_of_a_teacher_without_a_model_are_not_known() -> None:
    class Watched(LogitsTeacher):
        def activations(self, batch: Any, wanted: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(UserError, match="feature_alignment=, from distill_lit.training.feature_alignment.build_feature"):
        DistillationLoss(losses.HiddenStates(), Watched())
