"""What an experiment is said to cost, against what it then writes; and the refusal where a disk has not the room."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import tiny_models
from helpers.caches import new_cache

from distill_lit.config import ExperimentConfig, load_experiment
from distill_lit.data import prepare_datasets
from distill_lit.experiment.estimates import memory_estimate, pace
from distill_lit.experiment.estimates import run_estimate as estimate
from distill_lit.experiment.estimates.compilation import _backbone_work
from distill_lit.experiment.estimates.evaluation_estimate import EvaluationWork
from distill_lit.experiment.estimates.memory_estimate import Memory, estimate_memory, peak_memory_bytes
from distill_lit.experiment.estimates.run_estimate import Estimate, estimate_runs, require_disk_space
from distill_lit.experiment.execution.run import execute_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.architectures import Architecture, Architectures
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.profiling.calibration import Calibration
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import disk_free, filesystem_id, read_json

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: offline, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, validation_sequences: 3, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{ce: {{weight: 1}}}}, compile: never}}
training: {{max_tokens: 64, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""
FORMS = {
    "hidden_states": [],
    "hidden_bfloat16": ["teacher.dtype=bfloat16"],
    "hidden_layers": ["teacher.hidden_layers=[0,1]"],
    "top_k": [
        "teacher.cache_format=top_k",
        "teacher.top_k=7",
        "objective.terms.kl={kind: top_k_kl, weight: 1, options: {k: 7}}",
    ],
    "top_p": [
        "teacher.cache_format=top_p",
        "teacher.top_p=1.0",  # all that the limit allows: of less nobody knows how many
        "teacher.top_k=7",
        "objective.terms.kl={kind: top_k_tail_kl, weight: 1}",
    ],
    "sampled": [
        "teacher.cache_format=sampled",
        "teacher.num_samples=5",
        "objective.terms.kl={kind: sampled_kl, weight: 1}",
    ],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))


def load(tmp_path: Path, teacher: Path, corpus: Path, *changes: str) -> ExperimentConfig:
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT.format(teacher=teacher, corpus=corpus))
    return load_experiment(file, list(changes))


def teacher_cache_of(config: ExperimentConfig) -> Run:
    return next(run for run in plan_runs(config) if run.role == "teacher_cache")


def estimate_of(config: ExperimentConfig) -> Estimate | None:
    known = estimate_runs(plan_runs(config))
    assert known is not None
    return known[teacher_cache_of(config).name]


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_a_cache_takes_what_was_said(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, changes: list[str]) -> None:
    config = load(tmp_path, tiny_teacher, tiny_corpus, *changes)
    prepare_datasets(config.data, tiny_teacher, "pypi")
    said = estimate_of(config)
    run = teacher_cache_of(config)
    execute_run(run, tmp_path / "run", lambda *_: None)
    shards = list(Path(read_json(tmp_path / "run/manifest.json")["teacher_cache"]).glob("*.safetensors"))
    assert said is not None
    assert said.disk_bytes == sum(path.stat().st_size - header(path) for path in shards)
    assert said.minutes > 0


def header(path: Path) -> int:
    """Bytes before the numbers of a safetensors file."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_text_that_is_not_prepared_is_counted_by_its_bytes(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    size = sum(len(text) for text in set(tiny_models.sentences(400, 1)))
    states = 32 * 4  # bytes of 32 channels
    said = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus))
    assert said is not None
    assert said.disk_bytes == (size // 4 + 3 * 32) * states
    capped = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus, "data.max_tokens=512"))
    assert capped is not None
    assert capped.disk_bytes == (512 + 3 * 32) * states


def test_text_that_nobody_can_count_is_unknown_not_nothing(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_lit.data.corpus_counts.MAX_BYTES_TO_COUNT", 10)
    assert estimate_of(load(tmp_path, tiny_teacher, tiny_corpus)) is None
    capped = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus, "data.max_tokens=512"))
    assert capped is not None
    assert capped.disk_bytes == (512 + 3 * 32) * 32 * 4


def written(**fields: object) -> str:
    """A corpus that a model writes: 50 prompts, answers of 80 tokens."""
    prompts = {"path": fields.pop("path"), "text": "{{ text }}", "max_documents": 50}
    generated = {"prompts": prompts, "max_new_tokens": 80, "chat": False, **fields}
    return f"data.corpora.answers={json.dumps({'generated': generated})}"


