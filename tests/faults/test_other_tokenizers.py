"""A teacher with another tokenizer, of every kind that is about, against the plain teacher on the plain text."""

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models
from helpers.chat_tokenizers import byte_level, corpus, sentence_piece, wrap
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from distill_lit.config import load_experiment
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.plan import plan_runs
from distill_lit.generation.completions import Completion
from distill_lit.generation.perplexity import mean_completion_logprobs
from distill_lit.models import load_tokenizer
from distill_lit.teachers import CrossTokenizerTeacher
from distill_lit.teachers.token_alignment import token_bytes
from distill_lit.utils.exceptions import UserError

VOCABULARY = 900
TEXTS = ["A river, a stone.", "River  stone\n\nand 漢字 🙂 é", "Table river ", " begins with a blank", "漢字 river"]
AMBIGUOUS = ("llama", "t5", "prefixed bytes")  # their tokens do not tell a blank of the text from one put in front


def unigram() -> Any:
    """As T5's: ▁ in front of every word, an end, no beginning, and no bytes for what has no piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    letters = sorted(set("".join([*corpus(), *TEXTS])) - {" "})
    tokenizer.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=300,
            initial_alphabet=letters,
            special_tokens=["<unk>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return with_ends(wrap(tokenizer), "", "</s>")


def prefixed_bytes() -> Any:
    """As RoBERTa's: GPT-2's with a blank in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return wrap(tokenizer)


def with_ends(tokenizer: Any, begin: str, end: str) -> Any:
    """The tokenizer with these tokens around every text."""
    names = [name for name in (begin, end) if name]
    numbers = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    template = " ".join([*([begin] if begin else []), "$A", *([end] if end else [])])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=numbers)
    return tokenizer


KINDS = {
    "llama": lambda: with_ends(sentence_piece("first"), "<s>", ""),
    "llama legacy": lambda: with_ends(sentence_piece("legacy"), "<s>", ""),
    "t5": unigram,
    "prefixed bytes": prefixed_bytes,
    "gemma": lambda: with_ends(sentence_piece("never"), "<s>", ""),
    "bytes": lambda: with_ends(byte_level(add_prefix_space=False), "<s>", "</s>"),
}


@functools.cache
def kind(name: str) -> Any:
    return KINDS[name]()


@functools.cache
def model() -> Any:
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **config, initializer_range=0.2)).eval()


def teacher_of(theirs: Any, ours: Any, reader: Any = None) -> CrossTokenizerTeacher:
    return CrossTokenizerTeacher(reader or model(), VOCABULARY, theirs, ours)


def document(tokenizer: Any, text: str) -> list[int]:
    """As corpora are tokenised: with an end."""
    ids = tokenizer(text)["input_ids"]
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def row(*documents: list[int]) -> dict[str, torch.Tensor]:
    numbers = [number for number, ids in enumerate(documents, start=1) for _ in ids]
    ids = [i for document in documents for i in document]
    return {"input_ids": torch.tensor([ids]), "document_ids": torch.tensor([numbers])}


def said_of(teacher: CrossTokenizerTeacher, *documents: list[int]) -> Any:
    batch = row(*documents)
    return teacher.target(batch, torch.ones(1, batch["input_ids"].shape[1] - 1, dtype=torch.bool)).span_target


