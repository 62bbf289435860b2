"""Text by vLLM: a student's weights handed over after each step, and the gap between both engines. By what stands for vLLM
(`helpers/fake_vllm`), and by the real one (slow)."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.distillation import LENGTH, SETTINGS, TRAINING, VOCABULARY, new_student

from distill_lit import data
from distill_lit.cli.main import main
from distill_lit.config import (
    GeneratedConfig,
    GenerationBackendConfig,
    OnPolicyConfig,
    PromptsConfig,
    TermConfig,
    load_experiment,
)
from distill_lit.config.models import LoraConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.precision import resolve_auto
from distill_lit.generation import backend
from distill_lit.generation.completions import read_completions
from distill_lit.generation.corpus import GenerationContext, generate_corpus
from distill_lit.generation.sampling import SamplingParams, generate_batch
from distill_lit.generation.vllm_engine import VLLMEngine
from distill_lit.losses import build_objective
from distill_lit.models import load_model, load_tokenizer
from distill_lit.models.lora import add_adapters
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.training.trainer import TrainingJob, optimizer_settings, train
from distill_lit.utils.exceptions import UserError

QUICK = ROOT / "experiments/quickstart.yaml"
SHARED_CACHE = os.environ.get("DISTILL_LIT_CACHE", str(Path("~/.cache/distill-lit").expanduser()))
FAKE = GenerationBackendConfig(backend="vllm")
GREEDY = SamplingParams(0.0, 1.0, 6)
WRITES = ["teacher.source=online", "on_policy.fraction=1", "generation.backend=vllm"]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT / "tests/helpers/fake_vllm"), os.environ.get("PYTHONPATH", "")])
    )
    return monkeypatch


@pytest.fixture
def engine(fake_vllm: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[VLLMEngine]:
    with VLLMEngine(FAKE, torch.float32, tmp_path / "vllm.log") as started:
        yield started


def train_on_own_text(folder: Path, teacher: Path, prepared: data.PreparedData, engine: VLLMEngine) -> list[dict[str, Any]]:
    """What is logged of four steps in which every batch is the student's own text."""
    training = replace(TRAINING, max_tokens=LENGTH * 4 * 4, micro_batch_size=4)
    module, student = PackedDataModule(prepared.train, prepared.validation, training, 0), new_student(teacher)
    own = OnPolicyConfig(fraction=1.0, max_new_tokens=6)
    distiller = Distiller(
        student,
        OnlineTeacher(load_model(teacher), VOCABULARY),
        build_objective({"kl": TermConfig(kind="reverse_kl")}),
        vocab_size=VOCABULARY,
        fused_loss_settings=SETTINGS,
        on_policy_generator=OnPolicyGenerator(own, [2], VOCABULARY, None, 0, module.steps, engine),
        **optimizer_settings(training),
    )
    train(TrainingJob(folder, distiller, module, replace(training, log_every_n_steps=1), 0, lambda *_: None))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "on_policy/engine_gap" in line]


def test_each_step_is_written_by_the_weights_of_that_step(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, engine: VLLMEngine
) -> None:
    """Where the same weights write and learn, the gap is rounding; where the first are never replaced, it grows."""
    logged = train_on_own_text(tmp_path / "a", tiny_teacher, prepared, engine)
    assert len(logged) == 4
    for line in logged:
        assert line["on_policy/engine_gap"] < 1e-4
        assert line["on_policy/importance_ratio"] == pytest.approx(1, abs=1e-4)
    engine.use_weights = lambda *_: None  # type: ignore[method-assign]
    stale = [line["on_policy/engine_gap"] for line in train_on_own_text(tmp_path / "b", tiny_teacher, prepared, engine)]
    assert stale[-1] > 0.01


