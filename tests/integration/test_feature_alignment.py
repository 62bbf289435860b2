"""Terms on inner states in training: the right tokens, the right denominator, projectors, what is logged and exported."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from helpers.command_line import run as run_cli
from helpers.distillation import LENGTH, SETTINGS, TRAINING, VOCABULARY, weights
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from distill_lit import data
from distill_lit.config import StudentConfig, TermConfig, TrainingConfig, WidthConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import calibration_batches, make_batch
from distill_lit.losses import LossOutput, build_objective
from distill_lit.losses import hidden_states as r
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import CalibrationData, export_student, initial_student, load_model
from distill_lit.models.activations import capture_activations
from distill_lit.teachers import OfflineTeacher, OnlineTeacher, write_teacher_cache
from distill_lit.teachers.compression import TeacherCacheFormat
from distill_lit.teachers.teacher_cache import measure_bytes_per_token
from distill_lit.training.distiller import Distiller
from distill_lit.training.feature_alignment import build_feature_alignment, use_eager_attention
from distill_lit.training.loss import DistillationLoss
from distill_lit.training.trainer import TrainingJob, optimizer_settings, prepare_student, train
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import UserError

HIDDEN = {"hidden_states": TermConfig(options={"loss": "normalized", "layers": [[0, 1], [1, 3]]})}
EVERY = {
    "kl": TermConfig(kind="forward_kl"),
    **HIDDEN,
    "attention": TermConfig(weight=2.0, options={"layers": "last"}),
    "qkv_relations": TermConfig(weight=0.5, options={"layers": "last"}),
}


def build(
    teacher: Path,
    prepared: data.PreparedData,
    terms: dict[str, TermConfig],
    training: TrainingConfig = TRAINING,
    width: WidthConfig | None = None,
) -> tuple[Distiller, PackedDataModule]:
    batches = calibration_batches(prepared.train)
    config = StudentConfig(num_layers=2, layers="uniform", width=width or WidthConfig())
    student = initial_student(config, teacher, CalibrationData(batches, prepared.fingerprint), seed=0)
    signal = OnlineTeacher(load_model(teacher), VOCABULARY)
    objective = build_objective(terms)
    matching = build_feature_alignment(objective, student, signal.model.config, signal.model, batches, seed=0)
    module = PackedDataModule(prepared.train, prepared.validation, training, 0)
    use_eager_attention(objective, student, signal.model)
    prepare_student(student, training)
    distiller = Distiller(
        student,
        signal,
        objective,
        vocab_size=VOCABULARY,
        fused_loss_settings=SETTINGS,
        feature_alignment=matching,
        **optimizer_settings(training),
    )
    return distiller, module


def train_on_rank(
    folder: Path, teacher: Path, prepared: data.PreparedData, training: TrainingConfig, _: Any
) -> torch.Tensor:
    """The weights after a training on hidden states of the first of two layers alone."""
    first = {"hidden_states": TermConfig(options={"loss": "normalized", "layers": [[1, 1]]})}
    distiller, module = build(teacher, prepared, first, training)
    run(folder, distiller, module)
    return weights(distiller.student)


@pytest.mark.slow
def test_hidden_states_alone_train_on_two_ranks_as_on_one(
    tmp_path: Path, teacher: Path, prepared: data.PreparedData
) -> None:
    """Layers behind those compared have no gradient on any rank, and stay."""
    decaying = replace(TRAINING, weight_decay=0.1)
    alone = train_on_rank(tmp_path / "one", teacher, prepared, decaying, None)
    shared = replace(decaying, micro_batch_size=2, gradient_accumulation_steps=2, devices=2)
    together = spawn_ranks(2, train_on_rank, tmp_path / "two", teacher, prepared, shared)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_trainer_that_would_wait_for_the_other_layers_is_refused(teacher: Path, prepared: data.PreparedData) -> None:
    distiller, _ = build(teacher, prepared, HIDDEN)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    distiller.trainer, trainer.strategy.model = trainer, distiller
    distiller.on_fit_start()
    waiting = type("Waiting", (DistributedDataParallel,), {"__init__": torch.nn.Module.__init__})()
    waiting.find_unused_parameters = False
    trainer.strategy.model = waiting
    with pytest.raises(UserError, match="give the Trainer strategy='ddp_find_unused_parameters_true'"):
        distiller.on_fit_start()
    waiting.find_unused_parameters = True
    distiller.on_fit_start()


def losses_of(distiller: Distiller, batch: dict[str, torch.Tensor], denominator: int = 5) -> LossOutput:
    return distiller.loss(distiller.student, batch, denominator=torch.tensor(denominator))


def run(folder: Path, distiller: Distiller, module: PackedDataModule) -> dict[str, float]:
    return train(TrainingJob(folder, distiller, module, module.training, 0, lambda *_: None))


def test_sums_equal_a_loop_over_documents(teacher: Path, prepared: data.PreparedData) -> None:
    """Each document alone through both models: packing, padding and the shift change nothing."""
    distiller, _ = build(teacher, prepared, EVERY)
    student, model = distiller.student, distiller.loss.teacher.model
    batch = make_batch(prepared.train, torch.arange(3).numpy(), 1)
    wanted = {"hidden_states": {0, 1, 3}, "attention": {1, 3}, "queries": {1, 3}, "keys": {1, 3}, "values": {1, 3}}
    expected, count = torch.zeros(3), 0
    for ids, documents in zip(batch["input_ids"], batch["document_ids"], strict=True):
        for number in range(1, int(documents.max()) + 1):
            text = ids[documents == number].unsqueeze(0)
            with torch.no_grad():
                with capture_activations(student, {what: layers - {3} for what, layers in wanted.items()}) as s:
                    student(text)
                with capture_activations(model, wanted) as t:
                    model(text)
            pairs = [
                r.hidden_normalized(s["hidden_states", i][0, :-1], t["hidden_states", j][0, :-1])
                for i, j in ((0, 1), (1, 3))
            ]
            expected[0] += torch.stack(pairs).mean(0).sum()
            maps = (states["attention", i][0].transpose(0, 1)[:-1] for states, i in ((s, 1), (t, 3)))
            expected[1] += r.attention_kl(*maps).sum()
            allowed = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()[None, None]
            for what in ("queries", "keys", "values"):
                expected[2] += r.relation_kl(s[what, 1], t[what, 3], 2, allowed)[0, :-1].sum() / 3
            count += text.shape[1] - 1
    losses = losses_of(distiller, batch, count)
    assert losses.num_tokens == count
    torch.testing.assert_close(losses.term_sums[1:], expected, rtol=1e-4, atol=1e-4)
    weighted = losses.term_sums[0] + losses.term_sums[1] + 2 * losses.term_sums[2] + 0.5 * losses.term_sums[3]
    assert float(losses.total.detach()) == pytest.approx(float(weighted) / count, rel=1e-5)


def test_states_from_a_cache_train_as_those_of_the_live_teacher(
    tmp_path: Path, teacher: Path, prepared: data.PreparedData
) -> None:
    distiller, module = build(teacher, prepared, {"kl": EVERY["kl"], **HIDDEN})
    model, form, rows = (
        distiller.loss.teacher.model,
        TeacherCacheFormat(hidden_layers=(1, 3)),
        (prepared.train, prepared.validation),
    )
    write_teacher_cache(tmp_path / "cache", model, *rows, batch_size=8, cache_format=form)
    cached = OfflineTeacher(tmp_path / "cache", prepared.train, get_lm_head(model, VOCABULARY), len(prepared.validation))
    other, _ = build(teacher, prepared, {"kl": EVERY["kl"], **HIDDEN})
    other.loss.teacher = cached
    batch = make_batch(prepared.train, torch.tensor([5, 70, 2]).numpy(), 1)
    with distiller.loss.teacher.activations(batch, {"hidden_states": {1, 3}}) as live:
        distiller.loss.teacher.target(batch, batch["labels"][:, 1:] >= 0)
    with cached.activations(batch, {"hidden_states": {1, 3}}) as kept:
        for key, states in live.items():
            torch.testing.assert_close(kept[key], states)
    theirs, ours = run(tmp_path / "online", distiller, module), run(tmp_path / "offline", other, module)
    assert ours["validation/hidden_states"] == pytest.approx(theirs["validation/hidden_states"], rel=1e-5)
    assert ours["validation/loss"] == pytest.approx(theirs["validation/loss"], rel=1e-5)
    assert measure_bytes_per_token(tmp_path / "cache", prepared.train, form) == pytest.approx(
        3 * 4 * model.config.hidden_size, rel=0.1
    )


def test_a_signal_without_inner_states_is_refused(teacher: Path, prepared: data.PreparedData) -> None:
    distiller, _ = build(teacher, prepared, HIDDEN)
    silent = SimpleNamespace(target=lambda *_: None, to=lambda _: None)
    with pytest.raises(UserError, match="compares hidden states, which this teacher does not give"):
        DistillationLoss(distiller.loss.objective, silent, VOCABULARY, distiller.loss.feature_alignment)


def test_padding_does_not_change_the_terms(teacher: Path, prepared: data.PreparedData) -> None:
    distiller, _ = build(teacher, prepared, EVERY)
    batch = make_batch(prepared.train, torch.arange(3).numpy(), 1)
    padded = {
        name: torch.nn.functional.pad(value, (0, 9), value=-100 if name == "labels" else 0)
        for name, value in batch.items()
        if value.ndim == 2
    }
    plain, other = (losses_of(distiller, b) for b in (batch, padded))
    torch.testing.assert_close(plain.term_sums, other.term_sums, rtol=1e-4, atol=1e-4)


def test_unsupervised_tokens_do_not_count(teacher: Path, prepared: data.PreparedData) -> None:
    distiller, _ = build(teacher, prepared, EVERY)
    batch = make_batch(prepared.train, torch.arange(2).numpy(), 1)
    parts = []
    for half in (slice(0, LENGTH // 2), slice(LENGTH // 2, LENGTH)):
        labels = torch.full_like(batch["labels"], -100)
        labels[:, half] = batch["labels"][:, half]
        parts.append(losses_of(distiller, {**batch, "labels": labels}).term_sums)
    whole = losses_of(distiller, batch).term_sums
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-4, atol=1e-4)


def test_accumulation_does_not_change_the_training(tmp_path: Path, teacher: Path, prepared: data.PreparedData) -> None:
    terms = {**EVERY, "hidden_states": TermConfig(options={"projector": True})}
    whole, one = build(teacher, prepared, terms)
    parts, four = build(teacher, prepared, terms, replace(TRAINING, micro_batch_size=2, gradient_accumulation_steps=4))
    first, second = run(tmp_path / "a", whole, one), run(tmp_path / "b", parts, four)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-3, atol=1e-4)
    for name in ("loss", *terms):
        assert first[f"train/{name}"] == pytest.approx(second[f"train/{name}"], rel=1e-3)


def test_each_term_falls_when_it_is_trained_alone_and_is_logged_by_itself(
    tmp_path: Path, teacher: Path, prepared: data.PreparedData
) -> None:
    """No term from logits at all: the head only measures."""
    for name in ("hidden_states", "attention", "qkv_relations"):
        distiller, module = build(teacher, prepared, {name: replace(EVERY[name], weight=1.0)})
        final = run(tmp_path / name, distiller, module)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert final[f"validation/{name}"] < 0.9 * lines[0][f"validation/{name}"], name
        assert final["validation/loss"] == pytest.approx(final[f"validation/{name}"])
        assert {f"train/{name}", f"weight/{name}", "train/teacher_kl"} <= set(final)
        assert f"temperature/{name}" not in final


def test_projectors_train_and_stay_behind(tmp_path: Path, teacher: Path, prepared: data.PreparedData) -> None:
    terms = {"ce": TermConfig(), "hidden_states": TermConfig(options={"projector": True})}
    narrow = WidthConfig(hidden_size=24, num_attention_heads=4)
    distiller, module = build(teacher, prepared, terms, replace(TRAINING, checkpoint_interval=2), narrow)
    projector = distiller.loss.feature_alignment.projectors["hidden_states"]
    assert [tuple(p.weight.shape) for p in projector] == [(36, 24), (36, 24)]
    before = weights(projector).clone()
    run(tmp_path, distiller, module)
    assert not torch.equal(weights(projector), before)
    checkpoint = torch.load(next((tmp_path / "checkpoints").glob("*.ckpt")), weights_only=True)
    saved = {name for name in checkpoint["state_dict"] if not name.startswith("student.")}
    assert saved == {f"loss.feature_alignment.projectors.hidden_states.{number}.weight" for number in (0, 1)}
    export_student(distiller.student, teacher, tmp_path / "student", "")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not opened[1]["unexpected_keys"]
    ids = torch.arange(3, 15)[None]
    torch.testing.assert_close(opened[0](ids).logits, distiller.student(ids).logits)


def test_a_projector_between_equal_widths_starts_as_the_identity(teacher: Path, prepared: data.PreparedData) -> None:
    plain, _ = build(teacher, prepared, {"hidden_states": TermConfig()})
    projected, _ = build(teacher, prepared, {"hidden_states": TermConfig(options={"projector": True})})
    batch = make_batch(prepared.train, torch.arange(2).numpy(), 1)
    first, second = (losses_of(d, batch, 1).term_sums for d in (plain, projected))
    torch.testing.assert_close(first, second)


def test_only_attention_maps_switch_to_eager_attention(tmp_path: Path, teacher: Path, prepared: data.PreparedData) -> None:
    def implementations(terms: dict[str, TermConfig]) -> list[str]:
        distiller, _ = build(teacher, prepared, terms)
        return [m.config._attn_implementation for m in (distiller.student, distiller.loss.teacher.model)]

    assert implementations({"hidden_states": TermConfig(), "qkv_relations": TermConfig()}) == ["sdpa", "sdpa"]
    assert implementations({"attention": TermConfig()}) == ["eager", "eager"]
    distiller, _ = build(teacher, prepared, {"attention": TermConfig()})
    export_student(distiller.student, teacher, tmp_path / "student", "")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config._attn_implementation == "sdpa"


def test_similar_layers_are_found_on_calibration_rows(teacher: Path, prepared: data.PreparedData) -> None:
    """A student whose two layers are the teacher's first two gives what these give."""
    batches = calibration_batches(prepared.train)
    student = initial_student(StudentConfig(layers=[0, 1]), teacher, CalibrationData([], ""), seed=0)
    objective = build_objective({"hidden_states": TermConfig(options={"layers": "cka"}), "attention": TermConfig()})
    model = load_model(teacher)
    matching = build_feature_alignment(objective, student, model.config, model, batches, seed=0)
    assert matching.term_layer_pairs[0][1] == [(0, 0), (1, 1)]
    assert matching.term_layer_pairs[1][1] == [(0, 1), (1, 3)]