def ends_of(tokenizer: Any, text: str) -> tuple[int, list[int]]:
    """(tokens before the text: a beginning, a blank in front; where each token ends in the text, in characters, by the
    tokenizer's own account). Of tokens that share an end only the last has it, and the others 0."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    before = int(tokens[0] == "<s>")
    blanks = [token in ("▁", "Ġ") for token in tokens[before : before + 2]]
    if blanks[0] and not (text.startswith(" ") and not (all(blanks) and tokenizer is kind("llama legacy"))):
        before += 1
    return before, [0 if end in ends[i + 1 :] or i < before else end for i, end in enumerate(ends)]


def plain_log_probs(reader: Any, ids: list[int]) -> list[float]:
    with torch.no_grad():
        log_p = reader(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return [0.0, *log_p.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]


def stretches(*found: tuple[int, list[int]]) -> Iterator[tuple[range, range]]:
    """Tokens of both between the characters after which both have a cut. found: what `ends_of` says of each."""
    first = [before for before, _ in found]
    for end in sorted(set(found[0][1]) & set(found[1][1]) - {0}):
        last = [ends.index(end) + 1 for _, ends in found]
        yield range(first[0], last[0]), range(first[1], last[1])
        first = last


@pytest.mark.parametrize(("theirs", "ours"), itertools.product(KINDS, KINDS))
def test_kinds_of_tokenizers_are_aligned(theirs: str, ours: str) -> None:
    """The sums of the plain teacher's log-probabilities between the cuts that both tokenizers tell of themselves."""
    teacher, student = kind(theirs), kind(ours)
    reader = teacher_of(teacher, student)
    compared = 0
    for text in TEXTS:
        mine = document(student, text)
        said = said_of(reader, mine)
        read = text[1:] if ours in AMBIGUOUS and text.startswith(" ") else text
        ids = document(teacher, read)
        right = plain_log_probs(model(), ids)
        for tokens, others in stretches(ends_of(student, read), ends_of(teacher, read)):
            if tokens[0] == 0 or others[0] == 0:
                continue  # nothing comes before that predicts it
            numbers = [i - 1 for i in tokens]
            assert (said.span_length[numbers] > 0).all()
            firsts = [n for n in numbers if said.same_prefix[n]]
            found = float(said.teacher_span_logprob[firsts].sum())
            assert found == pytest.approx(sum(right[i] for i in others), abs=1e-3), (text, tokens, others)
            compared += 1
        assert float(said.teacher_span_logprob[-1]) == pytest.approx(right[-1], abs=1e-3)  # both end
    assert compared > 15


@pytest.mark.parametrize("ours", ["llama", "llama legacy"])
def test_the_rest_of_a_cut_document_keeps_its_blank(ours: str) -> None:
    """A tokenizer that begins texts with a token shows which blank it has put there, and which is the text's."""
    student, theirs = kind(ours), kind("bytes")
    whole = student("river stone river")["input_ids"]
    rest = whole[whole.index(student.convert_tokens_to_ids("▁"), 2) :]
    piece = teacher_of(theirs, student)._align_document(0, np.array(rest), np.arange(len(rest)))
    assert piece is not None
    assert piece.teacher_ids == theirs(" stone river")["input_ids"]


def test_text_without_tokens_is_left_out_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """T5's kind has no bytes for a letter that it does not know: what its student reads is not what was written."""
    student, theirs = kind("t5"), kind("bytes")
    reader = teacher_of(theirs, student)
    batch = row(document(student, "a river"), document(student, "a stone \u0416"), document(student, "a river"))
    numbers = batch["document_ids"][0, 1:]
    target = reader.target(batch, torch.ones(1, len(numbers), dtype=torch.bool))
    assert (target.span_ids[numbers == 2][1:] == -1).all()
    first, last = (target.span_target.teacher_span_logprob[numbers == n][-3:] for n in (1, 3))
    torch.testing.assert_close(first, last)
    assert (first < 0).all()
    many = row(*[document(student, "a \u0416")] * 29)
    with pytest.raises(UserError, match="the student's tokenizer has no tokens for parts of 30 of 32 documents"):
        reader.target(many, torch.ones(1, many["input_ids"].shape[1] - 1, dtype=torch.bool))
    assert caplog.text.count("the student's tokenizer has no tokens for parts of") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (normalizers.Lowercase(), "changes the case"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "takes accents off"),
        (normalizers.NFKC(), "writes letters in other forms"),
        (normalizers.Strip(), "changes blanks"),
        (normalizers.Replace(Regex(" +"), " "), "changes blanks"),
        (pre_tokenizers.WhitespaceSplit(), "changes"),
        (normalizers.NFC(), ""),
    ],
)
@pytest.mark.parametrize("name", ["bytes", "llama", "t5"])
def test_tokenizers_that_change_text_are_refused(name: str, change: Any, words: str) -> None:
    changing, plain = KINDS[name](), kind("gemma")
    backend = changing.backend_tokenizer
    part = "pre_tokenizer" if isinstance(change, pre_tokenizers.PreTokenizer) else "normalizer"
    both = pre_tokenizers.Sequence if part == "pre_tokenizer" else normalizers.Sequence
    own = getattr(backend, part)
    setattr(backend, part, both([change, own]) if own else change)
    for theirs, ours, whose in ((changing, plain, "teacher"), (plain, changing, "student")):
        if words:
            with pytest.raises(UserError, match=f"teacher.source: cross_tokenizer: the {whose}'s tokenizer {words}"):
                teacher_of(theirs, ours)
        else:
            teacher_of(theirs, ours)


