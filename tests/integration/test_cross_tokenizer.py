"""A teacher with another tokenizer: bytes, spans, losses by hand, and what equal tokenizers must give."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, tiny_models
from helpers.distillation import LENGTH, TRAINING, VOCABULARY, new_student, run
from helpers.rounding import bfloat16_default
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from distill_lit import data
from distill_lit.config import TermConfig, load_experiment
from distill_lit.data.loader import ValidationLoader, make_batch
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.losses import build_objective, fused_linear_loss, label_logprobs_from_hidden
from distill_lit.losses.cross_tokenizer import alm, uld
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.targets import SpanTarget
from distill_lit.models import load_model, load_tokenizer, model_folder
from distill_lit.teachers import CrossTokenizerTeacher, OnlineTeacher
from distill_lit.teachers.token_alignment import align_tokens, token_bytes, trim_partial_characters
from distill_lit.training.loss import DistillationLoss
from distill_lit.utils.exceptions import UserError

TEXTS = ["A river, a stone.", "Überraschung: 日本語 and 🙂🙂 emoji", "  two  spaces\nand\tlines", "naïve café — 5€"]


def piece_tokenizer(folder: Path) -> Path:
    """SentencePiece-like, as Gemma's: ▁ for a blank, bytes for what it has no piece for, a BOS before every text."""
    plain = Tokenizer(models.BPE())
    plain.normalizer, plain.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    plain.train_from_iterator(
        tiny_models.sentences(300, seed=5), trainers.BpeTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    )
    learned = json.loads(plain.to_str())["model"]
    vocabulary = {**learned["vocab"], **{f"<0x{b:02X}>": len(learned["vocab"]) + b for b in range(256)}}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny teacher with such a tokenizer and a vocabulary of its own."""
    folder = tiny_models.make_model(tmp_path_factory.mktemp("pieces"), vocab_size=512, seed=7)
    return piece_tokenizer(folder)


def cross_tokenizer_teacher(teacher: Path, student: Path) -> CrossTokenizerTeacher:
    tokenizer = load_tokenizer(teacher)
    return CrossTokenizerTeacher(
        load_model(teacher), max(tokenizer.get_vocab().values()) + 1, tokenizer, load_tokenizer(student)
    )


# ---------------------------------------------------------------- bytes and spans


def test_spans_by_hand() -> None:
    # "ab" "cde" "f"  against  BOS "a" "bcde" "" "f"
    spans = align_tokens([2, 3, 1], [0, 1, 4, 0, 1])
    assert spans.student.tolist() == [[0, 2], [2, 3]]
    assert spans.teacher.tolist() == [[1, 3], [4, 5]]
    assert align_tokens([], []).student.shape == (0, 2)
    with pytest.raises(UserError, match="different lengths"):
        align_tokens([2], [1])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=20), st.randoms(use_true_random=False))
def test_spans_cover_every_byte_once_and_cannot_be_shorter(sizes: list[int], draw: object) -> None:
    total, theirs = sum(sizes), []
    while sum(theirs) < total:
        theirs.append(min(draw.randint(0, 5), total - sum(theirs)))
    spans = align_tokens(sizes, theirs)
    ours_of = [sum(sizes[a:b]) for a, b in spans.student]
    assert ours_of == [sum(theirs[a:b]) for a, b in spans.teacher]
    assert sum(ours_of) == total
    common = set(np.cumsum(sizes)) & set(np.cumsum(theirs)) - {0}
    assert len(spans.student) == len(common)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_are_the_bytes_of_the_text(tiny_teacher: Path, pieces: Path, text: str) -> None:
    for folder in (tiny_teacher, pieces):
        tokenizer = load_tokenizer(folder)
        table = token_bytes(tokenizer)
        assert b"".join(table[i] for i in tokenizer(text)["input_ids"]) == text.encode()
        assert table[tokenizer.bos_token_id] == table[tokenizer.eos_token_id] == b""


def test_a_character_cut_in_two_is_left_out() -> None:
    data = "é日x🙂".encode()
    assert trim_partial_characters(data) == ("é日x🙂", 0)
    assert trim_partial_characters(data[1:]) == ("日x🙂", 1)
    assert trim_partial_characters(data[1:-2]) == ("日x", 1)
    assert trim_partial_characters("🙂".encode()[1:3]) == ("", 0) or trim_partial_characters("🙂".encode()[1:3])[0] == ""


def test_an_unknown_kind_of_tokenizer_is_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[U]": 1}, unk_token="[U]")))
    with pytest.raises(UserError, match="byte by byte"):
        token_bytes(words)


# ---------------------------------------------------------------- losses


def said(**parts: torch.Tensor) -> SpanTarget:
    count = len(next(iter(parts.values())))
    is_same, lengths = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.long)
    empty = {"logits": None, "same_prefix": is_same, "span_length": lengths}
    spans = {name: torch.zeros(count) for name in ("teacher_span_logprob", "student_span_logprob", "label_logprobs")}
    return SpanTarget(**{**empty, **spans, **parts})


def test_uld_by_hand() -> None:
    q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    p = torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    teacher = said(logits=p.log(), same_prefix=torch.tensor([True, False]))
    # sorted: .7 .1 .1 .1 against .6 .3 .1 0
    assert uld(q.log(), teacher).tolist() == pytest.approx([0.1 + 0.2 + 0 + 0.1, 0])
    assert uld(q.log(), teacher, k=2)[0] == pytest.approx(0.1 + 0.2 + abs(0.8 - 0.9))


def test_uld_does_not_see_how_tokens_are_numbered() -> None:
    logits = torch.randn(5, 40)
    shuffled = logits[:, torch.randperm(40)]
    assert uld(logits.log_softmax(-1), said(logits=shuffled)).abs().max() < 1e-5


@pytest.mark.parametrize("tau", [1.0, 20.0])
def test_span_likelihood_equals_autograd_over_whole_spans(tau: float) -> None:
    """Value and gradient against the formula written for spans, differentiated through all their tokens at once."""
    torch.manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    labels, spans = torch.tensor([3, 1, 4, 1, 5, 2]), torch.tensor([0, 0, 1, -1, 2, 2])
    log_p = torch.tensor([-1.5, -0.3, -4.0], dtype=torch.float64)

    chosen = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    totals = torch.stack([chosen[spans == i].sum() for i in range(3)])
    p, q = (log_p / tau).exp(), (totals / tau).exp()
    plain = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    (right,) = torch.autograd.grad(plain, logits)

    inside = spans >= 0
    teacher = said(
        span_length=torch.where(inside, torch.bincount(spans[inside])[spans], 0),
        teacher_span_logprob=torch.where(inside, log_p[spans], 0.0),
        student_span_logprob=torch.where(inside, totals.detach()[spans], 0.0),
    )
    found = alm(logits.log_softmax(-1), teacher, labels, tau)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found[3] == 0
    assert float(found.sum()) == pytest.approx(float(plain), rel=1e-9)
    torch.testing.assert_close(gradient, right, rtol=1e-8, atol=1e-12)


def test_span_likelihood_is_finite_where_probabilities_are_0_or_1() -> None:
    logits = torch.tensor([[60.0, 0.0], [0.0, 60.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    teacher = said(teacher_span_logprob=torch.tensor([-50.0, -1e-9]), student_span_logprob=torch.tensor([0.0, -60.0]))
    loss = alm(logits.log_softmax(-1), teacher, labels)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------- the teacher


def test_equal_tokenizers_give_one_span_per_token_and_the_live_teachers_numbers(
    tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    batch = make_batch(prepared.train, np.arange(5), 1)
    chosen = batch["labels"][:, 1:] >= 0
    target = cross_tokenizer_teacher(tiny_teacher, tiny_teacher).target(batch, chosen)
    live = OnlineTeacher(load_model(tiny_teacher), VOCABULARY).target(batch, chosen)
    log_p = live.lm_head.scale_and_cap(live.lm_head.project(live.hidden_states)).log_softmax(-1)
    labels = batch["labels"][:, 1:][chosen]
    assert (target.span_target.span_length == 1).all()
    assert target.span_target.same_prefix.all()
    right = log_p.gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(target.span_target.teacher_span_logprob, right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target.hidden_states, live.hidden_states, atol=1e-4, rtol=1e-3)


def test_spans_of_two_tokenizers_against_a_loop_over_documents(
    tiny_teacher: Path, pieces: Path, prepared: data.PreparedData
) -> None:
    """Each document alone: its text through the other tokenizer with its BOS, log-probabilities of its own tokens, summed
    between the bytes at which both have a cut."""
    batch = make_batch(prepared.train, np.arange(4), 1)
    chosen = batch["labels"][:, 1:] >= 0
    target = cross_tokenizer_teacher(pieces, tiny_teacher).target(batch, chosen)
    ours, theirs, model = load_tokenizer(tiny_teacher), load_tokenizer(pieces), load_model(pieces)
    our_bytes, their_bytes = token_bytes(ours), token_bytes(theirs)
    words = max(theirs.get_vocab().values()) + 1
    place = (chosen.flatten().cumsum(0) - 1).view(chosen.shape)
    found = covered = 0
    for row in range(4):
        for number in range(1, int(batch["document_ids"][row].max()) + 1):
            columns = torch.nonzero(batch["document_ids"][row] == number)[:, 0]
            ids = batch["input_ids"][row, columns].tolist()
            body = ids[:-1] if ids[-1] == ours.eos_token_id else ids
            text = b"".join(our_bytes[i] for i in body).decode()
            mine = theirs(text)["input_ids"]
            with torch.no_grad():
                log_p = model(torch.tensor([mine])).logits[0, :-1, :words].log_softmax(-1)
            values = [0.0, *(float(log_p[i - 1, mine[i]]) for i in range(1, len(mine)))]
            a = np.cumsum([len(our_bytes[i]) for i in body])
            b = np.cumsum([len(their_bytes[i]) for i in mine])
            before = 0
            for end in sorted(set(a.tolist()) & set(b.tolist()) - {0}):
                tokens = [i for i in range(len(body)) if before < a[i] <= end]
                right = sum(v for v, e in zip(values, b, strict=True) if before < e <= end)
                before = end
                if tokens[0] == 0:
                    continue  # the first token of a document is not predicted by the student
                numbers = [int(place[row, columns[i] - 1]) for i in tokens]
                assert set(target.span_target.span_length[numbers].tolist()) == {len(tokens)}
                assert target.span_target.teacher_span_logprob[numbers].tolist() == pytest.approx(
                    [right] * len(tokens), abs=1e-3
                )
                assert target.span_target.same_prefix[numbers].tolist() == [True] + [False] * (len(tokens) - 1)
                found += 1
                covered += len(tokens)
    assert found > 20
    ends = int((target.span_target.span_length > 0).sum()) - covered
    assert ends == int((batch["labels"][:, 1:][chosen] == ours.eos_token_id).sum())  # both say where a document ends
    assert covered > 0.6 * int(chosen.sum())


def test_spans_are_summed_in_float32_whatever_the_default_format_is(
    tiny_teacher: Path, pieces: Path, prepared: data.PreparedData
) -> None:
    batch, teacher = make_batch(prepared.train, np.arange(2), 1), cross_tokenizer_teacher(pieces, tiny_teacher)
    chosen = batch["labels"][:, 1:] >= 0
    own = -torch.rand(int(chosen.sum()), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    plain = teacher.target(batch, chosen).with_student_logprobs(own).span_target
    with bfloat16_default():
        found = teacher.target(batch, chosen).with_student_logprobs(own).span_target
    for one, other in zip(found[1:], plain[1:], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_the_fused_head_gives_the_plain_losses_of_a_foreign_teacher(
    tiny_teacher: Path, pieces: Path, prepared: data.PreparedData
) -> None:
    batch = make_batch(prepared.train, np.arange(4), 1)
    chosen = batch["labels"][:, 1:] >= 0
    labels = batch["labels"][:, 1:][chosen]
    head = get_lm_head(load_model(tiny_teacher), VOCABULARY)
    torch.manual_seed(0)
    hidden = torch.randn(len(labels), 32, requires_grad=True)
    own = label_logprobs_from_hidden(hidden.detach(), head, labels, 50)
    target = cross_tokenizer_teacher(pieces, tiny_teacher).target(batch, chosen).with_student_logprobs(own)
    terms = {"uld": TermConfig(options={"k": 64}), "span": TermConfig(kind="alm", weight=0.5)}
    losses = fused_linear_loss(
        build_objective(terms),
        hidden,
        head,
        target,
        labels,
        denominator=torch.tensor(7),
        chunk_size=13,
        compute_metrics=True,
    )
    log_q = head.scale_and_cap(head.project(hidden)).log_softmax(-1)
    logits = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states))
    whole = target.span_target._replace(logits=logits)
    plain = (uld(log_q, whole, 64).sum() + 0.5 * alm(log_q, whole, labels).sum()) / 7
    torch.testing.assert_close(losses.total, plain, rtol=1e-5, atol=1e-6)
    (fused,) = torch.autograd.grad(losses.total, hidden)
    (right,) = torch.autograd.grad(plain, hidden)
    torch.testing.assert_close(fused, right, rtol=1e-3, atol=1e-5)
    means = {name: (float(mean), int(count)) for name, (mean, count) in losses.metric_means().items()}
    assert set(means) == {"student_nll", "student_entropy", "teacher_nll", "student_span_nll", "in_spans"}
    inside = target.span_target.span_length > 0
    assert 0 < int(inside.sum()) < len(labels)
    theirs = -float(target.span_target.label_logprobs[inside].mean())  # tokens in no span are no tokens of 0 nats
    assert means["teacher_nll"] == (pytest.approx(theirs, rel=1e-4), int(inside.sum()))
    assert means["student_span_nll"] == (pytest.approx(-float(own[inside].mean()), rel=1e-4), int(inside.sum()))
    assert means["student_nll"] == (pytest.approx(-float(own.mean()), rel=1e-4), len(labels))
    assert means["in_spans"] == (pytest.approx(float(inside.float().mean()), rel=1e-4), len(labels))


@pytest.mark.parametrize("kind", ["alm", "uld"])
def test_a_student_comes_nearer_to_a_teacher_with_another_tokenizer(
    tmp_path: Path, tiny_teacher: Path, pieces: Path, prepared: data.PreparedData, kind: str
) -> None:
    from dataclasses import replace

    longer = replace(TRAINING, max_tokens=LENGTH * 8 * 25)
    _, final = run(
        tmp_path,
        tiny_teacher,
        prepared,
        longer,
        {"far": TermConfig(kind=kind)},
        cross_tokenizer_teacher(pieces, tiny_teacher),
    )
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert final["validation/far"] < 0.9 * first["validation/far"]
    teacher, nats, tokens, all_tokens = cross_tokenizer_teacher(pieces, tiny_teacher), 0.0, 0, 0
    for batch in ValidationLoader(prepared.validation, micro_batch_size=8):
        said = teacher.target(batch, batch["labels"][:, 1:] >= 0).span_target
        nats, tokens = nats - float(said.label_logprobs.sum()), tokens + int((said.span_length > 0).sum())
        all_tokens += len(said.span_length)
    assert final["validation/teacher_nll"] == pytest.approx(nats / tokens, rel=1e-4)
    assert final["validation/in_spans"] == pytest.approx(tokens / all_tokens, rel=1e-4)


def batch_of(tokenizer: PreTrainedTokenizerFast, *texts: str) -> dict[str, torch.Tensor]:
    """One row of these documents, each with an end."""
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    numbers = [number for number, ids in enumerate(documents, start=1) for _ in ids]
    return {"input_ids": torch.tensor([[i for ids in documents for i in ids]]), "document_ids": torch.tensor([numbers])}


def test_a_document_that_the_teachers_tokenizer_changes_is_left_out_and_no_other(
    tmp_path: Path, tiny_teacher: Path, pieces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A normaliser such as Qwen2's joins what the text has apart."""
    tokenizer = load_tokenizer(piece_tokenizer(tiny_models.make_model(tmp_path, vocab_size=512)))
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), backend.normalizer])
    ours = load_tokenizer(tiny_teacher)
    teacher = CrossTokenizerTeacher(load_model(pieces), 476, tokenizer, ours)
    batch = batch_of(ours, "a river", "cafe\u0301", "a stone")
    numbers = batch["document_ids"][:, 1:]
    target = teacher.target(batch, torch.ones_like(numbers, dtype=torch.bool))
    assert (target.span_ids[numbers[0] == 2] == -1).all()
    assert not target.span_target.same_prefix[numbers[0] == 2].any()
    plain = {"input_ids": batch_of(ours, "a stone")["input_ids"]}  # without document_ids: one a row
    alone = teacher.target(plain, torch.ones(1, int((numbers == 3).sum()) - 1, dtype=torch.bool))
    torch.testing.assert_close(
        target.span_target.teacher_span_logprob[numbers[0] == 3][1:], alone.span_target.teacher_span_logprob
    )
    teacher.target(batch, torch.ones_like(numbers, dtype=torch.bool))
    assert len([record for record in caplog.records if "tokenizer changes" in record.message]) == 1


