"""Distiller in a notebook: models of transformers, a plain DataLoader, and whatever flags a Trainer has."""

import copy
import csv
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from helpers import tiny_models
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from distill_lit import DistillationLoss, Distiller, losses
from distill_lit.teachers import MixtureTeacher, OnlineTeacher
from distill_lit.training.callbacks.step_logger import StepLogger
from distill_lit.training.loss import FusedLossSettings
from distill_lit.utils.exceptions import UserError

BOTH = 0.5 * losses.CrossEntropy() + 0.5 * losses.ForwardKL(temperature=2.0)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a teacher of two layers and a student of one."""
    root = tmp_path_factory.mktemp("api")
    return tiny_models.make_model(root / "teacher"), tiny_models.make_model(root / "student", num_layers=1, seed=1)


@pytest.fixture
def models(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    """(student, teacher), as `from_pretrained` gives them."""
    teacher, student = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    return student, teacher


@pytest.fixture(scope="module")
def loader(folders: tuple[Path, Path]) -> DataLoader:
    """Sentences of different lengths, padded, four at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    rows = [tokenizer(text) for text in tiny_models.sentences(24)]
    return DataLoader(rows, batch_size=4, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def plain_loss(student: Any, teacher: Any, batch: Any, temperature: float = 2.0) -> torch.Tensor:
    """½ CE + ½ T² KL from whole logits, as a loop of transformers would have it."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = student(**inputs, labels=batch["labels"])
    with torch.no_grad():
        theirs = teacher(**inputs).logits[:, :-1]
    mask = batch["labels"][:, 1:] != -100
    log_q, log_p = ((z / temperature).log_softmax(-1)[mask] for z in (output.logits[:, :-1], theirs))
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    return 0.5 * output.loss + 0.5 * temperature**2 * kl


def test_the_loss_is_that_of_whole_logits(models: tuple[Any, Any], loader: DataLoader) -> None:
    student, teacher = models
    batch, criterion = next(iter(loader)), DistillationLoss(BOTH, teacher, settings=FusedLossSettings(chunk_size=7))
    ours = criterion(student, batch)
    ours.total.backward()
    gradient = gradient_of(student)
    theirs = plain_loss(student, teacher, batch)
    theirs.backward()
    torch.testing.assert_close(ours.total, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, gradient_of(student), rtol=1e-4, atol=1e-6)


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def trained_by_hand(student: Any, teacher: Any, loader: DataLoader, accumulate: int, clip: Callable[..., Any]) -> Any:
    """Two optimizer steps of SGD, written out."""
    optimizer, batches = torch.optim.SGD(student.parameters(), lr=0.1), iter(loader)
    for _ in range(2):
        for _ in range(accumulate):
            (plain_loss(student, teacher, next(batches)) / accumulate).backward()
        clip(student.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return student


@pytest.mark.parametrize(
    ("flags", "clip"),
    [
        ({"gradient_clip_val": 0.01}, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.01)),
        (
            {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
            lambda p: torch.nn.utils.clip_grad_value_(p, 1e-4),
        ),
        ({}, lambda _: None),
    ],
    ids=["norm", "value", "none"],
)
def test_accumulation_and_clipping_are_those_of_the_trainer(
    folders: tuple[Path, Path], loader: DataLoader, flags: dict, clip: Callable[..., Any]
) -> None:
    teacher, student, other = (AutoModelForCausalLM.from_pretrained(folders[i]) for i in (0, 1, 1))
    module = Distiller(student, teacher, BOTH, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    L.Trainer(max_steps=2, accumulate_grad_batches=3, **QUIET, **flags).fit(module, loader)
    expected = trained_by_hand(other.train(), teacher, loader, 3, clip)
    torch.testing.assert_close(weights(student), weights(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_ten_lines(folders: tuple[Path, Path], loader: DataLoader, tmp_path: Path, precision: str) -> None:
    """The student learns, is what transformers opens, and the teacher and all settings of both are as before."""
    teacher, student = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    before, config = weights(teacher).clone(), student.config.to_dict()
    module = Distiller(student, teacher, loss=BOTH, lr=1e-2)
    early = EarlyStopping("validation/loss", patience=3)
    trainer = L.Trainer(
        max_steps=30,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        precision=precision,
        callbacks=[early],
        check_val_every_n_epoch=None,
        val_check_interval=20,
        **QUIET,
    )
    trainer.validate(module, loader, verbose=False)
    start = float(trainer.callback_metrics["validation/loss"])
    trainer.fit(module, loader, loader)
    assert float(trainer.callback_metrics["validation/loss"]) < 0.8 * start
    assert float(early.best_score) < start
    assert torch.equal(weights(teacher), before)
    assert student.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert teacher.dtype == torch.float32
    assert not student.is_gradient_checkpointing
    assert {**student.config.to_dict(), "dtype": None} == {**config, "dtype": None}
    assert student.config._attn_implementation == "sdpa"
    student.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.dtype == student.dtype and torch.equal(weights(opened), weights(student))


def test_a_checkpoint_gives_the_module_back(folders: tuple[Path, Path], loader: DataLoader, tmp_path: Path) -> None:
    teacher, student, fresh = (AutoModelForCausalLM.from_pretrained(folders[i]) for i in (0, 1, 1))
    loss = losses.linear(1.0, 0.5) * losses.CrossEntropy() + losses.HiddenStates(layers="last", projector=True)
    module = Distiller(student, teacher, loss=loss, lr=3e-3)
    best = ModelCheckpoint(tmp_path, monitor="validation/loss", filename="best")
    flags = {**QUIET, "enable_checkpointing": True}
    L.Trainer(max_epochs=2, callbacks=[best], **flags).fit(module, loader, loader)
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["hyper_parameters"]["lr"] == 3e-3
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"student", "loss"}
    assert not any("teacher" in name for name in saved["state_dict"])
    again = Distiller.load_from_checkpoint(best.best_model_path, student=fresh, teacher=teacher)
    assert again.loss.objective == module.loss.objective
    stored = [saved["state_dict"][f"student.{name}"].flatten() for name, _ in fresh.named_parameters()]
    assert torch.equal(weights(fresh), torch.cat(stored))
    steps = saved["global_step"]
    trainer = L.Trainer(max_epochs=3, **QUIET)
    trainer.fit(again, loader, loader, ckpt_path=best.best_model_path)
    assert trainer.global_step > steps


def test_what_was_trained_is_in_the_checkpoint_though_frozen_now(
    folders: tuple[Path, Path], loader: DataLoader, tmp_path: Path
) -> None:
    """Stages that freeze parts of a student: neither what it had learned nor what a checkpoint holds is lost."""
    teacher, student, fresh = (AutoModelForCausalLM.from_pretrained(folders[i], dtype="float32") for i in (0, 1, 1))
    start = weights(fresh.get_input_embeddings())
    student.model.layers[0].mlp.requires_grad_(False)  # never trained, so never saved
    module = Distiller(student, teacher)
    L.Trainer(max_steps=2, **QUIET).fit(module, loader)
    student.get_input_embeddings().requires_grad_(False)
    trainer = L.Trainer(max_steps=2, **QUIET)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fresh.get_input_embeddings().requires_grad_(False)
    fresh.model.layers[0].mlp.requires_grad_(False)
    again = Distiller.load_from_checkpoint(tmp_path / "last.ckpt", student=fresh, teacher=teacher)
    assert not any(".mlp." in name for name in torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert not torch.equal(weights(fresh.get_input_embeddings()), start)
    assert torch.equal(weights(fresh), weights(student))
    trainer.strategy.connect(again)
    trainer.save_checkpoint(tmp_path / "again.ckpt")  # by one that has itself trained nothing
    saved = [torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("last", "again")]
    assert saved[0].keys() == saved[1].keys()


def test_steps_of_ones_own_need_not_call_those_of_the_module(models: tuple[Any, Any], loader: DataLoader) -> None:
    class Own(Distiller):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.student(**batch).loss

        def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
            self.log("perplexity", self.student(**batch).loss.exp())

    trainer = L.Trainer(max_epochs=1, limit_train_batches=2, log_every_n_steps=1, **QUIET)
    trainer.fit(Own(*models), loader, loader)
    assert trainer.global_step == 2
    assert {"perplexity", "train/gradient_norm", "weight/ce"} <= trainer.callback_metrics.keys()
    assert not {"train/loss", "validation/loss", "step"} & trainer.callback_metrics.keys()


def test_a_trainer_keeps_a_logger_of_steps_of_its_own(models: tuple[Any, Any], loader: DataLoader) -> None:
    class Own(StepLogger):
        norms: ClassVar[list[float]] = []

        def _step_metrics(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
            values = super()._step_metrics(trainer, module)
            self.norms.append(values["train/gradient_norm"])
            return values

    norms = []
    for own in ([Own()], []):  # before the guard that measures the norm, and behind it
        student = copy.deepcopy(models[0])
        trainer = L.Trainer(max_steps=2, log_every_n_steps=1, callbacks=own, **QUIET)
        trainer.fit(Distiller(student, models[1]), loader)
        assert sum(isinstance(callback, StepLogger) for callback in trainer.callbacks) == 1
        norms.append(float(trainer.callback_metrics["train/gradient_norm"]))
    assert norms[0] == norms[1] == Own.norms[1] != Own.norms[0]


def test_own_optimizer_and_schedule(models: tuple[Any, Any], loader: DataLoader) -> None:
    module = Distiller(
        *models,
        losses.ForwardKL(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.4),
        lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
    )
    trainer = L.Trainer(max_steps=6, **QUIET)
    trainer.fit(module, loader)
    assert type(trainer.optimizers[0]) is torch.optim.SGD
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)  # T_max is the number of steps


def test_configure_optimizers_can_be_overridden(models: tuple[Any, Any], loader: DataLoader) -> None:
    class Own(Distiller):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adagrad(self.student.parameters())

    trainer = L.Trainer(max_steps=1, **QUIET)
    trainer.fit(Own(*models), loader)
    assert type(trainer.optimizers[0]) is torch.optim.Adagrad


def test_batches_with_step_tokens_are_exact_over_the_window(folders: tuple[Path, Path], loader: DataLoader) -> None:
    """Three micro-batches of different lengths, and one of all their rows: the same gradient."""
    teacher, student, other = (AutoModelForCausalLM.from_pretrained(folders[i]) for i in (0, 1, 1))
    batches = [{n: part[n][:size] for n in part} for part, size in zip(loader, (4, 1, 2), strict=False)]
    count = torch.stack([(part["labels"][:, 1:] != -100).sum() for part in batches]).sum()
    module = Distiller(student, teacher, BOTH, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    window = DataLoader([{**part, "step_tokens": count} for part in batches], batch_size=None)
    L.Trainer(max_steps=1, accumulate_grad_batches=3, **QUIET).fit(module, window)
    optimizer, other = torch.optim.SGD(other.parameters(), lr=0.1), other.train()
    for part in batches:
        tokens = (part["labels"][:, 1:] != -100).sum()
        (plain_loss(other, teacher, part) * tokens / count).backward()
    optimizer.step()
    torch.testing.assert_close(weights(student), weights(other), rtol=1e-5, atol=1e-7)


def test_a_slow_validation_does_not_slow_down_the_training_that_is_logged(
    models: tuple[Any, Any], loader: DataLoader, tmp_path: Path
) -> None:
    class Slow(Distiller):
        def validation_step(self, batch: Any, index: int) -> None:
            time.sleep(0.3)
            super().validation_step(batch, index)

        def training_step(self, batch: Any, index: int) -> Any:
            time.sleep(0.05)
            return super().training_step(batch, index)

    flags = {**QUIET, "logger": CSVLogger(tmp_path, name=None, version="x"), "log_every_n_steps": 2}
    trainer = L.Trainer(max_steps=6, check_val_every_n_epoch=None, val_check_interval=2, limit_val_batches=2, **flags)
    trainer.fit(Slow(*models, losses.ForwardKL()), loader, loader)
    with (tmp_path / "x" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/tokens_per_second"]]
    tokens, speeds = ([float(row[f"train/{name}"]) for row in rows] for name in ("tokens", "tokens_per_second"))
    sizes = [batch["input_ids"].numel() for batch in loader]
    assert tokens == [sizes[0], sum(sizes[:3]), sum(sizes[:5])]
    steps = [(sizes[0], 1), (sum(sizes[1:3]), 2), (sum(sizes[3:5]), 2)]
    for speed, (size, count) in zip(speeds, steps, strict=True):
        seconds = size / speed  # 0.05 a step and what it computes; a validation would add 0.6
        assert 0.05 * count <= seconds < 0.05 * count + 0.4


def test_more_of_the_trainers_flags(models: tuple[Any, Any], loader: DataLoader) -> None:
    trainer = L.Trainer(max_epochs=1, devices=1, strategy="auto", inference_mode=True, overfit_batches=2, **QUIET)
    trainer.fit(Distiller(*models), loader, loader)
    assert trainer.global_step == 2


def test_hidden_states_and_relations_without_more_ado(models: tuple[Any, Any], loader: DataLoader) -> None:
    loss = losses.HiddenStates(loss="normalized") + 0.5 * losses.QKVRelations()
    module = Distiller(*models, loss=loss, lr=1e-2)
    trainer = L.Trainer(max_steps=20, **QUIET)
    trainer.validate(module, loader, verbose=False)
    start = float(trainer.callback_metrics["validation/hidden_states"])
    trainer.fit(module, loader, loader)
    assert float(trainer.callback_metrics["validation/hidden_states"]) < start


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"teacher": None}, "losses.ForwardKL: it compares with a teacher, and there is none; give teacher="),
        ({"loss": 3}, "loss: 3 is no loss"),
        ({"loss": losses.Attention()}, "losses.Attention: attention maps need attn_implementation='eager'"),
        ({"loss": losses.HiddenStates(layers="cka")}, r"losses.HiddenStates\(layers\): cka is measured"),
        ({"loss": losses.HiddenStates(layers=((0, 9),))}, r"losses.HiddenStates\(layers\): 9 is beyond"),
    ],
)
def test_errors_name_arguments(models: tuple[Any, Any], arguments: dict, words: str) -> None:
    student, teacher = models
    with pytest.raises(UserError, match=words):
        Distiller(student, **{"teacher": teacher, "loss": losses.ForwardKL(), **arguments})


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_names_are_no_models(models: tuple[Any, Any], role: str) -> None:
    given = {"student": models[0], "teacher": models[1], role: "org/model"}
    with pytest.raises(UserError, match=f"{role}: 'org/model' is a name; give a model"):
        Distiller(**given)


def test_a_student_that_is_its_own_teacher_is_refused(models: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="teacher: it is the student itself"):
        Distiller(models[0], models[0])


def test_what_is_compiled_in_vain_is_said(
    models: tuple[Any, Any], loader: DataLoader, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = models
    module = torch.compile(Distiller(student, teacher), backend="eager")
    assert not caplog.messages
    with pytest.raises(UserError, match="torch.compile: the steps of a Distiller cannot be compiled"):
        L.Trainer(max_steps=1, **QUIET).fit(module, loader)
    Distiller(torch.compile(student, backend="eager"), teacher)
    assert "student: it is compiled as a whole, and only its body is called" in caplog.text
    calls: list[Any] = []
    student.get_decoder().compile(backend=lambda graph, _: calls.append(graph) or graph.forward)
    L.Trainer(max_steps=1, **QUIET).fit(Distiller(student, teacher), loader)
    assert calls


def test_a_student_made_of_its_teachers_own_layers_is_refused(models: tuple[Any, Any]) -> None:
    student, teacher = models
    student.model.layers[0] = teacher.model.layers[0]
    with pytest.raises(UserError, match=r"teacher: \d+ parameters of the student are its own, as model.layers.0"):
        Distiller(student, teacher)
    student.model.layers[0].requires_grad_(False)  # what is not trained may be shared
    Distiller(student, teacher)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        (lambda peft: peft.LoraConfig(target_modules=["q_proj", "lm_head"]), "its lm_head cannot have an adapter"),
        (lambda peft: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "its backbone alone does not"),
    ],
    ids=["lm_head", "prefix"],
)
def test_adapters_that_the_fused_loss_would_not_see_are_refused(
    models: tuple[Any, Any], loader: DataLoader, adapters: Callable[[Any], Any], words: str
) -> None:
    peft = pytest.importorskip("peft")
    student = peft.get_peft_model(models[0], adapters(peft))
    with pytest.raises(UserError, match=words):
        L.Trainer(max_steps=1, **QUIET).fit(Distiller(student, models[1]), loader)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"input_ids": torch.ones(2, 5, dtype=torch.long)}, "no labels; transformers' DataCollatorForLanguageModeling"),
        ([torch.ones(2, 5, dtype=torch.long)] * 2, "the loader gives list"),
        (
            {"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": torch.ones(2, 4, dtype=torch.long)},
            r"input_ids \(2, 5\) and labels \(2, 4\)",
        ),
        (
            {"input_ids": torch.ones(2, 5), "labels": torch.ones(2, 5).long()},
            "input_ids are torch.float32, and a tensor of",
        ),
        ({"input_ids": torch.ones(2, 5).long(), "labels": None}, "labels are NoneType, and a tensor of token numbers"),
        ({"input_ids": torch.ones(2, 5).long(), "labels": torch.ones(2, 5).bool()}, "labels are torch.bool"),
        ({name: torch.ones(0, 5).long() for name in ("input_ids", "labels")}, r"input_ids \(0, 5\) hold no token"),
        (
            {name: torch.ones(2, size).long() for name, size in (("input_ids", 5), ("labels", 5), ("attention_mask", 3))},
            r"attention_mask \(2, 3\) is to be as input_ids, \(2, 5\)",
        ),
    ],
    ids=["no labels", "no dict", "shapes", "numbers", "labels are none", "truth values", "no rows", "mask"],
)
def test_batches_that_are_none(models: tuple[Any, Any], batch: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        L.Trainer(max_steps=1, **QUIET).fit(Distiller(*models), DataLoader([batch], batch_size=None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "lr_scheduler: a schedule needs the number of steps"),
        ({"loss": losses.cosine(1, 0) * losses.CrossEntropy(), "optimizer": torch.optim.SGD}, "loss: a schedule needs"),
    ],
)
def test_a_trainer_without_an_end(models: tuple[Any, Any], loader: DataLoader, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        L.Trainer(max_epochs=-1, **QUIET).fit(Distiller(*models, **changes), loader)


class Endless(torch.utils.data.IterableDataset):
    """Rows of a loader, as a stream without a length."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        yield from self.loader


@pytest.mark.parametrize(
    ("changes", "who"),
    [({}, "lr_scheduler"), ({"loss": losses.cosine(1, 0) * losses.CrossEntropy(), "optimizer": torch.optim.SGD}, "loss")],
)
def test_epochs_of_a_stream_are_no_number_of_steps(
    models: tuple[Any, Any], loader: DataLoader, changes: dict, who: str
) -> None:
    stream = DataLoader(Endless(loader), batch_size=None)
    with pytest.raises(UserError, match=f"{who}: a schedule needs the number of steps"):
        L.Trainer(max_epochs=1, **QUIET).fit(Distiller(*models, **changes), stream)


def test_a_stream_needs_no_length_where_nothing_is_scheduled_or_the_steps_are_given(
    models: tuple[Any, Any], loader: DataLoader
) -> None:
    stream = DataLoader(Endless(loader), batch_size=None)
    constant = Distiller(*models, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    trainer = L.Trainer(max_epochs=1, **QUIET)
    trainer.fit(constant, stream)
    assert trainer.global_step == len(loader)
    scheduled = Distiller(*models, loss=losses.linear(1.0, 0.0) * losses.CrossEntropy() + losses.ForwardKL())
    L.Trainer(max_steps=4, **QUIET).fit(scheduled, stream)
    assert scheduled.progress == 1.0


@pytest.mark.parametrize(
    ("dtype", "precision", "is_warned"),
    [
        (torch.bfloat16, "32-true", True),
        (torch.bfloat16, "bf16-mixed", True),
        (torch.bfloat16, "bf16-true", False),  # as asked for
        (torch.float32, "bf16-mixed", False),
    ],
)
def test_weights_that_round_their_steps_away_are_warned_of(
    models: tuple[Any, Any],
    loader: DataLoader,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
    precision: str,
    is_warned: bool,
) -> None:
    student, teacher = models
    L.Trainer(max_steps=1, precision=precision, **QUIET).fit(Distiller(student.to(dtype), teacher), loader)
    lines = [line for line in caplog.messages if "rounds small steps of the optimizer away" in line]
    assert len(lines) == is_warned
    assert not is_warned or f"{sum(p.numel() for p in student.parameters())} weights to be trained are bfloat16" in lines[0]


def test_a_loss_alone_wants_a_model_too() -> None:
    with pytest.raises(UserError, match="teacher: 'org/model' is a name; give a model"):
        DistillationLoss(losses.ForwardKL(), "org/model")


def test_a_padded_vocabulary_is_cut_to_the_smaller_one(models: tuple[Any, Any], loader: DataLoader) -> None:
    student, teacher = models
    batch = next(iter(loader))
    plain = DistillationLoss(losses.ForwardKL(), teacher)(student, batch).total
    tiny_models.pad_head(teacher, 320)
    module = Distiller(student, teacher, losses.ForwardKL())
    assert isinstance(module.loss.teacher, OnlineTeacher)
    torch.testing.assert_close(module.loss(student, batch).total, plain)


@pytest.mark.parametrize("kind", ["online", "mixture", "routed"])
def test_padded_heads_of_teachers_are_cut_as_those_of_models_are(
    models: tuple[Any, Any], loader: DataLoader, kind: str
) -> None:
    """The rows behind the tokens, which the teacher prefers to every token, do not count."""
    student, model = models
    batch = next(iter(loader))
    batch["corpus_ids"] = torch.zeros_like(batch["input_ids"])
    plain = DistillationLoss(losses.ForwardKL(), model)(student, batch).total
    tiny_models.pad_head(model, 320)
    teacher: Any = OnlineTeacher(model)
    if kind != "online":
        parts = {"one": teacher, "same": OnlineTeacher(model)}
        teacher = MixtureTeacher(parts, {"one": 0.4, "same": 0.6} if kind == "mixture" else [{"same": 1.0}])
    module = Distiller(student, teacher, losses.ForwardKL())
    torch.testing.assert_close(module.loss(student, batch, compute_metrics=True).total, plain)


def test_a_teacher_of_fewer_tokens_than_are_compared_is_refused(models: tuple[Any, Any], loader: DataLoader) -> None:
    student, teacher = models
    criterion = DistillationLoss(losses.ForwardKL(), OnlineTeacher(teacher, 290), vocab_size=300)
    with pytest.raises(UserError, match="vocab_size: 300 tokens are compared, and the teacher gives 290; give that"):
        criterion(student, next(iter(loader)))
    assert DistillationLoss(losses.ForwardKL(), OnlineTeacher(teacher, 290)).vocab_size == 290