def test_it_writes_what_the_model_writes_and_no_token_that_is_none(tiny_teacher: Path, engine: VLLMEngine) -> None:
    model = load_model(tiny_teacher).eval()
    model.resize_token_embeddings(310)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCABULARY:] = 3 * model.get_output_embeddings().weight[:10]
    prompts = [[5, 9, 40, 7], [61, 33]]
    engine.use_weights(model, 0, 16)
    assert any(max(text.token_ids) >= VOCABULARY for text in engine.generate(prompts, [], GREEDY, 0))
    expected = generate_batch(model, prompts, [2], GREEDY, 0, vocab_size=VOCABULARY)
    for written, right in zip(engine.generate(prompts, [2], GREEDY, 0, VOCABULARY), expected, strict=True):
        assert written.token_ids == right.token_ids
    end = expected[0].token_ids[3]
    (cut,) = engine.generate(prompts[:1], [2, end], GREEDY, 0, VOCABULARY)
    assert (cut.is_finished, cut.token_ids[-1]) == (True, end)
    drawn = SamplingParams(1.0, 1.0, 8)
    one, other = (engine.generate([[5, 9]] * 4, [], drawn, seed, VOCABULARY) for seed in (3, 4))
    assert one == engine.generate([[5, 9]] * 4, [], drawn, 3, VOCABULARY) != other
    assert len({tuple(text.token_ids) for text in one}) > 1


def test_adapters_are_handed_over_merged(tiny_teacher: Path, engine: VLLMEngine) -> None:
    student = add_adapters(new_student(tiny_teacher), LoraConfig(rank=4))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    engine.use_weights(student, 0, 16)
    (written,) = engine.generate([[5, 9, 40, 7]], [], GREEDY, 0)
    ids = torch.tensor([[5, 9, 40, 7, *written.token_ids]])
    with torch.no_grad():
        log_q = student.eval()(ids).logits[0, 3:-1].log_softmax(-1)
    said = log_q.gather(-1, ids[0, 4:, None])[:, 0]
    torch.testing.assert_close(said, torch.tensor(written.logprobs), atol=1e-4, rtol=1e-4)
    assert any("lora" in name for name, _ in student.named_parameters())  # of the student itself they are apart


def test_weights_that_do_not_arrive_are_noticed(tiny_teacher: Path, fake_vllm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_vllm.setenv("FAKE_VLLM", "stale")
    model = load_model(tiny_teacher).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 4)
    with VLLMEngine(FAKE, torch.float32, tmp_path / "log") as engine, pytest.raises(UserError, match="does not write by"):
        engine.use_weights(model, 0, 64)