def test_a_cache_of_text_that_is_written_first(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]
) -> None:
    """Of 50 texts of 200 tokens and of the file beside them, or of what `max_tokens` leaves of both."""
    size = sum(len(text) for text in set(tiny_models.sentences(400, 1)))
    answers = [written(path=f"file:{tiny_corpus}"), "objective.terms.kl={kind: forward_kl, weight: 1}"]
    said = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus, *answers))
    assert said is not None
    assert said.disk_bytes == (50 * 200 + size // 4 + 3 * 32) * 32 * 4
    capped = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus, *answers, "data.max_tokens=512"))
    assert capped is not None
    assert capped.disk_bytes == (512 + 3 * 32) * 32 * 4


def test_text_is_written_at_the_pace_of_its_writer(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, teacher: Path, machine: list[int]
) -> None:
    """Another model than the teacher; a server needs no memory here."""
    estimates: list[Estimate] = []
    server: dict[str, object] = {"base_url": "http://localhost:1/v1", "model": "m", "protocol": "completions"}
    writers: list[dict[str, object]] = [{"model": f"file:{teacher}"}, {}, {"remote": server}]
    for changes in writers:
        runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus, written(path=f"file:{tiny_corpus}", **changes)))
        run = next(run for run in runs if run.role == "generated")
        found = estimate_runs(runs)[run.name]
        assert found is not None
        estimates.append(found)
    sizes = [Architecture.of_folder(folder).size for folder in (teacher, tiny_teacher)]
    assert [one.flops for one in estimates] == [*(size.flops_per_token() * 50 * 80 for size in sizes), 0]
    other, own, remote = (one.memory.teacher for one in estimates)
    assert other - own > 4 * (sizes[0].parameters - sizes[1].parameters)
    assert remote == 0


# ---------------------------------------------------------------- room on the disks

CACHE, RUNS = 10, 100  # bytes that the two runs write


def check(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch, disks: dict[str, tuple[int, int]], built: str = ""
) -> None:
    """`disks`: {cache or runs: (number of the file system, bytes free)}; `built`: role of the run that is."""

    def disk(path: Path) -> tuple[int, int]:
        return disks["cache" if "cache" in path.parts else "runs"]

    monkeypatch.setattr(estimate, "filesystem_id", lambda path: disk(path)[0])
    monkeypatch.setattr(estimate, "disk_free", lambda path: disk(path)[1])
    monkeypatch.setattr(estimate, "is_run_built", lambda run, folder: run.role == built)
    size = {"teacher_cache": CACHE, "ce_only": RUNS}
    known = {run.name: Estimate(0, 0.0, size[run.role], size[run.role], 0.0) for run in runs}
    require_disk_space(known, runs, tmp_path / "runs" / "tiny")


def test_each_disk_is_asked_for_what_goes_there(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus))
    assert [run.role for run in runs] == ["teacher_cache", "ce_only"]
    check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE), "runs": (2, RUNS)})
    with pytest.raises(UserError, match="cache: .*DISTILL_LIT_CACHE"):
        check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE - 1), "runs": (2, RUNS)})
    with pytest.raises(UserError, match="runs/tiny: .*--root"):
        check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE), "runs": (2, RUNS - 1)})
    check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE + RUNS), "runs": (1, CACHE + RUNS)})
    with pytest.raises(UserError, match="--root"):
        check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE + RUNS - 1), "runs": (1, CACHE + RUNS - 1)})


def test_what_is_done_needs_no_room(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus))
    full = {"cache": (1, 0), "runs": (2, RUNS)}
    check(tmp_path, runs, monkeypatch, full, built="teacher_cache")
    with pytest.raises(UserError, match="cache: "):
        check(tmp_path, runs, monkeypatch, full, built="ce_only")


def test_a_run_of_unknown_size_is_not_refused(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus))
    monkeypatch.setattr(estimate, "disk_free", lambda path: 0)
    require_disk_space(dict.fromkeys([run.name for run in runs]), runs, tmp_path / "runs" / "tiny")


def test_disks_of_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    assert filesystem_id(tmp_path / "a/b") == tmp_path.stat().st_dev
    assert disk_free(tmp_path / "a/b") > 0


def test_totals_hold_one_peak_at_a_time() -> None:
    one = Estimate(1, 2.0, 3, 10, 4.0, Memory(weights=3), {"training": 3.0, "start": 1.0})
    other = replace(one, memory=Memory(weights=1, teacher=4), parts={"training": 4.0})
    expected = Estimate(2, 4.0, 6, 6 + 7, 8.0, other.memory, {"training": 7.0, "start": 1.0})
    assert estimate.sum_estimates([one, other]) == expected
    assert estimate.sum_estimates([]).peak_disk_bytes == 0