def test_gradient_checkpointing_changes_nothing(teacher: Path, prepared: data.PreparedData) -> None:
    batch = make_batch(prepared.train, torch.arange(2).numpy(), 1)
    grads = []
    for training in (TRAINING, replace(TRAINING, gradient_checkpointing=True)):
        distiller, _ = build(teacher, prepared, EVERY, training)
        distiller.train()
        losses_of(distiller, batch).total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in distiller.student.parameters()]))
    torch.testing.assert_close(*grads)


def test_a_run_cut_off_ends_with_the_same_projectors(tmp_path: Path, teacher: Path, prepared: data.PreparedData) -> None:
    terms = {"kl": EVERY["kl"], "hidden_states": TermConfig(options={"projector": True, "layers": "cka"})}
    training = replace(TRAINING, checkpoint_interval=2)
    whole, module = build(teacher, prepared, terms, training)
    run(tmp_path / "a", whole, module)
    (tmp_path / "b").mkdir()
    for name in ("checkpoints", "metrics.jsonl"):
        (tmp_path / "a" / name).rename(tmp_path / "b" / name)
    torch.manual_seed(5)
    again, module = build(teacher, prepared, terms, training)
    run(tmp_path / "b", again, module)
    assert torch.equal(weights(whole), weights(again))


def test_terms_on_inner_states_and_a_matching_come_together(teacher: Path, prepared: data.PreparedData) -> None:
    other, _ = build(teacher, prepared, HIDDEN)
    projected = build_objective({"hidden_states": TermConfig(options={"projector": True})})
    with pytest.raises(UserError, match="options.projector: it is trained.* feature_alignment="):
        DistillationLoss(projected, other.loss.teacher, VOCABULARY)
    with pytest.raises(UserError, match="no term of the loss compares hidden states"):
        DistillationLoss(build_objective({"ce": TermConfig()}), None, VOCABULARY, other.loss.feature_alignment)


