"""The fused head against whole logits and autograd."""

import pytest
import torch
from helpers.loss_inputs import DENSE, authors, softened, sparse_targets

from distill_lit.config import TermConfig
from distill_lit.losses import (
    LOGIT_LOSSES,
    build_objective,
    chunk_size_for_budget,
    distillation_loss,
    fused_linear_distillation_loss,
    fused_linear_loss,
)
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.targets import DenseTarget, TeacherTarget
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError

N, D, D_T, V, PADDED = 37, 8, 12, 29, 32
TERMS = {
    **{kind: softened(kind, 1.5) for kind in DENSE if kind != "sampled_kl"},
    "smooth": {"ce": TermConfig(options={"label_smoothing": 0.1})},
    "ce + forward_kl": {"ce": TermConfig(weight=0.3), "kl": TermConfig(kind="forward_kl", weight=0.7)},
    "three": {
        "ce": TermConfig(weight=0.3),
        "a": TermConfig(kind="forward_kl"),
        "b": TermConfig(kind="reverse_kl", temperature=3),
    },
}
SPARSE = [(kind, form) for kind, loss in LOGIT_LOSSES.items() for form in loss.target_forms if form in ("top_k", "sampled")]
HEADS = {"plain": {}, "scaled": {"scale": 0.25}, "capped": {"softcap": 5.0}, "both": {"scale": 2.0, "softcap": 3.0}}


def make(dtype: torch.dtype, bias: bool, scale: float = 1.0, softcap: float = 0.0) -> tuple:
    """(hidden, head, dense target, labels): a padded head, and a teacher of another width and another cap."""
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(PADDED, D, dtype=dtype, requires_grad=True)
    offset = torch.randn(PADDED, dtype=dtype, requires_grad=True) if bias else None
    teacher_head = LMHead(torch.randn(PADDED + 5, D_T, dtype=dtype), None, 1.0, softcap, V)
    head = LMHead(weight, offset, scale, softcap, V)
    return hidden, head, DenseTarget(torch.randn(N, D_T, dtype=dtype), teacher_head), torch.randint(0, V, (N,))


def logits_of(target: TeacherTarget) -> object:
    """What `distillation_loss` takes for a target."""
    return (
        target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states))
        if isinstance(target, DenseTarget)
        else target
    )


def gradients(head: LMHead, hidden: torch.Tensor) -> list[torch.Tensor]:
    found = [t.grad.clone() for t in (hidden, head.weight, head.bias) if t is not None]
    for tensor in (hidden, head.weight, head.bias):
        if tensor is not None:
            tensor.grad = None
    return found


def compare(
    terms: dict,
    dtype: torch.dtype,
    bias: bool,
    tolerance: float,
    compiled: bool = False,
    form: str = "dense",
    **head: float,
) -> None:
    objective = build_objective(terms)
    hidden, student, dense, labels = make(dtype, bias, **head)
    target = sparse_targets(dense, labels)[form]
    options = {"denominator": torch.tensor(50), "on_policy_mask": authors(N), "compute_metrics": True}
    fused = fused_linear_loss(objective, hidden, student, target, labels, chunk_size=10, compiled=compiled, **options)
    (2.0 * fused.total).backward()
    got = gradients(student, hidden)
    logits = student.scale_and_cap(student.project(hidden))
    plain = distillation_loss(objective, logits, logits_of(target), labels, **options)
    (2.0 * plain.total).backward()
    wanted = gradients(student, hidden)
    torch.testing.assert_close(fused.total, plain.total, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(fused.term_sums, plain.term_sums, rtol=tolerance, atol=tolerance * N)
    assert fused.metric_sums.keys() == plain.metric_sums.keys()
    for name, value in plain.metric_sums.items():
        torch.testing.assert_close(fused.metric_sums[name], value, rtol=tolerance, atol=tolerance * N, msg=name)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_equal_in_float64(terms: dict, head: dict) -> None:
    compare(terms, torch.float64, bias=True, tolerance=1e-11, **head)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
def test_equal_in_float32_without_bias(terms: dict) -> None:
    compare(terms, torch.float32, bias=False, tolerance=2e-5)


@pytest.mark.parametrize(("kind", "form"), SPARSE)
def test_equal_for_a_sparse_teacher(kind: str, form: str) -> None:
    compare({"ce": TermConfig(), kind: TermConfig()}, torch.float64, bias=True, tolerance=1e-11, form=form, softcap=5.0)


def test_draws_are_the_same_for_the_same_seed() -> None:
    hidden, student, target, labels = make(torch.float64, bias=False)
    options = {"denominator": torch.tensor(N), "chunk_size": N}
    totals = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        totals.append(
            fused_linear_loss(build_objective({"sampled_kl": TermConfig()}), hidden, student, target, labels, **options)
            .total.detach()
            .item()
        )
    assert totals[0] == totals[1] != totals[2]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "top_k", "sampled"])
