"""faults.md, numbers: lines 9 to 15."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models, training_processes
from helpers.caches import new_cache
from helpers.tiny_data import tokens_of
from helpers.training_processes import finish, lines, run_folder, start

from distill_lit import data
from distill_lit.config import load_experiment
from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.data.loader import PackedLoader, ValidationLoader, make_batch
from distill_lit.data.packing import PackedDataset, pack
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.losses import build_objective, fused_linear_loss
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import check_same_vocabulary, load_model, load_tokenizer, model_fingerprint
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.teachers import OfflineTeacher, OnlineTeacher, cache_shards
from distill_lit.teachers import teacher_cache as cached
from distill_lit.teachers.compression import CACHE_TOP_K, TeacherCacheFormat
from distill_lit.training.checkpoint import checkpoint_step, list_checkpoints, load_checkpoint_weights_only, read_best
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json
from distill_lit.utils.shards import Shards


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, dropping_teacher: Path, tiny_corpus: Path, tasks_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    return training_processes.write_experiment(folder, dropping_teacher, tiny_corpus, tasks_folder)


@pytest.fixture(scope="module")
def prepared(dropping_teacher: Path, tiny_corpus: Path) -> data.PreparedData:
    corpora = {"text": CorpusConfig(path=f"file:{tiny_corpus}")}
    return data.prepare_datasets(
        DataConfig(corpora=corpora, sequence_length=32, validation_sequences=6, max_tokens=4096), dropping_teacher, "pypi"
    )


@pytest.mark.parametrize(
    ("patch", "words"),
    [("poisoned_loss", "loss is nan at step 6"), ("poisoned_gradient", "gradient norm is (inf|nan) at step 6")],
)
def test_09_nan_or_inf_stops_before_the_step_and_dumps_step_and_rows(
    file: Path, tmp_path: Path, patch: str, words: str
) -> None:
    assert finish(start(file, tmp_path, patch=patch)) == 1
    folder = run_folder(tmp_path)
    reason = read_json(folder / "state.json")["reason"]
    assert re.fullmatch(f"FloatingPointError: {words}; the step was not taken", reason)
    dump = read_json(folder / "nonfinite.json")
    assert dump["step"] == 6
    seen = json.loads((folder / "rows.json").read_text())
    assert dump["rows"] == seen[18:21]  # three micro-batches of two rows
    newest = list_checkpoints(folder / "checkpoints")[0]
    assert checkpoint_step(newest) == 5
    assert all(value.isfinite().all() for value in load_checkpoint_weights_only(newest)["state_dict"].values())
    assert finish(start(file, tmp_path)) == 0  # without the poison it goes on


def test_09_nan_never_becomes_best(file: Path, tmp_path: Path) -> None:
    assert finish(start(file, tmp_path, patch="poisoned_validation")) == 0
    best = read_best(run_folder(tmp_path) / "checkpoints")
    losses = {line["step"]: line["validation/loss"] for line in lines(tmp_path) if "validation/loss" in line}
    assert losses[24] != losses[24]
    assert best is not None
    assert best["loss"] == min(losses[step] for step in (4, 8, 12, 16, 20))


def test_10_another_vocabulary_is_refused(tmp_path: Path, dropping_teacher: Path) -> None:
    """Equal sizes prove nothing: the second tokenizer has as many tokens, two of which have changed places."""
    smaller, swapped = tmp_path / "smaller", tmp_path / "swapped"
    tiny_models.make_tokenizer(smaller, 280)
    tiny_models.make_tokenizer(swapped)
    text = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (swapped / "tokenizer.json").write_text(json.dumps(text))
    teacher = load_tokenizer(dropping_teacher)
    assert check_same_vocabulary(teacher, load_tokenizer(dropping_teacher)) == 300
    for other in (smaller, swapped):
        with pytest.raises(UserError, match="tokenizers differ"):
            check_same_vocabulary(teacher, load_tokenizer(other))


def test_11_longer_than_a_row_is_cut_and_counted(dropping_teacher: Path, tmp_path: Path) -> None:
    packed, split = pack(tokens_of(list(range(1, 20)), [1, 2, 3]), 8)
    assert split == 1
    assert sorted(packed.input_ids[packed.document_ids > 0].tolist()) == sorted([*range(1, 20), 1, 2, 3])
    text = tmp_path / "long.jsonl"
    lines = [" ".join(tiny_models.WORDS * 3), *tiny_models.sentences(60)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = DataConfig(corpora={"text": CorpusConfig(path=f"file:{text}")}, sequence_length=32, validation_sequences=2)
    assert data.prepare_datasets(config, dropping_teacher, "pypi").statistics["split"] >= 1


def test_11_padding_has_zero_gradient(dropping_teacher: Path) -> None:
    """Of the loss with respect to what is embedded at each position: nothing for padding, something for the rest."""
    packed, _ = pack(tokens_of([5, 6, 7, 8], [9, 10, 11]), 12)
    batch = make_batch(packed, np.array([0]), int(packed.targets_per_row.sum()))
    student = load_model(dropping_teacher)
    last_hidden_state(student, batch)  # the self-check reads as well, the first time
    embedded: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    student.get_input_embeddings().register_forward_hook(keep)
    chosen = batch["labels"][:, 1:] != -100
    losses = fused_linear_loss(
        build_objective({"ce": load_objective("ce")}),
        last_hidden_state(student, batch)[:, :-1][chosen],
        get_lm_head(student, 300),
        None,
        batch["labels"][:, 1:][chosen],
        denominator=batch["step_tokens"],
        progress=0.0,
        chunk_size=16,
        compiled=False,
        compute_metrics=False,
    )
    losses.total.backward()
    assert embedded[0].grad is not None
    per_position = embedded[0].grad[0].abs().sum(-1)
    document = batch["document_ids"][0] > 0
    assert document.tolist() == [True] * 7 + [False] * 5
    assert (per_position[~document] == 0).all()
    assert (per_position[[0, 1, 2, 4, 5]] > 0).all()  # the last token of a document predicts nothing


def load_objective(name: str) -> Any:
    from distill_lit.config import TermConfig

    return TermConfig(kind=name)


def test_12_empty_data_is_refused(tmp_path: Path, dropping_teacher: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n{"text": "  "}\n')
    config = DataConfig(corpora={"text": CorpusConfig(path=f"file:{empty}")}, sequence_length=32, validation_sequences=1)
    with pytest.raises(UserError, match="no document left of 2 rows; all are empty"):
        data.prepare_datasets(config, dropping_teacher, "pypi")


def test_12_every_label_masked_is_refused(prepared: data.PreparedData) -> None:
    rows = prepared.train
    masked = PackedDataset(rows.input_ids, rows.document_ids, np.zeros_like(rows.loss_mask))
    for useless in (masked, rows.take(np.arange(0))):
        with pytest.raises(UserError, match="supervised token"):
            PackedLoader(useless, micro_batch_size=2, gradient_accumulation_steps=1, steps=1, seed=0)
        with pytest.raises(UserError, match="supervised token"):
            ValidationLoader(useless, micro_batch_size=2)


def test_13_a_teacher_that_learns_is_refused_and_its_weights_stay(
    file: Path, dropping_teacher: Path, prepared: data.PreparedData, tmp_path: Path
) -> None:
    before = model_fingerprint(dropping_teacher)
    teacher = OnlineTeacher(load_model(dropping_teacher), 300)
    batch = make_batch(prepared.train, np.arange(2), 1)
    for disturb in (lambda: teacher.model.train(), lambda: teacher.model.eval().requires_grad_(True)):
        disturb()
        with pytest.raises(UserError, match="train mode or trainable"):
            teacher.hidden_states(batch)
    assert finish(start(file, tmp_path, patch="watched_teacher")) == 0
    assert (run_folder(tmp_path) / "teacher.txt").read_text() == "the same"
    assert model_fingerprint(dropping_teacher) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.terms.kl.temperature=0", "objective.terms.kl.temperature: 0 must be above 0"),
        ("objective.terms.kl.temperature=-1", "above 0"),
        ("objective.terms.kl.weight=-0.5", "objective.terms.kl.weight: -0.5 is below its minimum 0"),
        ("objective.terms.kl.weight=.nan", "objective.terms.kl.weight"),
        ("objective.terms.kl.weight=.inf", "objective.terms.kl.weight"),
        ("objective.terms.kl.weight='1'", "objective.terms.kl.weight: '1' is text; write it without quotes, as a number"),
        ("training.learning_rate='1e-3'", "training.learning_rate: '1e-3' is text; write it without quotes, as a number"),
        (
            "training.micro_batch_size='8'",
            "training.micro_batch_size: '8' is text; write it without quotes, as a whole number",
        ),
        (
            "teacher.model=file:",
            "teacher.model: reference 'file:' names no path",
        ),
        ("students.one.from=nowhere", "students.one.from: reference 'nowhere': unknown kind"),
        ("external_models={a: ''}", "external_models.a: it is required and has no value"),
        ("external_models={a: nowhere}", "external_models.a: reference 'nowhere': unknown kind"),
        ("training.micro_batch_size=true", "training.micro_batch_size: true is not a whole number"),
        ("training.gradient_checkpointing='yes'", "training.gradient_checkpointing: 'yes' is text"),
        ("training.learning_rate=.inf", "training.learning_rate: inf is not a finite number"),
        ("training.max_tokens=0", "training.max_tokens: 0 is below its minimum 1"),
        ("training.beta2=1", "training.beta2: 1 is above its maximum"),
        ("data.sequence_length=4", "data.sequence_length: 4 is below its minimum 8"),
        ("evaluation.limit=-1", "evaluation.limit: -1 is below its minimum 0"),
        ("students.one.num_layers=-2", "students.one.num_layers: -2 is below its minimum 0"),
    ],
)
def test_14_numbers_out_of_range_or_as_text_are_refused(file: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        check_experiment(load_experiment(file, [override]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["teacher.top_k=9"],
            "teacher.top_k: 9 is read by source: served, and source: offline with cache_format: top_k or",
        ),
        (["grid.teacher.top_k=[4, 9]"], "teacher.top_k: 4 is read by"),
        (["teacher.ema_decay=0.5"], "teacher.ema_decay: 0.5 is read by source: ema, and source is"),
    ],
)
def test_14_a_field_that_no_teacher_reads_is_refused(file: Path, overrides: list[str], words: str) -> None:
    """Runs that differ by it would be one run under several names."""
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        check_experiment(load_experiment(file, ["teacher.source=offline", *overrides]))


def test_14_a_field_that_one_teacher_of_the_grid_reads_is_taken(file: Path) -> None:
    formats = "variants={whole: {}, few: {teacher.cache_format: top_k, objective.terms.kl.kind: top_k_kl}}"
    overrides = ["teacher.source=offline", "teacher.top_k=9", formats, "grid.variant=[whole, few]"]
    check_experiment(load_experiment(file, overrides))


def test_14_a_misspelt_model_is_told_what_it_may_be(file: Path) -> None:
    made = "models={corrected: {from: teacher, seed: 0}}"
    with pytest.raises(
        UserError, match=r"^teacher.model: no model and no path is called 'correctd'; did you mean 'corrected'"
    ):
        check_experiment(load_experiment(file, [made, "teacher=correctd"]))
    with pytest.raises(UserError, match=r"models.b.from: no model is called 'correctd'; did you mean 'corrected'"):
        check_experiment(load_experiment(file, [made, "models.b={from: correctd}"]))


def test_14_numbers_as_text_in_a_file_are_refused(file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "text.yaml"
    changed.write_text(file.read_text().replace("micro_batch_size: 2", 'micro_batch_size: "2"'))
    with pytest.raises(UserError, match=re.escape("training.micro_batch_size: '2' is text")):
        load_experiment(changed)
    changed.write_text(file.read_text() + 'grid: {training.micro_batch_size: ["8"]}\n')
    with pytest.raises(UserError, match=re.escape("training.micro_batch_size: '8' is text")):
        check_experiment(load_experiment(changed))


# ---------------------------------------------------------------- teacher cache


def test_15_a_corrupt_shard_is_found_and_only_it_is_rebuilt(
    tmp_path: Path, dropping_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_shards, "SHARD_ROWS", 16)
    model, total = load_model(dropping_teacher), len(prepared.train) + len(prepared.validation)
    cached.write_teacher_cache(tmp_path, model, prepared.train, prepared.validation, 4)
    shards = sorted(tmp_path.glob("hidden_states-*.safetensors"))
    assert len(shards) > 2
    before = {path: path.read_bytes() for path in shards}
    content = bytearray(before[shards[1]])
    content[-1] ^= 1
    shards[1].write_bytes(content)
    shards[2].write_bytes(before[shards[2]][:100])
    assert not cached.is_teacher_cache_complete(tmp_path, total)
    with pytest.raises(UserError, match="incomplete or corrupt"):
        OfflineTeacher(tmp_path, prepared.train, get_lm_head(model, 300), len(prepared.validation))
    written = writes(monkeypatch)
    cached.write_teacher_cache(tmp_path, model, prepared.train, prepared.validation, 4)
    assert written == [shards[1].name, shards[2].name]
    assert {path: path.read_bytes() for path in shards} == before


def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of shards, as they are written from now on."""
    written: list[str] = []
    write = Shards.write
    monkeypatch.setattr(Shards, "write", lambda self, name, make: (written.append(name), write(self, name, make)))
    return written


