"""Traps that others fell into, each against the code that a training really runs. The numbers are those of the design
notes; the issues are theirs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.distillation import LENGTH, TRAINING, VOCABULARY, new_student, run
from helpers.loss_inputs import DENSE, authors
from helpers.tiny_data import tokens_of
from helpers.tiny_models import make_model
from torch import Tensor
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from distill_lit import data
from distill_lit.config import CorpusConfig, DataConfig, TermConfig, load_section
from distill_lit.config.training import ObjectiveConfig
from distill_lit.data.loader import PackedLoader, make_batch
from distill_lit.data.packing import IGNORE_INDEX, pack
from distill_lit.losses import LOGIT_LOSSES, LossOutput, build_objective
from distill_lit.losses.sparse import top_k_kl, top_k_tail_kl
from distill_lit.models import check_same_vocabulary, load_model
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.loss import FusedLossSettings
from distill_lit.training.optim import adamw
from distill_lit.utils.exceptions import UserError

KL = {"kl": TermConfig(kind="forward_kl")}
BOTH = {"ce": TermConfig(weight=0.5), "kl": TermConfig(kind="forward_kl", weight=0.5, temperature=2.0)}


def distiller_of(student: Any, teacher: Any, terms: dict, vocabulary: int = VOCABULARY) -> Distiller:
    """A distiller outside a Trainer. teacher: a model."""
    settings = FusedLossSettings(16, False, torch.float32)
    signal = OnlineTeacher(teacher, vocabulary)
    return Distiller(student, signal, build_objective(terms), optimizer=adamw, fused_loss_settings=settings)


def losses_of(distiller: Distiller, batch: dict[str, Tensor], denominator: int | Tensor = 1) -> LossOutput:
    return distiller.loss(distiller.student, batch, denominator=torch.as_tensor(denominator))


def loss_of(distiller: Distiller, batch: dict[str, Tensor], denominator: int | Tensor = 1) -> Tensor:
    return losses_of(distiller, batch, denominator).total


def gradients(module: torch.nn.Module) -> Tensor:
    """All gradients of a student in one row, and none left behind."""
    row = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    module.zero_grad()
    return row


def rows(*documents: list[int], supervised: list[list[bool]] | None = None, length: int = 16) -> dict[str, Tensor]:
    """One batch of documents given as token ids, packed and batched as for training."""
    packed, _ = pack(tokens_of(*documents, supervised=supervised), length)
    return make_batch(packed, np.arange(len(packed)), 1)


def plain_logits(model: Any, ids: list[int]) -> Tensor:
    """The model's own logits (T, V) for one document alone."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Any:
    return load_model(tiny_teacher)


@pytest.fixture
def student(tiny_teacher: Path) -> Any:
    return new_student(tiny_teacher)


def test_trap_1_accumulation_and_mean_are_over_supervised_tokens(
    teacher: Any,
    student: Any,
    prepared: data.PreparedData,
) -> None:
    """trl 4719: a mean of means weighs short micro-batches too much; trl 4105: a mean over positions × vocabulary."""
    distiller, sums = distiller_of(student, teacher, BOTH), []
    for batch, accumulate in ((8, 1), (2, 4), (1, 8)):
        loader = PackedLoader(
            prepared.train, micro_batch_size=batch, gradient_accumulation_steps=accumulate, steps=1, seed=0
        )
        parts = list(loader)
        assert len({int((part["labels"] != IGNORE_INDEX).sum()) for part in parts}) > (accumulate > 1)
        total = sum(loss_of(distiller, part, part["step_tokens"]) for part in parts)
        total.backward()
        sums.append((total.detach(), gradients(student)))
    for total, gradient in sums[1:]:
        torch.testing.assert_close(total, sums[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, sums[0][1], rtol=1e-3, atol=1e-6)
    whole = parts[0] | {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "step_tokens"}
    losses = losses_of(distiller, whole)
    count = losses.num_tokens
    mean = 0.5 * losses.term_sums[0] / count + 0.5 * 4 * losses.term_sums[1] / count
    torch.testing.assert_close(sums[0][0], mean, rtol=1e-5, atol=1e-6)


def test_trap_2_the_first_response_token_counts_and_the_prompt_does_not(teacher: Any, student: Any) -> None:
    """trl 6006: a mask that is not shifted with the labels drops the first answer token or trains on the prompt."""
    prompt, answer = [5, 6, 7], [40, 41, 42]
    ids, marks = prompt + answer, [False] * 3 + [True] * 3
    losses = losses_of(distiller_of(student, teacher, {"ce": TermConfig()}), rows(ids, supervised=[marks]))
    log_q = plain_logits(student, ids).log_softmax(-1)
    expected = -sum(log_q[at - 1, ids[at]] for at in (3, 4, 5))
    assert losses.num_tokens == 3
    torch.testing.assert_close(losses.total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind != "sampled_kl"])