def test_equal_when_compiled(form: str) -> None:
    """All losses that can read the target in one objective, at two temperatures where they have one."""
    kinds = [
        kind for kind, loss in LOGIT_LOSSES.items() if form in loss.target_forms and (kind, form) != ("sampled_kl", "dense")
    ]
    terms = {kind: TermConfig() for kind in kinds} | {"ce": TermConfig(options={"label_smoothing": 0.1})}
    if form == "dense":
        terms |= {
            f"soft {kind}": TermConfig(kind=kind, temperature=1.7) for kind in kinds if LOGIT_LOSSES[kind].softenable_forms
        }
    compare(terms, torch.float32, bias=True, tolerance=1e-4, compiled=True, form=form, softcap=5.0)


def test_padded_columns_get_no_gradient_and_no_probability() -> None:
    hidden, student, target, labels = make(torch.float64, bias=True)
    objective = build_objective(TERMS["ce + forward_kl"])
    arguments = (target, labels)
    first = fused_linear_loss(objective, hidden, student, *arguments, denominator=torch.tensor(N))
    with torch.no_grad():
        student.weight[V:] += 100.0
    second = fused_linear_loss(objective, hidden, student, *arguments, denominator=torch.tensor(N))
    second.total.backward()
    assert first.total.item() == second.total.item()
    assert student.weight.grad[V:].abs().max() == 0
    assert student.weight.grad[:V].abs().min() > 0


def test_chunk_size_does_not_matter() -> None:
    objective = build_objective(TERMS["three"])
    hidden, student, target, labels = make(torch.float64, bias=False)
    totals = [
        fused_linear_loss(
            objective, hidden, student, target, labels, denominator=torch.tensor(N), chunk_size=chunk
        ).total.item()
        for chunk in (1, 7, N, 1000)
    ]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-12)


def test_without_gradient_the_same_numbers() -> None:
    objective = build_objective(TERMS["three"])
    hidden, student, target, labels = make(torch.float64, bias=True)
    arguments = (objective, hidden, student, target, labels)
    trained = fused_linear_loss(*arguments, denominator=torch.tensor(N), compute_metrics=True)
    with torch.no_grad():
        evaluated = fused_linear_loss(*arguments, denominator=torch.tensor(N), compute_metrics=True)
    torch.testing.assert_close(evaluated.total, trained.total.detach())
    torch.testing.assert_close(evaluated.term_sums, trained.term_sums)
    assert evaluated.metric_sums.keys() == trained.metric_sums.keys()