def test_a_teacher_that_changes_nearly_every_document_is_refused(
    tiny_teacher: Path, pieces: Path, prepared: data.PreparedData
) -> None:
    teacher = cross_tokenizer_teacher(pieces, tiny_teacher)
    teacher.tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("e", "3"), teacher.tokenizer.backend_tokenizer.normalizer]
    )
    batch = make_batch(prepared.train, np.arange(40), 1)
    with pytest.raises(UserError, match=r"teacher.source: cross_tokenizer, and the teacher's tokenizer changes \d+ of"):
        teacher.target(batch, batch["labels"][:, 1:] >= 0)


def test_a_special_token_in_a_text_is_read_as_the_text_it_is(tiny_teacher: Path, pieces: Path) -> None:
    ours, table = load_tokenizer(tiny_teacher), token_bytes(load_tokenizer(pieces))
    batch = batch_of(ours, "the <eos> of it")
    chosen = torch.ones(1, batch["input_ids"].shape[1] - 1, dtype=torch.bool)
    teacher = cross_tokenizer_teacher(pieces, tiny_teacher)
    ids = batch["input_ids"][0].numpy()
    piece = teacher._align_document(0, ids, np.arange(len(ids)))
    assert b"".join(table[i] for i in piece.teacher_ids) == b"the <eos> of it"
    assert piece.teacher_ids.count(teacher.tokenizer.eos_token_id) == 1  # where the document ends
    assert (teacher.target(batch, chosen).span_target.span_length > 0).float().mean() > 0.5