def test_trap_3_padding_is_masked_for_every_loss(kind: str, teacher: Any, student: Any) -> None:
    """optipfair 34: padding that one loss masked and another did not made a ranking of the two."""
    terms, documents = {kind: TermConfig()}, ([9, 10, 11, 12, 13], [20, 21, 22])
    found = []
    for length in (8, 16, 40):
        batch = rows(*documents, length=length)
        batch["input_ids"][batch["document_ids"] == 0] = 77  # whatever stands in the padding
        batch["on_policy_mask"] = authors(length).expand_as(batch["input_ids"])
        total = loss_of(distiller_of(student, teacher, terms), batch, 6)
        total.backward()
        found.append((total.detach(), gradients(student)))
    for total, gradient in found[1:]:
        torch.testing.assert_close(total, found[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-5)


def test_trap_4_padded_vocabularies_are_cut_before_the_softmax(tmp_path: Path, tiny_teacher: Path) -> None:
    """152064 columns against 151936: a padded column with logit 0 holds probability, with −inf it makes NaN gradients."""
    batch, found = rows([9, 10, 11, 12, 13]), []
    for extra, value in ((0, 0.0), (8, 0.0), (20, 50.0), (20, float("-inf"))):
        pair = []
        for padding in (extra, extra // 2):
            model = load_model(tiny_teacher)
            model.resize_token_embeddings(VOCABULARY + padding, mean_resizing=False)
            with torch.no_grad():
                model.get_output_embeddings().weight[VOCABULARY:] = value
            pair.append(model)
        with torch.no_grad():  # another student than its teacher
            for parameter in pair[0].model.layers.parameters():
                parameter.mul_(0.9)
        total = loss_of(distiller_of(*pair, BOTH), batch)
        total.backward()
        gradient = pair[0].get_output_embeddings().weight.grad
        assert gradient[VOCABULARY:].abs().sum() == 0
        found.append((total.detach(), gradient[:VOCABULARY]))
    for total, gradient in found[1:]:
        torch.testing.assert_close(total, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_trap_5_ids_of_another_tokenizer_are_refused(tmp_path: Path, tiny_teacher: Path) -> None:
    """DistillKit 7, 12: vocabularies of one size that number their tokens differently pass a check of sizes."""
    ours = AutoTokenizer.from_pretrained(tiny_teacher)
    state = json.loads((tiny_teacher / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (200, 201))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    for path in tiny_teacher.glob("*token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(ours) == len(theirs)
    with pytest.raises(UserError, match="id 200 is"):
        check_same_vocabulary(ours, theirs)


def test_trap_6_a_truncated_distribution_is_no_distribution() -> None:
    """verl 7856: Σ p log(p/q) over k tokens can be negative and vanishes nowhere; verl 5041: reverse KL on k collapses."""
    p, q = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), torch.tensor([[0.55, 0.43, 0.01, 0.01]]).log()
    truncated = (p.exp() * (p - q))[:, :2].sum()
    assert truncated < 0
    assert top_k_tail_kl(q, p, k=2) > 0
    assert top_k_kl(q, p, k=2) > 0
    assert top_k_tail_kl(p, p, k=2).abs() < 1e-6 and top_k_kl(p, p, k=2).abs() < 1e-6
    whole = {kind for kind, loss in LOGIT_LOSSES.items() if loss.target_forms == ("dense",)}
    assert {"forward_kl", "reverse_kl", "jensen_shannon", "adaptive_kl"} <= whole  # check_signal refuses them on top_k


def tiny_gemma(layers: int, seed: int) -> Gemma2ForCausalLM:
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
        pad_token_id=0,
    )
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.5)  # so that the cap bends the logits
    return model


def test_trap_7_the_fast_path_optimises_what_the_slow_one_does() -> None:
    """trl 5731, 6629: a fused loss with another gradient, or without the cap of the logits."""
    student, teacher = tiny_gemma(1, 0).train(), tiny_gemma(2, 1).eval()
    ids = [9, 10, 11, 12, 13, 14]
    total = loss_of(distiller_of(student, teacher, BOTH), rows(ids), 5)
    total.backward()
    fast = gradients(student)
    logits, labels = student(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:])
    assert logits.abs().max() > 1.5
    p = (plain_logits(teacher, ids)[:-1] / 2).softmax(-1)
    kl = torch.nn.functional.kl_div((logits / 2).log_softmax(-1), p, reduction="batchmean")
    slow = 0.5 * torch.nn.functional.cross_entropy(logits, labels) + 0.5 * 4 * kl
    slow.backward()
    torch.testing.assert_close(total.detach(), slow.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast, gradients(student), rtol=1e-3, atol=1e-5)


def test_trap_8_the_teacher_is_out_of_reach_of_train_optimizer_and_checkpoint(teacher: Any, student: Any) -> None:
    distiller = distiller_of(student, teacher, KL)
    distiller.train()
    assert not teacher.training
    frozen = {id(parameter) for parameter in teacher.parameters()}
    groups = distiller.configure_optimizers().param_groups
    assert not frozen & {id(parameter) for group in groups for parameter in group["params"]}
    assert not frozen & {id(parameter) for parameter in distiller.parameters()}
    assert all(name.startswith("student.") for name in distiller.state_dict())
    loss_of(distiller, rows([9, 10, 11]))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_trap_9_the_teachers_eval_leaves_the_students_dropout_on(teacher: Any, tiny_teacher: Path) -> None:
    """trl 5862: with adapters on one shared model the teacher's `.eval()` switches the student's dropout off."""
    student = new_student(tiny_teacher, dropout=0.5)
    distiller, batch = distiller_of(student, teacher, KL), rows(list(range(9, 24)))
    distiller.train()
    values = {loss_of(distiller, batch).item() for _ in range(3)}
    assert all(module.training for module in student.modules())
    assert len(values) == 3
    shared = distiller_of(student, student, KL)  # one model in both parts: refused as soon as it trains
    shared.train()
    with pytest.raises(UserError, match="frozen"):
        loss_of(shared, batch)


def test_trap_10_the_loss_temperature_changes_the_loss(teacher: Any, student: Any) -> None:
    """verl 5592: a temperature that only reaches the sampler, or that a server's log-probabilities ignore."""
    directions = []
    for temperature in (1.0, 3.0):
        distiller = distiller_of(student, teacher, {"kl": TermConfig(kind="forward_kl", temperature=temperature)})
        loss_of(distiller, rows([9, 10, 11, 12, 13])).backward()
        directions.append(torch.nn.functional.normalize(gradients(student), dim=0))
    assert float(directions[0] @ directions[1]) < 0.99  # not only a factor
    # stored log-probabilities are those at T = 1: no loss softens them but those that renormalise, where that is exact
    assert [kind for kind, loss in LOGIT_LOSSES.items() if set(loss.softenable_forms) - {"dense"}] == [
        "top_k_kl",
        "truncated_kl",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("terms.kl.temprature=2", "did you mean 'temperature'"),
        ("temperature_scalling=none", "did you mean 'temperature_scaling'"),
        ("terms.kl.options={temperature: 2}", "unknown option 'temperature'"),
    ],
)
def test_trap_11_unknown_options_are_not_swallowed(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_objective(load_section(ObjectiveConfig, ["terms.kl.kind=forward_kl", change]).terms)


@pytest.mark.parametrize("add_bos", [False, True])
def test_trap_12_both_models_read_the_same_ids_whatever_their_bos(tmp_path: Path, add_bos: bool) -> None:
    """trl 4392, 5885: one side with a beginning-of-text token, or tokens that end within a letter, shift all that follows.

    Text is tokenised once, by the teacher; what the student's tokenizer would add of itself reaches no model.
    """
    texts = [f"{name} says 漢字 and 🎉." for name in ("Zoë", "Chloé", "Jörg", "Łukasz", "Ömer", "Şule")]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = DataConfig(
        corpora={"text": CorpusConfig(path=f"file:{tmp_path / 'text.jsonl'}")}, sequence_length=64, validation_sequences=1
    )
    folders = [make_model(tmp_path / name, num_layers=1) for name in ("teacher", "student")]
    set_bos(folders[0], add_bos)
    set_bos(folders[1], not add_bos)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in folders)
    assert (ours(texts[0])["input_ids"][0] == 1, theirs(texts[0])["input_ids"][0] == 1) == (add_bos, not add_bos)
    check_same_vocabulary(ours, theirs)
    packed = data.prepare_datasets(config, folders[0], "pypi").train
    document = packed.input_ids[0][packed.document_ids[0] == 1].tolist()
    assert (document[0] == 1) == add_bos
    assert ours.decode(document, skip_special_tokens=True) in texts
    read: list[Tensor] = []
    models = [load_model(folder) for folder in folders]
    for model in models:
        model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    distiller = distiller_of(models[1], models[0], KL)
    for _ in range(2):  # the self-check reads as well, the first time
        read.clear()
        loss_of(distiller, make_batch(packed, np.arange(1), 1))
    assert len(read) == 2 and torch.equal(read[0], read[1])


def set_bos(folder: Path, added: bool) -> None:
    """Makes a tokenizer put <s> before every text, or not."""
    state = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * added + [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": tokens,
    }
    (folder / "tokenizer.json").write_text(json.dumps(state))


def test_trap_13_the_teachers_own_nll_is_logged(
    tmp_path: Path,
    tiny_teacher: Path,
    teacher: Any,
    prepared: data.PreparedData,
) -> None:
    """Distillation loses to plain fine-tuning where the teacher does not fit the data; that must be seen."""
    _, final = run(tmp_path, tiny_teacher, prepared, replace(TRAINING, max_tokens=LENGTH * 8), KL)
    nll = count = 0
    for ids, documents in zip(prepared.validation.input_ids, prepared.validation.document_ids, strict=True):
        for number in range(1, documents.max() + 1):
            text = torch.from_numpy(ids[documents == number].astype(np.int64))
            log_p = plain_logits(teacher, text.tolist()).log_softmax(-1)
            nll -= float(log_p[:-1].gather(-1, text[1:, None]).sum())
            count += len(text) - 1
    assert final["validation/teacher_nll"] == pytest.approx(nll / count, rel=1e-4)