def test_autocast_changes_neither_numbers_nor_gradient() -> None:
    """The formats are those of the arguments: bfloat16 products where hidden states are bfloat16, a float32 softmax."""
    objective = build_objective(TERMS["three"])
    hidden, student, target, labels = make(torch.float32, bias=True)
    states = hidden.detach().bfloat16().requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            target_ = DenseTarget(target.hidden_states.bfloat16(), target.lm_head.cast(torch.bfloat16))
            total = fused_linear_loss(objective, states, student, target_, labels, denominator=torch.tensor(N)).total
        total.backward()
        assert total.dtype == torch.float32 and student.weight.grad.dtype == torch.float32
        found.append((total.detach(), states.grad, *gradients(student, states)))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_bfloat16_products_stay_near_float32() -> None:
    objective = build_objective(TERMS["three"])
    hidden, student, target, labels = make(torch.float32, bias=True)
    fused_linear_loss(objective, hidden, student, target, labels, denominator=torch.tensor(N)).total.backward()
    exact = gradients(student, hidden)
    states = hidden.detach().bfloat16().requires_grad_()
    target_ = DenseTarget(target.hidden_states.bfloat16(), target.lm_head.cast(torch.bfloat16))
    fused_linear_loss(objective, states, student, target_, labels, denominator=torch.tensor(N)).total.backward()
    for near, wanted in zip(gradients(student, states), exact, strict=True):
        assert (near.float() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("loss_scale", [1024.0, 65536.0])
def test_float16_gradients_do_not_underflow_in_steps_of_many_tokens(loss_scale: float) -> None:
    """As under precision="16-mixed": the mean over 8192 tokens, times a GradScaler's factor, whose first is no float16."""
    kl = TermConfig(kind="forward_kl", weight=0.5, temperature=2.0)
    objective = build_objective({"ce": TermConfig(weight=0.5), "kl": kl})
    torch.manual_seed(0)
    tokens, width, size = 64, 16, 4000
    hidden, weight, teacher = torch.randn(tokens, width), torch.randn(size, width) / 4, torch.randn(size, width) / 4
    labels, found = torch.randint(0, size, (tokens,)), []
    for dtype in (torch.float16, torch.float64):
        states, own = hidden.half().to(dtype).requires_grad_(), weight.half().double().requires_grad_()
        target = DenseTarget(hidden.half().to(dtype), LMHead(teacher.half().to(dtype), None, 1.0, 0.0, size))
        head = LMHead(own if dtype == torch.float64 else own.float().detach().requires_grad_(), None, 1.0, 0.0, size)
        total = fused_linear_loss(
            objective, states, head, target, labels, denominator=torch.tensor(8192), chunk_size=20
        ).total
        (loss_scale * total).backward()
        found.append((total.detach(), states.grad, head.weight.grad))
    for near, exact in zip(*found, strict=True):
        assert (near.double() - exact).norm() < 3e-3 * exact.norm()


def test_a_second_backward_pass_is_refused_in_words() -> None:
    hidden, student, target, labels = make(torch.float64, bias=False)
    total = fused_linear_loss(
        build_objective(TERMS["forward_kl"]), hidden, student, target, labels, denominator=torch.tensor(N)
    ).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute them again"):
        total.backward()


@pytest.mark.parametrize("form", ["dense", "top_k", "sampled"])
def test_no_tokens_give_a_loss_of_zero_and_a_gradient_of_zero(form: str) -> None:
    """A rank whose rows have no label left must still take part in the step, and in what is measured of it."""
    kind = {"dense": "three", "top_k": "top_k_kl", "sampled": "sampled_kl"}[form]
    terms = TERMS.get(kind) or softened(kind, 1.0)
    hidden, student, dense, labels = make(torch.float64, bias=True)
    objective, options = build_objective(terms), {"denominator": torch.tensor(N), "compute_metrics": True}
    some = fused_linear_loss(objective, hidden, student, sparse_targets(dense, labels)[form], labels, **options)
    nothing = sparse_targets(DenseTarget(dense.hidden_states[:0], dense.lm_head), labels[:0])[form]
    found = fused_linear_loss(objective, hidden[:0], student, nothing, labels[:0], compiled=True, **options)
    found.total.backward()
    assert found.total.item() == 0.0
    assert student.weight.grad.abs().max() == 0 and student.bias.grad.abs().max() == 0
    assert found.metric_sums.keys() == some.metric_sums.keys()
    assert all(value.item() == 0 for value in found.metric_sums.values())


@pytest.mark.parametrize("label", [-1, V])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_label_that_is_no_token_is_refused(label: int, compiled: bool) -> None:
    """Compiled code finds it in no column, and would take it for certain."""
    hidden, student, target, labels = make(torch.float32, bias=False)
    labels[1] = label
    with pytest.raises(UserError, match=f"labels: {label} is none of the {V} tokens that are compared"):
        fused_linear_loss(
            build_objective(TERMS["three"]), hidden, student, target, labels, denominator=torch.tensor(N), compiled=compiled
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lm_head_bias": torch.zeros(V)}, "lm_head_bias: lm_head_weight is a whole head"),
        ({"teacher_lm_head_bias": torch.zeros(V)}, "teacher_lm_head_bias: teacher_lm_head_weight is a whole head"),
        ({"vocab_size": V + 1}, f"vocab_size: {V + 1} tokens are compared, and lm_head_weight has {V} rows"),
    ],
)
def test_what_a_head_would_not_take_up_is_refused(options: dict, words: str) -> None:
    hidden, student, target, labels = make(torch.float32, bias=False)
    student = student._replace(vocab_size=V)
    with pytest.raises(UserError, match=f"^{words}"):
        fused_linear_distillation_loss(hidden, student, target.hidden_states, target.lm_head, labels, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_equal_on_cuda() -> None:
    objective = build_objective(TERMS["three"])
    hidden, student, target, labels = make(torch.float32, bias=False)
    cpu = fused_linear_loss(objective, hidden, student, target, labels, denominator=torch.tensor(N))
    there = fused_linear_loss(
        objective,
        hidden.cuda(),
        student._replace(weight=student.weight.cuda()),
        DenseTarget(target.hidden_states.cuda(), target.lm_head._replace(weight=target.lm_head.weight.cuda())),
        labels.cuda(),
        denominator=torch.tensor(N),
        compiled=True,
    )
    torch.testing.assert_close(there.term_sums.cpu(), cpu.term_sums, rtol=1e-4, atol=1e-4)


def test_second_derivative_is_refused() -> None:
    objective = build_objective(TERMS["forward_kl"])
    hidden, student, target, labels = make(torch.float64, bias=False)
    total = fused_linear_loss(objective, hidden, student, target, labels, denominator=torch.tensor(N)).total
    (first,) = torch.autograd.grad(total, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        first.sum().backward()


def test_teacher_in_inference_mode_is_accepted() -> None:
    objective = build_objective(TERMS["three"])
    hidden, student, target, labels = make(torch.float32, bias=False)
    with torch.inference_mode():
        frozen = DenseTarget(target.hidden_states * 1.0, target.lm_head)
    fused_linear_loss(objective, hidden, student, frozen, labels, denominator=torch.tensor(N)).total.backward()
    assert torch.isfinite(hidden.grad).all()


def test_logits_take_a_tenth_of_one_gpu_and_512_mebibytes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * 2**30

    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: asked.append(device) or Card)
    gpu = torch.device("cuda")
    assert hardware.logits_budget(gpu) == 8192
    assert hardware.logits_budget(torch.device("cpu")) == hardware.logits_budget(torch.device("cpu"), in_kernel=True) == 512
    assert asked == [gpu]
    assert hardware.logits_budget(gpu, in_kernel=True) == 1024
    # the kernel holds two products and nothing else
    assert chunk_size_for_budget(1024, 49152, False, torch.bfloat16, in_kernel=True) == 1024 * 2**20 // (49152 * 4) == 5461
    # two products, the gradient and a spare of 2 bytes for each of 49,152 words
    assert chunk_size_for_budget(8192, 49152, compiled=True, dtype=torch.bfloat16) == 8192 * 2**20 // (49152 * 8) == 21845
