"""What is watched and not trained on, from both tiles of products, by one Triton kernel: a program per token, at T = 1."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_lit.losses.kernels.rows import LOWEST, Products, add_exponentials, merge_lanes, read_logits, tile_of

METRICS = (
    "student_nll", "student_entropy", "teacher_nll", "teacher_entropy", "teacher_kl", "draft_acceptance", "reverse_kl",
    "agreement",
)  # fmt: skip
NUM_METRICS = tl.constexpr(len(METRICS))


@triton.jit
def _first_best(largest, best, num_columns):
    # the first column whose logit is the largest of the row
    return tl.min(tl.where(largest == tl.max(largest, axis=0), best, num_columns), axis=0)


@triton.jit
def metric_kernel(
    student_ptr, teacher_ptr, labels_ptr, sums_ptr, num_columns, student_stride, teacher_stride, student_scale,
    student_softcap, teacher_scale, teacher_softcap, HAS_TEACHER: tl.constexpr, STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    student, teacher = student_ptr + token * student_stride, teacher_ptr + token * teacher_stride
    sums, label = sums_ptr + token * NUM_METRICS, tl.load(labels_ptr + token)
    lowest, zeros = tl.full([BLOCK], LOWEST, tl.float32), tl.zeros([BLOCK], tl.float32)
    largest_q, largest_p, total_q, total_p, label_q, label_p = lowest, lowest, zeros, zeros, zeros, zeros
    best_q, best_p = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        z, _ = read_logits(student, columns, inside, student_scale, student_softcap, STUDENT_CAPPED)
        label_q += tl.where(columns == label, z, 0.0)
        largest_q, total_q, rises, _ = add_exponentials(largest_q, total_q, tl.where(inside, z, -float("inf")))
        best_q = tl.where(rises, columns, best_q)
        if HAS_TEACHER:
            y, _ = read_logits(teacher, columns, inside, teacher_scale, teacher_softcap, TEACHER_CAPPED)
            label_p += tl.where(columns == label, y, 0.0)
            largest_p, total_p, rises, _ = add_exponentials(largest_p, total_p, tl.where(inside, y, -float("inf")))
            best_p = tl.where(rises, columns, best_p)
    log_z_q, _ = merge_lanes(largest_q, total_q)
    log_z_p = 0.0
    if HAS_TEACHER:
        log_z_p, _ = merge_lanes(largest_p, total_p)
    entropy_q, entropy_p, forward_kl, reverse_kl, accepted = zeros, zeros, zeros, zeros, zeros
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        z, _ = read_logits(student, columns, inside, student_scale, student_softcap, STUDENT_CAPPED)
        log_q = z - log_z_q
        q = tl.exp(log_q)
        entropy_q -= tl.where(inside, q * log_q, 0.0)
        if HAS_TEACHER:
            y, _ = read_logits(teacher, columns, inside, teacher_scale, teacher_softcap, TEACHER_CAPPED)
            log_p = y - log_z_p
            p = tl.exp(log_p)
            entropy_p -= tl.where(inside, p * log_p, 0.0)
            forward_kl += tl.where(inside, p * (log_p - log_q), 0.0)
            reverse_kl += tl.where(inside, q * (log_q - log_p), 0.0)
            accepted += tl.where(inside, tl.minimum(p, q), 0.0)
    tl.store(sums + 0, log_z_q - tl.sum(label_q, axis=0))
    tl.store(sums + 1, tl.sum(entropy_q, axis=0))
    tl.store(sums + 2, log_z_p - tl.sum(label_p, axis=0))
    tl.store(sums + 3, tl.sum(entropy_p, axis=0))
    tl.store(sums + 4, tl.sum(forward_kl, axis=0))
    tl.store(sums + 5, tl.sum(accepted, axis=0))
    tl.store(sums + 6, tl.sum(reverse_kl, axis=0))
    same_best = _first_best(largest_q, best_q, num_columns) == _first_best(largest_p, best_p, num_columns)
    tl.store(sums + 7, same_best.to(tl.float32))


def kernel_metric_sums(
    student: Products, teacher: Products | None, labels: Tensor, on_policy_mask: Tensor | None
) -> dict[str, Tensor]:
    """`reduction.compute_metric_sums` of n tokens, from products."""
    count, num_columns = student.tile.shape
    sums = torch.zeros(count, len(METRICS), dtype=torch.float32, device=student.tile.device)
    other = teacher or student
    if count:
        with torch.cuda.device_of(student.tile):
            metric_kernel[(count,)](
                student.tile, other.tile, labels, sums, num_columns, student.tile.stride(0), other.tile.stride(0),
                student.scale, student.softcap, other.scale, other.softcap, HAS_TEACHER=teacher is not None,
                STUDENT_CAPPED=student.softcap != 0, TEACHER_CAPPED=other.softcap != 0, **tile_of(num_columns),
            )  # fmt: skip
    found = dict(zip(METRICS, sums.sum(0), strict=True))
    reverse = sums[:, METRICS.index("reverse_kl")]
    del found["reverse_kl"]
    if teacher is None:
        return {name: found[name] for name in ("student_nll", "student_entropy")}
    if on_policy_mask is not None:
        found["own_reverse_kl"] = torch.where(on_policy_mask, reverse, 0.0).sum()
        found["on_policy_mask"] = on_policy_mask.sum().to(sums.dtype)
    return found