def test_checkpoints_of_all_workers_are_on_the_disk_at_once(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch, machine: list[int]
) -> None:
    """Three students of 10, 20 and 40 bytes beside checkpoints of 1, 2 and 4 bytes, which go with the end of each."""
    seeds = "grid={seed: [0, 1, 2]}"
    for workers, checkpoints in ((1, 4), (2, 4 + 2), (8, 4 + 2 + 1)):
        changes = (seeds, "teacher.source=none", f"launcher.workers={workers}")
        runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus, *changes))
        sizes = dict(zip([run.name for run in runs], (1, 2, 4), strict=True))
        known = {name: Estimate(0, 0.0, 10 * size, 11 * size, 0.0) for name, size in sizes.items()}
        monkeypatch.setattr(estimate, "disk_free", lambda _, room=70 + checkpoints: room)
        require_disk_space(known, runs, tmp_path / "runs")
        monkeypatch.setattr(estimate, "disk_free", lambda _, room=70 + checkpoints: room - 1)
        with pytest.raises(UserError, match="will write about"):
            require_disk_space(known, runs, tmp_path / "runs")
    kept = load(tmp_path, tiny_teacher, tiny_corpus, "teacher.source=none", "training.keep_checkpoints=true")
    (run,) = plan_runs(kept)
    found = estimate_runs([run])[run.name]
    assert found is not None
    assert found.disk_bytes == found.peak_disk_bytes == Architectures([run]).student(run).size.parameters * (4 + 2 * 12)


# ---------------------------------------------------------------- minutes and memory, by hand