def test_an_engine_that_dies_ends_in_one_line(tiny_teacher: Path, fake_vllm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_vllm.setenv("FAKE_VLLM", "dies")
    with VLLMEngine(FAKE, torch.float32, tmp_path / "log") as engine:
        with pytest.raises(UserError, match=r"generation.backend: vllm ended with exit code 7; see .*log"):
            engine.use_weights(load_model(tiny_teacher), 0, 64)
        assert engine._process is None


def test_a_corpus_is_written_by_it(tmp_path: Path, tiny_teacher: Path, fake_vllm: pytest.MonkeyPatch) -> None:
    fake_vllm.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    (path := tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": f"Write {i}"}) + "\n" for i in range(5)))
    asked = GeneratedConfig(prompts=PromptsConfig(path=f"file:{path}"), chat=False, max_new_tokens=6, batch_size=2)
    found = {}
    for name in ("local", "vllm"):
        context = GenerationContext(f"file:{tiny_teacher}", torch.float32, backend=GenerationBackendConfig(backend=name))
        folder = Path(generate_corpus("a", asked, context, "pypi", lambda *_: None)["corpus"]).parent
        found[name] = (folder, [(each.prompt, each.token_ids) for each in read_completions(folder)])
    assert found["local"][0] != found["vllm"][0]
    assert found["local"][1] == found["vllm"][1]


EXPERIMENT = """
name: own_text
teacher: {{model: "file:{teacher}", source: online}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 3, max_tokens: 2000, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: reverse_kl}}}}, compile: never}}
on_policy: {{fraction: 1.0, max_new_tokens: 4}}
generation: {{backend: vllm}}
training: {{max_tokens: 256, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""


def test_a_run_writes_by_it_and_ends_it(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, fake_vllm: pytest.MonkeyPatch
) -> None:
    fake_vllm.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    (file := tmp_path / "own_text.yaml").write_text(EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus))
    (run,) = plan_runs(load_experiment(file, []))
    processes = list[Any]()
    start = VLLMEngine._start

    def watched(self: VLLMEngine, device: torch.device) -> None:
        start(self, device)
        processes.append(self._process)

    fake_vllm.setattr(VLLMEngine, "_start", watched)
    (folder := tmp_path / run.name).mkdir()
    build_run(run, folder, lambda *_: None)
    (process,) = processes
    assert process.poll() is not None
    assert (folder / "vllm-0.log").is_file()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["on_policy/engine_gap"] for line in lines if "on_policy/engine_gap" in line]
    assert gaps and max(gaps) < 1e-4


# ---------------------------------------------------------------- before anything runs


def test_where_it_is_not_installed_it_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", str(QUICK), *WRITES, "--root", str(tmp_path)])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].endswith(
        "generation.backend: vllm is not installed in the environment of this program; install it, or name in "
        "generation.vllm_python the Python of an environment that has it"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("on_policy.teacher_mix_fraction=0.2", "vllm cannot be with on_policy.teacher_mix_fraction"),
        ("students.deep.quantization_aware=int4", "vllm cannot be with students.deep.quantization_aware"),
        ("generation.vllm_python=/nowhere/python", "/nowhere/python is no Python that can be run"),
    ],
)
def test_what_it_cannot_write_is_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load_experiment(QUICK, [*WRITES, change]))


def test_auto_takes_it_where_it_is_installed_and_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*changes: str) -> str:
        config = load_experiment(QUICK, [*WRITES, "generation.backend=auto", "training.precision=float32", *changes])
        return resolve_auto(config).generation.backend

    assert chosen() == "local"
    monkeypatch.setattr(backend, "_vllm_version", lambda python: "0.32.0")
    assert chosen() == "vllm"
    assert chosen("on_policy.teacher_mix_fraction=0.2") == chosen("on_policy.fraction=0") == "local"


# ---------------------------------------------------------------- the real one


@pytest.mark.slow
@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON: Python of an environment with vLLM")
def test_the_real_vllm_writes_by_the_weights_that_it_is_given(tmp_path: Path) -> None:
    """SmolLM2-135M: its log-probabilities of drawn text are the model's, before and after its weights have changed."""
    folder = next((Path(SHARED_CACHE) / "models").glob("SmolLM2-135M-Instruct*/config.json")).parent
    model, tokenizer = load_model(folder).eval().requires_grad_(False), load_tokenizer(folder)
    prompts = [tokenizer(text)["input_ids"] for text in ("The capital of France is", "Water is made of")]
    config = GenerationBackendConfig(backend="vllm", vllm_python=os.environ["VLLM_PYTHON"], kv_cache_gib=0.5, eager=True)
    assert backend.vllm_version(config)
    drawn, gaps = SamplingParams(1.0, 0.9, 16), []
    with VLLMEngine(config, torch.float32, tmp_path / "vllm.log") as engine:
        for step in range(2):
            engine.use_weights(model, step, 64)
            for prompt, text in zip(prompts, engine.generate(prompts, [tokenizer.eos_token_id], drawn, step), strict=True):
                ids = torch.tensor([[*prompt, *text.token_ids]])
                log_q = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                said = log_q.gather(-1, ids[0, len(prompt) :, None])[:, 0]
                gaps.append(float((said - torch.tensor(text.logprobs)).abs().max()))
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.std())
    assert max(gaps) < 1e-3, gaps