def test_15_a_cache_of_something_else_is_a_miss(
    tmp_path: Path, dropping_teacher: Path, tiny_teacher: Path, tiny_corpus: Path
) -> None:
    def key(
        teacher: Path,
        dtype: torch.dtype = torch.float32,
        form: TeacherCacheFormat = cached.HIDDEN_STATES_ONLY,
        **changes: Any,
    ) -> Path:
        given = {"sequence_length": 32, "validation_sequences": 6, "max_tokens": 4096, "seed": 0, **changes}
        config = DataConfig(corpora={"text": CorpusConfig(path=f"file:{tiny_corpus}")}, **given)
        rows = data.prepare_datasets(config, teacher, "pypi").fingerprint
        return cached.teacher_cache_folder(cached.teacher_cache_metadata(model_fingerprint(teacher), rows, dtype, form))

    other = tiny_models.make_model(tmp_path / "other", seed=3, attention_dropout=0.2)
    retokenised = tiny_models.make_model(tmp_path / "retokenised", attention_dropout=0.2)
    settings = json.loads((retokenised / "tokenizer_config.json").read_text())
    (retokenised / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 128}))
    keys = [
        key(dropping_teacher),
        key(other),
        key(retokenised),
        key(dropping_teacher, sequence_length=64),
        key(dropping_teacher, seed=1),
        key(dropping_teacher, dtype=torch.bfloat16),
        key(dropping_teacher, form=TeacherCacheFormat(CACHE_TOP_K, 8)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(dropping_teacher) == keys[0]


@pytest.mark.slow
def test_15_two_writers_do_no_harm(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two experiments at once on one empty cache, one of them killed while it writes."""
    text = (
        file.read_text()
        .replace("source: online", "source: offline")
        .replace("accelerate", "checkpoint_budget: 1, accelerate")
    )
    (shared := tmp_path / "shared.yaml").write_text(text)
    cache = new_cache(tmp_path / "cache")
    both = [start(shared, tmp_path / name, cache=cache, stop=stop) for name, stop in (("a", ""), ("b", ""))]
    assert [finish(one) for one in both] == [0, 0]
    alone = tmp_path / "alone"
    assert finish(start(shared, alone, cache=new_cache(tmp_path / "other"))) == 0
    for name in ("a", "b"):
        assert training_processes.lines(tmp_path / name) == training_processes.lines(alone)
        assert training_processes.weights(tmp_path / name) == training_processes.weights(alone)
    (folder,) = (cache / "teacher_caches").iterdir()
    assert not list(folder.glob(".writing-*"))


def test_15_two_threads_write_each_shard_once(
    tmp_path: Path, dropping_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = writes(monkeypatch)
    model = load_model(dropping_teacher)
    arguments = (tmp_path, model, prepared.train, prepared.validation, 4)
    threads = [threading.Thread(target=cached.write_teacher_cache, args=arguments) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == len(set(written)) == len(list(tmp_path.glob("hidden_states-*.safetensors")))