SPEED = Calibration({"float32": 1e6, "bfloat16": 4e6}, {"float32": 5e5, "bfloat16": 1e6}, 1e5, True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A made-up machine; the threads that were asked for."""
    asked: list[int] = []

    def calibrate(_: object, threads: int) -> Calibration:
        asked.append(threads)
        return SPEED

    monkeypatch.setattr("distill_lit.experiment.estimates.pace.calibrate", calibrate)
    return asked


def run_of(config: ExperimentConfig, role: str) -> Run:
    return next(run for run in plan_runs(config) if run.role == role)


def test_minutes_of_a_student_are_those_of_its_parts(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]
) -> None:
    """64 tokens in steps of 128 positions are one step; three rows of 32 tokens are validated before it and after it."""
    config = load(tmp_path, tiny_teacher, tiny_corpus, "launcher.workers=2", "launcher.threads_per_worker=3")
    run = run_of(config, "ce_only")
    size, teacher = Architectures([run]).student(run).size, Architectures([run]).teacher(run).size
    forward, lm_head = size.flops_per_token(), 2 * teacher.lm_head_parameters
    found = estimate_runs([run])[run.name]
    assert found is not None
    seconds = {name: 60 * minutes for name, minutes in found.parts.items()}
    assert seconds["training"] == pytest.approx(3 * forward * 128 / 5e5 + size.parameters / 1e5)
    assert seconds["validation"] == pytest.approx((forward + lm_head) * 2 * 3 * 32 / 1e6)  # compared by cached states
    assert seconds["evaluation"] == pytest.approx(forward * 4 * 120 / 1e6 + pace.TASK_SECONDS)
    assert seconds["start"] + seconds["export"] == pace.START_SECONDS + pace.BUILD_SECONDS + pace.EXPORT_SECONDS
    assert found.minutes == pytest.approx(sum(found.parts.values()))
    assert found.flops == pytest.approx(forward * (3 * 128 + 2 * 3 * 32 + 4 * 120) + lm_head * 2 * 3 * 32)
    assert machine == [3]
    shots = load(tmp_path, tiny_teacher, tiny_corpus, "evaluation.num_fewshot=4", "training.gradient_checkpointing=true")
    run = run_of(shots, "ce_only")
    more = estimate_runs([run])[run.name]
    assert more is not None
    assert 60 * more.parts["evaluation"] == pytest.approx(forward * 5 * 4 * 120 / 1e6 + pace.TASK_SECONDS)
    assert 60 * more.parts["training"] == pytest.approx(4 * forward * 128 / 5e5 + size.parameters / 1e5)


@pytest.mark.parametrize(("source", "readings"), [("online", 1), ("self", 1), ("ema", 3)])
def test_a_teacher_that_does_not_change_reads_held_out_rows_once(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int], source: str, readings: int
) -> None:
    """Three rows of 32 tokens, two steps: validated before the first and after each; the lm_head's product is new each
    time."""
    kl = "objective.terms={kl: {kind: forward_kl}}"
    config = load(
        tmp_path, tiny_teacher, tiny_corpus, kl, f"teacher.source={source}", "training.max_tokens=256",
        "training.val_check_interval=0.5", "baselines=[]",
    )  # fmt: skip
    run = run_of(config, "distilled")
    architectures = Architectures([run])
    student = architectures.student(run).size
    teacher = architectures.teacher(run).size if source == "online" else student
    found = estimate_runs([run])[run.name]
    assert found is not None
    head = 2 * teacher.lm_head_parameters
    backbone = teacher.flops_per_token() - head
    expected = 3 * 32 * (3 * student.flops_per_token() + readings * backbone + 3 * head)
    assert 60 * found.parts["validation"] == pytest.approx(expected / 1e6)


def test_what_compiling_could_speed_up_is_the_work_of_the_backbones(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]
) -> None:
    """256 tokens: three passes of the student at 5e5 a second, one of an online teacher at 1e6, without the lm_heads."""
    changes = ["objective.terms={kl: {kind: forward_kl}}", "training.max_tokens=256", "baselines=[]"]
    for source, asks in (("online", True), ("offline", False), ("self", False)):
        config = load(tmp_path, tiny_teacher, tiny_corpus, *changes, f"teacher.source={source}")
        run = run_of(config, "distilled")
        architectures = Architectures([run])
        student, teacher = architectures.student(run).size, architectures.teacher(run).size
        work = _backbone_work(run, architectures, pace.Pace.of([run]))
        assert work.student_seconds == pytest.approx(3 * 256 * student.flops_per_token(head=False) / 5e5)
        assert work.teacher_seconds == pytest.approx(asks * 256 * teacher.flops_per_token(head=False) / 1e6)
        assert (work.student_layers, work.teacher_layers) == (student.layers, asks * teacher.layers)


def test_probes_and_answers_are_counted(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]) -> None:
    """GSM8K lets a model write 256 tokens, and shows it five examples; a student reads probes beside its teacher; a group
    is as many tasks as it has."""
    probe = f"evaluation.probes={{own: {{path: 'file:{tiny_corpus}', max_documents: 7}}}}"
    changes = [probe, "evaluation.tasks=[reading,gsm8k]", "evaluation.pack_tokens=16", "baselines=[teacher,ce_only]"]
    config = load(tmp_path, tiny_teacher, tiny_corpus, *changes)
    student, teacher = run_of(config, "ce_only"), run_of(config, "teacher")
    architectures, found = Architectures([student, teacher]), estimate_runs([student, teacher])
    sizes = architectures.student(student).size, architectures.teacher(teacher).size
    own, theirs = (size.flops_per_token() for size in sizes)
    questions, passages = (4 + 4 + 4 * 6) * 120, 4 * 150  # evaluation.limit is the most of probes too
    reading = own * questions + (own + theirs) * passages, theirs * (2 * questions + passages)
    for run, forward, read in zip((student, teacher), (own, theirs), reading, strict=True):
        estimated = found[run.name]
        assert estimated is not None
        assert 60 * estimated.parts["evaluation"] == pytest.approx(read / 1e6 + 4 * pace.TASK_SECONDS)
        assert 60 * estimated.parts["answers"] == pytest.approx(forward * 4 * 256 / (1e6 * pace.DECODING_SHARE))
    size, text = sizes[1], architectures.teacher(teacher).config
    asked = estimate_memory(teacher, architectures)
    kept = 4 * (4 * 32) + 4 * (2 * 32 + 3 * 32 + 2 * 16 + 4 * text.intermediate_size)
    answers, probes = 8192 * size.kv_cache_values_per_token * 4, 1024 * (4 * text.vocab_size + kept)
    assert asked.activations == max(answers, probes)
    assert asked.teacher == 0
    shown = load(tmp_path, tiny_teacher, tiny_corpus, "evaluation.tasks=[gsm8k]", "evaluation.repeats=3",
                 "evaluation.temperature=1", "evaluation.max_gen_toks=10", "evaluation.limit=0")  # fmt: skip
    assert EvaluationWork.of(shown, 0).written_tokens == 1500 * 3 * 10
    assert EvaluationWork.of(load(tmp_path, tiny_teacher, tiny_corpus, "evaluation.tasks=[]"), 0).num_tasks == 0


def test_evaluations_on_the_way_are_those_of_a_training(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]
) -> None:
    """One step: before it and after it, however short the interval; a model that is not trained at the end alone."""
    changes = ["baselines=[teacher,untrained,ce_only]", "evaluation.interval=0.25", "evaluation.interval_limit=3"]
    config = load(tmp_path, tiny_teacher, tiny_corpus, *changes)
    runs = [run_of(config, role) for role in ("untrained", "ce_only")]
    forward = Architectures(runs).student(runs[0]).size.flops_per_token()
    found = estimate_runs(runs)
    for run, documents in zip(runs, (4, 4 + 2 * 3), strict=True):
        estimated = found[run.name]
        assert estimated is not None
        assert 60 * estimated.parts["evaluation"] == pytest.approx(forward * documents * 120 / 1e6 + pace.TASK_SECONDS)
    assert EvaluationWork.of(config, 100).question_tokens == (4 + (1 + 4) * 3) * 120
    assert EvaluationWork.of(config, 0).question_tokens == 4 * 120


def test_memory_of_a_student_by_hand(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]) -> None:
    """One layer of width 32: two norms keep 4 × 32 numbers of float32, products 2 × 32 + 3 a + kv + 4 f."""
    kl = "objective.terms.kl={kind: forward_kl, weight: 1}"
    config = load(tmp_path, tiny_teacher, tiny_corpus, kl, "teacher.source=online", "evaluation.pack_tokens=16")
    run = run_of(config, "distilled")
    architectures = Architectures([run])
    size, text = architectures.student(run).size, architectures.student(run).config
    found = estimate_memory(run, architectures)
    parameters, tokens = size.parameters, 4 * 32
    attention, kept = text.num_attention_heads * text.head_dim, 2 * text.num_key_value_heads * text.head_dim
    layer = 4 * (4 * 32) + 4 * (2 * 32 + 3 * attention + kept + 4 * text.intermediate_size)
    logits = 40 * tokens * text.vocab_size
    assert found == Memory(
        weights=(4 + 4) * parameters,
        moments=8 * parameters,
        activations=round(1.1 * (tokens * layer + logits)),  # an allocator on a CPU keeps a tenth more
        teacher=4 * architectures.teacher(run).size.parameters + tokens * layer,
        cache=0,
        process=memory_estimate.PROCESS_BYTES,
    )
    mixed = replace(run, config=replace(config, training=replace(config.training, precision="bfloat16")))
    assert estimate_memory(mixed, architectures).weights == (4 + 2 + 4) * parameters
    recomputed = replace(config.training, gradient_checkpointing=True)
    less = estimate_memory(replace(run, config=replace(config, training=recomputed)), architectures)
    assert less.activations == round(1.1 * (tokens * (32 * 4 + layer) + logits))


def test_memory_of_models_that_are_not_trained(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    """An untrained student stands beside its copy; a teacher is read in float32 and asked 512 tokens at a time."""
    config = load(tmp_path, tiny_teacher, tiny_corpus, "baselines=[teacher,untrained]", "evaluation.pack_tokens=16")
    student, teacher = run_of(config, "untrained"), run_of(config, "teacher")
    architectures = Architectures([student, teacher])
    text, parameters = architectures.student(student).config, architectures.student(student).size.parameters
    found = estimate_memory(student, architectures)
    assert (found.weights, found.activations) == (8 * parameters, 40 * 4 * 32 * text.vocab_size)
    asked = estimate_memory(teacher, architectures)
    kept = 4 * (4 * 32) + 4 * (2 * 32 + 3 * 32 + 2 * 16 + 4 * text.intermediate_size)
    assert asked.activations == 16 * (text.vocab_size * 2 * 4 + kept)
    assert asked.weights == 4 * architectures.teacher(teacher).size.parameters


KL = "objective.terms.kl={kind: forward_kl, weight: 1}"
TOP_K = [*FORMS["top_k"], "teacher.top_k=5", "objective.terms.kl.options.k=5"]
SERVED = [*TOP_K, "teacher.source=served", "teacher.server={base_url: 'http://localhost:1/v1', model: m}"]
LOCAL, LIVE = "teacher.server.local_validation=true", "teacher.server.live=true"
STATES = ["teacher.source=served", *SERVED[-1:], "teacher.server.outputs=hidden_states", KL]
ROWS = 4 * 32 * 32 * 4  # bytes of a micro-batch of 4 × 32 positions of 32 channels in float32
SPARSE = 4 * 32 * (4 * 5 + 4)  # of 5 tokens and the label at each


@pytest.mark.parametrize(
    ("changes", "held", "learning_rows", "held_out_rows"),
    [
        (["teacher.source=online", KL], "model", 0, 0),
        ([KL], "lm_head", ROWS, ROWS),
        (TOP_K, "lm_head", SPARSE, ROWS),  # held-out rows have hidden states in every format
        (SERVED, "", SPARSE, SPARSE),
        ([*SERVED, LOCAL], "model", SPARSE, 0),
        ([*SERVED, LOCAL, LIVE], "model", 0, 0),
        ([*SERVED, LIVE], "", 0, 0),
        (STATES, "lm_head", ROWS, ROWS),
    ],
)
def test_every_student_has_its_teacher_beside_it(
    tmp_path: Path,
    tiny_teacher: Path,
    tiny_corpus: Path,
    machine: list[int],
    changes: list[str],
    held: str,
    learning_rows: int,
    held_out_rows: int,
) -> None:
    """Its model or its lm_head, and cached rows: of those that it learns from, or else of those on which it is compared. 64
    tokens in a step of 128 positions, 96 held-out ones before it and after it."""
    everyone = ["baselines=[untrained,ce_only]", "evaluation.pack_tokens=16", *changes]
    runs = [run for run in plan_runs(load(tmp_path, tiny_teacher, tiny_corpus, *everyone)) if run.student and run.is_model]
    assert [run.role for run in runs] == ["untrained", "ce_only", "distilled"]
    architectures, found = Architectures(runs), estimate_runs(runs)
    teacher, text = architectures.teacher(runs[0]).size, architectures.teacher(runs[0]).config
    student = architectures.student(runs[0]).size.flops_per_token()
    layer = 4 * (4 * 32) + 4 * (2 * 32 + 3 * 32 + 2 * 16 + 4 * text.intermediate_size)
    heads = 2 * teacher.lm_head_parameters
    held_bytes = {"model": 4 * teacher.parameters + 4 * 32 * layer, "lm_head": 4 * teacher.lm_head_parameters, "": 0}
    read_once = {"model": teacher.flops_per_token() - heads}.get(held, 0)
    for run, validated in zip(runs, (96, 192, 192), strict=True):
        estimated = found[run.name]
        assert estimated is not None
        rows = learning_rows if run.role == "distilled" else held_out_rows
        assert (estimated.memory.teacher, estimated.memory.cache) == (held_bytes[held], rows)
        expected = (student + (heads if held else 0)) * validated + read_once * 96
        assert 60 * estimated.parts["validation"] == pytest.approx(expected / 1e6)
    plain, learning = (found[run.name] for run in runs[1:])
    assert plain is not None
    assert learning is not None
    here = {"model": LOCAL not in changes, "lm_head": "teacher.top_k=5" not in changes}.get(held, False)
    extra = (heads + read_once) * 128 / 1e6 if here else 0.0
    assert 60 * (learning.parts["training"] - plain.parts["training"]) == pytest.approx(extra, abs=1e-9)


def test_a_student_without_a_teacher_has_none_beside_it(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, machine: list[int]
) -> None:
    run = run_of(load(tmp_path, tiny_teacher, tiny_corpus, "teacher.source=none"), "ce_only")
    found = estimate_memory(run, Architectures([run]))
    assert (found.teacher, found.cache) == (0, 0)


def test_workers_need_the_sum_of_the_largest() -> None:
    runs = [SimpleNamespace(name=name, is_trained=True, config=config_of(1)) for name in "abc"]
    memories = {"a": Memory(weights=1), "b": Memory(weights=5, cache=1), "c": Memory(teacher=3)}
    assert peak_memory_bytes(runs, memories, 2) == (9, [runs[1], runs[2]])  # type: ignore[arg-type]
    assert peak_memory_bytes(runs, {}, 2) == (0, [])  # type: ignore[arg-type]
    runs[1].config = config_of(3)  # three ranks on the same processor
    assert peak_memory_bytes(runs, memories, 1)[0] == 18  # type: ignore[arg-type]


def config_of(devices: int) -> SimpleNamespace:
    training = SimpleNamespace(devices=devices, accelerator="cpu")
    return SimpleNamespace(training=training, launcher=SimpleNamespace(engine="local"))