# ---------------------------------------------------------------- no id reaches the other model unnoticed


def test_a_teacher_in_train_mode_is_refused(tiny_teacher: Path, pieces: Path, prepared: data.PreparedData) -> None:
    teacher = cross_tokenizer_teacher(pieces, tiny_teacher)
    teacher.online_teacher.model.train()
    batch = make_batch(prepared.train, np.arange(2), 1)
    with pytest.raises(UserError, match="frozen"):
        teacher.target(batch, batch["labels"][:, 1:] >= 0)


def test_a_loss_on_token_numbers_cannot_read_a_foreign_teacher(
    tiny_teacher: Path, pieces: Path, prepared: data.PreparedData
) -> None:
    objective = build_objective({"kl": TermConfig(kind="forward_kl")})
    loss = DistillationLoss(objective, cross_tokenizer_teacher(pieces, tiny_teacher), VOCABULARY)
    batch = make_batch(prepared.train, np.arange(2), 1)
    with pytest.raises(UserError, match="cross_tokenizer"):
        loss(new_student(tiny_teacher), batch)


QUICK = ROOT / "experiments/quickstart.yaml"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["teacher.source=cross_tokenizer"],
            "forward_kl needs a teacher that is dense, and teacher.source cross_tokenizer is cross_tokenizer",
        ),
        (["teacher.source=online", "objective.terms.kl.kind=uld"], "uld needs a teacher that is cross_tokenizer"),
        (
            ["teacher.source=cross_tokenizer", "objective.terms.kl.kind=uld", "objective.terms.kl.temperature=2"],
            "temperature",
        ),
        (
            ["teacher.source=cross_tokenizer", "objective.terms.kl.kind=uld", "data.corpora.piqa.messages=m"],
            "plain text only",
        ),
    ],
)
def test_bad_input_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load_experiment(QUICK, changes))


