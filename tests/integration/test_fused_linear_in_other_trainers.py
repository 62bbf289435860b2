"""The fused loss on plain tensors: against whole logits, and in a Trainer of Hugging Face."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, tiny_models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Trainer,
    TrainingArguments,
)

from distill_lit import FusedLinearDistillationLoss, fused_linear_distillation_loss, get_lm_head, losses
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


def test_products_are_those_of_autocast_or_of_each_models_own_format() -> None:
    """float32 hidden states of a backbone under autocast, and hidden states in another format than the teacher's head."""
    given = tensors(torch.float32)
    short = {name: value.bfloat16() if value.is_floating_point() else value for name, value in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = fused_linear_distillation_loss(**given)
    torch.testing.assert_close(under_autocast, fused_linear_distillation_loss(**short), rtol=0, atol=0)
    mixed = {**given, "teacher_hidden": short["teacher_hidden"]}
    expected = {**given, "teacher_hidden": short["teacher_hidden"].float()}
    torch.testing.assert_close(fused_linear_distillation_loss(**mixed), fused_linear_distillation_loss(**expected))


def test_heads_of_models_give_the_logits_of_the_models() -> None:
    """Gemma 2 caps its logits, Granite divides them."""
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 1.0}
    torch.manual_seed(0)
    student = Gemma2ForCausalLM(Gemma2Config(**shape, final_logit_softcapping=3.0)).eval()
    teacher = GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=4.0)).eval()
    ids = torch.randint(3, 40, (2, 9))
    with torch.no_grad():
        hidden, teacher_hidden = (model.get_decoder()(ids).last_hidden_state for model in (student, teacher))
        logits, teacher_logits = student(ids).logits, teacher(ids).logits
        loss = fused_linear_distillation_loss(hidden, get_lm_head(student), teacher_hidden, get_lm_head(teacher), ids)
    one = torch.eye(40)
    given = {"labels": ids, "hidden": logits, "teacher_hidden": teacher_logits}
    torch.testing.assert_close(loss, whole({**given, "lm_head_weight": one, "teacher_lm_head_weight": one}))


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


def new_trainer(make: type[Trainer], root: Path, **settings: Any) -> Trainer:
    """A Trainer of two rows a batch on the CPU, with the student and the teacher that are in `root`."""
    tokenizer = AutoTokenizer.from_pretrained(root / "teacher")
    quiet = {"logging_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(root / "out", per_device_train_batch_size=2, **{**quiet, **settings})
    student, teacher = (AutoModelForCausalLM.from_pretrained(root / name) for name in ("student", "teacher"))
    return make(
        model=student,
        teacher=teacher,
        args=arguments,
        train_dataset=[tokenizer(text) for text in tiny_models.sentences(24)],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher of two layers and a student of one."""
    folder = tmp_path_factory.mktemp("models")
    for name, layers in (("teacher", 2), ("student", 1)):
        tiny_models.make_model(folder / name, layers, seed=layers)
    return folder


def flat_weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_steps_of_a_hugging_face_trainer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    weights, logs = [], []
    for make in (distillation_trainer(), PlainTrainer):
        trainer = new_trainer(make, root, max_steps=2, gradient_accumulation_steps=3, learning_rate=1e-2)
        trainer.train()
        weights.append(flat_weights(trainer.model))
        logs.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert [float(x) for x in logs[0]] == pytest.approx([float(x) for x in logs[1]], rel=1e-3)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=2e-5)


def test_the_hugging_face_trainer_computes_in_bfloat16_where_it_is_asked_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    formats = {}
    trainer = new_trainer(distillation_trainer(), root, max_steps=1, bf16=True)
    for role, model in (("student", trainer.model), ("teacher", trainer.model.forward.args[1])):
        layer = model.get_decoder().layers[0].mlp.down_proj
        layer.register_forward_hook(lambda _, inputs, output, role=role: formats.update({role: output.dtype}))
    trainer.train()
    assert formats == {"student": torch.bfloat16, "teacher": torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def train_as_rank(rank: int, root: str, port: int) -> None:
    """One of two processes of a Hugging Face training, as `torchrun` starts them."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    trainer = new_trainer(distillation_trainer(), Path(root), **SGD, gradient_accumulation_steps=3)
    trainer.train()
    torch.save(flat_weights(trainer.accelerator.unwrap_model(trainer.model)), Path(root) / f"rank_{rank}.pt")
    time.sleep(1)  # gloo's thread lets go of the last reduction
    torch.distributed.destroy_process_group()


SGD = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}


@pytest.mark.slow
def test_two_processes_of_a_hugging_face_trainer_train_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All twelve rows of a step count alike, whichever process reads them."""
    torch.multiprocessing.spawn(train_as_rank, (str(root), 29500 + os.getpid() % 2000), nprocs=2)
    monkeypatch.syspath_prepend(EXAMPLES)
    alone = new_trainer(distillation_trainer(), root, **SGD, gradient_accumulation_steps=6)
    before = flat_weights(alone.model)
    alone.train()
    first, second = (torch.load(root / f"rank_{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first - before, flat_weights(alone.model) - before, rtol=1e-3, atol=1e-6)
