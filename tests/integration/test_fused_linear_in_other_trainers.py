"""The fused loss on plain tensors: against whole logits, and in a Trainer of Hugging Face."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, tiny_models
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from distill_lit import FusedLinearDistillationLoss, fused_linear_distillation_loss, losses
from distill_lit.utils.exceptions import UserError

EXAMPLES = ROOT / "examples/python"


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, 13, (3, 9), generator=generator)
    labels[0, :4] = labels[2, 6:] = -100
    return {
        "hidden": draw(3, 9, 6).requires_grad_(),
        "lm_head_weight": draw(13, 6).requires_grad_(),
        "teacher_hidden": draw(3, 9, 8),
        "teacher_lm_head_weight": draw(13, 8),
        "labels": labels,
    }


def whole(tensors: dict[str, Any], count: int | None = None) -> torch.Tensor:
    """½ CE + ½ T² KL at T = 2 from whole logits, by torch alone."""
    q, p = (tensors[f"{who}hidden"] @ tensors[f"{who}lm_head_weight"].T for who in ("", "teacher_"))
    targets = tensors["labels"][:, 1:]
    mask = targets != -100
    q, p, targets = q[:, :-1][mask], p[:, :-1][mask], targets[mask]
    ce = torch.nn.functional.cross_entropy(q, targets, reduction="sum")
    kl = torch.nn.functional.kl_div((q / 2).log_softmax(-1), (p / 2).log_softmax(-1), log_target=True, reduction="sum")
    return (0.5 * ce + 0.5 * 4 * kl) / (count or len(targets))


@pytest.mark.parametrize("count", [None, 40])
def test_equals_whole_logits(count: int | None) -> None:
    ours, theirs = tensors(), tensors()
    loss = FusedLinearDistillationLoss(chunk_size=4)(**ours, num_items_in_batch=count)
    expected = whole(theirs, count)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for result in (loss, expected):
        result.backward()
    for name in ("hidden", "lm_head_weight"):
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-10, atol=1e-12)
    assert ours["teacher_lm_head_weight"].grad is None


def test_chosen_tokens_are_not_shifted_again() -> None:
    given = tensors()
    mask = given["labels"][:, 1:] != -100
    chosen = {name: given[name][:, :-1][mask] for name in ("hidden", "teacher_hidden")}
    flat = fused_linear_distillation_loss(**{**given, **chosen, "labels": given["labels"][:, 1:][mask]})
    torch.testing.assert_close(flat, fused_linear_distillation_loss(**given))


def test_labels_alone_need_no_teacher() -> None:
    given = {**tensors(), "teacher_hidden": None, "teacher_lm_head_weight": None}
    loss = fused_linear_distillation_loss(**given, loss=losses.CrossEntropy())
    logits = given["hidden"] @ given["lm_head_weight"].T
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": torch.zeros(3, 8, dtype=torch.long)}, r"hidden: \(3, 9, 6\) does not fit labels \(3, 8\)"),
        ({"teacher_hidden": torch.zeros(3, 8, 8)}, r"teacher_hidden: \(3, 8, 8\) does not fit"),
        ({"teacher_hidden": None}, "losses.ForwardKL: it compares with a teacher, and there is none"),
        ({"loss": losses.HiddenStates()}, "losses.HiddenStates: it compares layers"),
    ],
)
def test_errors(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fused_linear_distillation_loss(**{**tensors(torch.float32), **changes})


def distillation_trainer() -> type[Trainer]:
    """The Trainer of the example."""
    spec = importlib.util.spec_from_file_location("hf_trainer", EXAMPLES / "hf_trainer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DistillationTrainer


class PlainTrainer(Trainer):
    """The same loss from whole logits."""

    def __init__(self, *args: Any, teacher: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.teacher, self.model_accepts_loss_kwargs = teacher, True

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        with torch.no_grad():
            theirs = self.teacher(**inputs).logits
        given = {"labels": labels, "hidden": model(**inputs).logits, "teacher_hidden": theirs}
        one = torch.eye(theirs.shape[-1])
        return whole({**given, "lm_head_weight": one, "teacher_lm_head_weight": one}, int(num_items_in_batch))


def test_two_steps_of_a_hugging_face_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    folders = [tiny_models.make_model(tmp_path / name, n, seed=n) for name, n in (("teacher", 2), ("student", 1))]
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    weights, logs = [], []
    for make in (distillation_trainer(), PlainTrainer):
        student = AutoModelForCausalLM.from_pretrained(folders[1])
        settings = TrainingArguments(
            tmp_path / "out",
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = make(
            model=student,
            teacher=AutoModelForCausalLM.from_pretrained(folders[0]),
            args=settings,
            train_dataset=[tokenizer(text) for text in tiny_models.sentences(12)],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
        logs.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert [float(x) for x in logs[0]] == pytest.approx([float(x) for x in logs[1]], rel=1e-3)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=2e-5)