@pytest.mark.parametrize("source", ["online", "offline", "none", "cross_tokenizer"])
def test_a_student_with_other_tokens_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_teacher: Path, pieces: Path, source: str
) -> None:
    kind = {"cross_tokenizer": "uld", "none": "ce"}.get(source, "forward_kl")
    file = tmp_path / "far.yaml"
    file.write_text(f"""
name: far
teacher: {{model: "file:{pieces}", source: {source}}}
students: {{near: {{num_layers: 1}}, far: {{from: "file:{tiny_teacher}"}}}}
data: {{corpora: {{text: {{path: "file:{tmp_path}"}}}}}}
objective: {{terms: {{one: {{kind: {kind}}}}}}}
grid: {{student: [{"" if source == "cross_tokenizer" else "near, "}far]}}
""")
    config = load_experiment(file)
    if source == "cross_tokenizer":
        check_against_teacher(plan_runs(config))
        return
    with pytest.raises(UserError, match=r"^students.far.from: tokenizers differ: id .* cross-tokenizer objective"):
        check_against_teacher(plan_runs(config))


@pytest.mark.slow
def test_gemma_and_smollm2_agree_on_bytes_and_the_teacher_knows_the_text() -> None:
    """The real pair: every text comes back byte by byte, nearly all tokens are in spans, a correct teacher finds plain
    English probable (a shifted or mis-joined one would not), and a first span is not lost to Gemma's BOS."""
    config = load_experiment(ROOT / "experiments/cross_tokenizer.yaml")
    teacher, student = model_folder(config.teacher.model), model_folder(config.students["smollm2"].from_)
    tables = {folder: token_bytes(load_tokenizer(folder)) for folder in (teacher, student)}
    texts = [*TEXTS, "def f(x):\n    return x  # 1,234.5", "ﬁne\u00a0print\u200b and a\u0301", "The quick brown fox."]
    for folder, table in tables.items():
        tokenizer = load_tokenizer(folder)
        for text in texts:
            assert b"".join(table[i] for i in tokenizer(text)["input_ids"]) == text.encode(), (folder.name, text)
    tokenizer = load_tokenizer(student)
    text = "Water freezes at zero degrees Celsius and boils at one hundred degrees Celsius at sea level."
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    batch = {"input_ids": torch.tensor([ids]), "document_ids": torch.ones(1, len(ids), dtype=torch.long)}
    chosen = torch.ones(1, len(ids) - 1, dtype=torch.bool)
    target = cross_tokenizer_teacher(teacher, student).target(batch, chosen)
    assert (target.span_target.span_length > 0).float().mean() > 0.9
    assert bool(target.span_target.same_prefix[0])
    nll = -float(target.span_target.label_logprobs.sum()) / len(text.encode())
    assert nll < 0.7  # nats per byte