def test_an_added_token_that_is_a_piece_is_spelled_like_one() -> None:
    """As Gemma's of two blanks."""
    tokenizer = KINDS["gemma"]()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    number = len(tokenizer)
    backend["model"]["vocab"]["▁▁"] = number
    backend["model"]["merges"].insert(0, ["▁", "▁"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    backend["added_tokens"].append({"id": number, "content": "▁▁", **flags})
    own = wrap(Tokenizer.from_str(json.dumps(backend)))
    ids = own("river  stone")["input_ids"]
    table = token_bytes(own)
    assert number in ids
    assert b"".join(table[i] for i in ids) == b"river  stone"


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_the_plan_refuses_a_tokenizer_that_changes_text(tmp_path: Path, side: str) -> None:
    folders = {name: tiny_models.make_model(tmp_path / name) for name in ("teacher", "student")}
    tokenizer = load_tokenizer(folders[side])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(folders[side])
    file = tmp_path / "far.yaml"
    file.write_text(f"""
name: far
teacher: {{model: "file:{folders["teacher"]}", source: cross_tokenizer}}
students: {{far: {{from: "file:{folders["student"]}"}}}}
data: {{corpora: {{text: {{path: "file:{tmp_path}"}}}}}}
objective: {{terms: {{one: {{kind: uld}}}}}}
""")
    with pytest.raises(UserError, match=f"teacher.source: cross_tokenizer: the {side}'s tokenizer changes the case"):
        check_against_teacher(plan_runs(load_experiment(file)))


# ---------------------------------------------------------------- positions


def gpt2() -> Any:
    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, initializer_range=0.2)).eval()


def test_tokens_beyond_learned_positions_are_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reader, student, theirs = gpt2(), kind("bytes"), kind("gemma")
    texts = [" ".join(["river stone a table"] * count) for count in (12, 2, 11)]
    documents = [document(student, text) for text in texts]
    batch = row(*documents)
    numbers = batch["document_ids"][0, 1:]
    target = teacher_of(theirs, student, reader).target(batch, torch.ones(1, len(numbers), dtype=torch.bool))
    for number, text in enumerate(texts, start=1):
        ids = document(theirs, text)
        right = plain_log_probs(reader, ids[:64])
        total = sum(right[i] for _, others in stretches(ends_of(student, text), ends_of(theirs, text))
                    for i in others if others[-1] < 64)  # fmt: skip
        ended = right[-1] if len(ids) <= 64 else 0.0
        here = (numbers == number) & target.span_target.same_prefix
        assert float(target.span_target.teacher_span_logprob[here].sum()) == pytest.approx(total + ended, abs=1e-3)
        assert (target.span_target.span_length[numbers == number][1:] > 0).all() == (len(ids) <= 64)
    assert len(document(theirs, texts[0])) > 64 >= len(document(theirs, texts[1]))
    assert caplog.text.count("the teacher has 64 positions") == 1


def test_a_judge_scores_what_fits_its_learned_positions() -> None:
    reader, tokenizer = gpt2(), kind("gemma")
    body = tokenizer("river stone a table river", add_special_tokens=False)["input_ids"]
    ends = [tokenizer.decode(body[: n + 1]) for n in range(len(body))]
    prompt = " ".join(["stone"] * 18)
    sizes = [len(tokenizer(prompt + " " + end)["input_ids"]) for end in ends]
    scores = mean_completion_logprobs(
        reader, tokenizer, [Completion(prompt, 0, " " + end, "stop") for end in ends], chat=False
    )
    assert [score > float("-inf") for score in scores] == [size <= 64 for size in sizes]
    assert 64 in sizes
    assert max(sizes) > 64