def run_command(tmp_path: Path, teacher: Path, corpus: Path, *overrides: str) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{teacher}", dtype: float32}}
students: {{one: {{num_layers: 2, layers: uniform, width: {{hidden_size: 24}}, lora: {{rank: 2}}}}}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 2048, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective:
  compile: never
  terms: {{hidden_states: {{options: {{projector: true, layers: cka}}}}, kl: {{kind: forward_kl}}}}
training: {{max_tokens: 1024, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: [untrained]
""")
    return run_cli("run", str(file), "--root", str(tmp_path / "root"), *overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.source=offline", "teacher.source offline with cache_format hidden_states does not show"),
        ("objective.terms.hidden_states.options.layers=[[0,4]]", "4 is beyond the teacher's last layer 3"),
        ("objective.terms.hidden_states.options.projector=false", "set projector: true"),
        ("students.one.width.hidden_size=25", "students.one.width: transformers refuses these sizes"),
        ("students.one.num_layers=9", "students.one.num_layers: 9 exceeds the teacher's 4 layers"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_loaded(
    tmp_path: Path, teacher: Path, tiny_corpus: Path, override: str, words: str
) -> None:
    result = run_command(tmp_path, teacher, tiny_corpus, override)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_the_whole_way_with_inner_states_width_and_adapters(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    result = run_command(tmp_path, teacher, tiny_corpus)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = next(path for path in (tmp_path / "root/runs/tiny").glob("one-*") if "untrained" not in path.name)
    opened, information = AutoModelForCausalLM.from_pretrained(folder / "student", output_loading_info=True)
    assert opened.config.hidden_size == 24
    assert not information["unexpected_keys"]
    assert not information["missing_keys"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"train/hidden_states", "validation/hidden_states", "train/kl"} <= set(manifest["metrics"])
    assert manifest["kept_layers"] == [0, 3]
    assert [pair[0] for pair in manifest["layer_maps"]["hidden_states"]] == [0, 1]
