"""The element-wise part of the fused head as one Triton kernel: losses and their gradient from both tiles of products.

One program per token. It goes over the row twice, a tile of the vocabulary at a time: once for the normalizers, online, and
once for the losses and the gradient, which takes the place of the student's products. The second time the row comes from
the cache of the GPU, so memory is read once and written once. Divergences from a mixture and total variation need sums of
their own before the gradient, and a pass between. Everything is float32, in registers.

z are logits, x = z / T softened ones; q = softmax(x) is the student, p the teacher, m = s p + (1 − s) q their mixture. With
g the derivative of a loss with respect to log q, that with respect to x is g − q Σ g:

    KL(p ‖ q)          q − p
    KL(q ‖ p)          q (log q − log p − KL(q ‖ p))
    KL(p ‖ m)          (1 − s) (q A − r)                            r = p q / m, A = Σ r
    KL(q ‖ m)          q (log q − log m − KL(q ‖ m)) + s (r − q A)
    ½ Σ |p − q|        q (½ sign(q − p) − C)                        C = ½ Σ sign(q − p) q

With TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_lit.losses.kernels.rows import LOWEST, Products, add_exponentials, merge_lanes, read_logits, tile_of
from distill_lit.losses.kernels.terms import KernelPart, KernelTerms

NUM_PARTS = tl.constexpr(len(KernelPart))
# the numbers of the parts, and as bits of PARTS; on the left of `&`, as the interpreter has numbers for PARTS
NLL, UNIFORM_NLL, FORWARD_KL, SOFT_CROSS_ENTROPY, REVERSE_KL = (tl.constexpr(int(part)) for part in list(KernelPart)[:5])
TEACHER_TO_MIXTURE, STUDENT_TO_MIXTURE, TOTAL_VARIATION, LOGIT_MSE = (
    tl.constexpr(int(part)) for part in list(KernelPart)[5:]
)


def part_bits(*parts: KernelPart) -> int:
    """PARTS of the kernel: which parts are asked for."""
    return sum(1 << part for part in parts)


ASKS_NLL, ASKS_UNIFORM_NLL, ASKS_FORWARD_KL, ASKS_SOFT_CROSS_ENTROPY, ASKS_REVERSE_KL = (
    tl.constexpr(part_bits(part)) for part in list(KernelPart)[:5]
)
ASKS_TOTAL_VARIATION, ASKS_LOGIT_MSE = (tl.constexpr(part_bits(part)) for part in list(KernelPart)[7:])
OF_LABELS = tl.constexpr(part_bits(*list(KernelPart)[:2]))
OF_TEACHER = tl.constexpr(part_bits(*list(KernelPart)[2:]))
OF_DIVERGENCE = tl.constexpr(part_bits(*list(KernelPart)[2:8]))
OF_MIXTURE = tl.constexpr(part_bits(*list(KernelPart)[5:7]))
OF_INNER_SUMS = tl.constexpr(part_bits(*list(KernelPart)[5:8]))


@triton.jit
def _log_mixture(log_q, log_p, share):
    # log(share · p + (1 − share) · q)
    a, b = log_p + tl.log(share), log_q + tl.log(1.0 - share)
    return tl.maximum(a, b) + tl.log(1.0 + tl.exp(-tl.abs(a - b)))


@triton.jit
def _normalizers(
    student, teacher, label, num_columns, inverse_t, student_scale, student_softcap, teacher_scale, teacher_softcap,
    PARTS: tl.constexpr, IS_SOFTENED: tl.constexpr, STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # first pass: log Σ exp of z_q, of x_q and of x_p, z_q of the label, the mean of z_q, KL(q ‖ p), the mean of z_q − z_p
    lowest, zeros = tl.full([BLOCK], LOWEST, tl.float32), tl.zeros([BLOCK], tl.float32)
    largest, largest_q, largest_p = lowest, lowest, lowest
    total, total_q, total_p, at_label, z_sum, gap_sum, kl = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        z, _ = read_logits(student, columns, inside, student_scale, student_softcap, STUDENT_CAPPED)
        z_masked = tl.where(inside, z, -float("inf"))
        if OF_LABELS & PARTS:
            at_label += tl.where(columns == label, z, 0.0)
            z_sum += tl.where(inside, z, 0.0)
            if IS_SOFTENED:
                largest, total, _, _ = add_exponentials(largest, total, z_masked)
        largest_q, total_q, rises, decay = add_exponentials(largest_q, total_q, z_masked * inverse_t)
        if OF_TEACHER & PARTS:
            y, _ = read_logits(teacher, columns, inside, teacher_scale, teacher_softcap, TEACHER_CAPPED)
            gap = tl.where(inside, z - y, 0.0)
            gap_sum += gap
            if OF_DIVERGENCE & PARTS:
                x = tl.where(inside, y, -float("inf")) * inverse_t
                largest_p, total_p, _, _ = add_exponentials(largest_p, total_p, x)
                kl = tl.where(rises, kl * decay + gap, kl + decay * gap)
    log_z_q, factor_q = merge_lanes(largest_q, total_q)
    log_z, log_z_p, reverse_kl = log_z_q, 0.0, 0.0
    if OF_DIVERGENCE & PARTS:
        log_z_p, _ = merge_lanes(largest_p, total_p)
        reverse_kl = tl.sum(kl * factor_q, axis=0) * inverse_t - log_z_q + log_z_p
    if IS_SOFTENED and OF_LABELS & PARTS:
        log_z, _ = merge_lanes(largest, total)
    label_logit, z_mean = tl.sum(at_label, axis=0), tl.sum(z_sum, axis=0) / num_columns
    return log_z, log_z_q, log_z_p, label_logit, z_mean, reverse_kl, tl.sum(gap_sum, axis=0) / num_columns


@triton.jit
def _inner_sums(
    student, teacher, num_columns, inverse_t, share, log_z_q, log_z_p, student_scale, student_softcap, teacher_scale,
    teacher_softcap, PARTS: tl.constexpr, STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # the pass between: A, KL(q ‖ m) and C of the gradients
    overlap, kl, signed = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        z, _ = read_logits(student, columns, inside, student_scale, student_softcap, STUDENT_CAPPED)
        y, _ = read_logits(teacher, columns, inside, teacher_scale, teacher_softcap, TEACHER_CAPPED)
        log_q, log_p = z * inverse_t - log_z_q, y * inverse_t - log_z_p
        q = tl.exp(log_q)
        if OF_MIXTURE & PARTS:
            log_m = _log_mixture(log_q, log_p, share)
            overlap += tl.where(inside, tl.exp(log_p + log_q - log_m), 0.0)
            kl += tl.where(inside, q * (log_q - log_m), 0.0)
        if ASKS_TOTAL_VARIATION & PARTS:
            p = tl.exp(log_p)
            signed += tl.where(inside, tl.where(q > p, q, tl.where(q < p, -q, 0.0)), 0.0)
    return tl.sum(overlap, axis=0), tl.sum(kl, axis=0), 0.5 * tl.sum(signed, axis=0)


@triton.jit
def _mixture_gradient(q, log_q, log_m, joint, share, overlap, kl_q_m, weight_p, weight_q):
    # of weight_p · KL(p ‖ m) + weight_q · KL(q ‖ m); joint: p q / m
    spread = q * overlap - joint
    return weight_p * (1.0 - share) * spread + weight_q * (q * (log_q - log_m - kl_q_m) - share * spread)


@triton.jit
def _losses_and_gradient(
    student, teacher, label, sums, weights, num_columns, inverse_t, share, counts_p, counts_q, log_z, log_z_q, log_z_p,
    reverse_kl, mean_gap, overlap, kl_q_m, signed, student_scale, student_softcap, teacher_scale, teacher_softcap,
    PARTS: tl.constexpr, HAS_GRADIENT: tl.constexpr, STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # last pass: what each part with a teacher comes to, and the gradient in place of the student's products
    zeros = tl.zeros([BLOCK], tl.float32)
    forward_sum, cross_sum, reverse_sum, p_m_sum, q_m_sum, variation, squares = (
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
    )
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        z, slope = read_logits(student, columns, inside, student_scale, student_softcap, STUDENT_CAPPED)
        grad_x, grad_z = zeros, zeros
        if OF_LABELS & PARTS:
            excess = tl.exp(z - log_z)
            if ASKS_NLL & PARTS:
                grad_z += tl.load(weights + NLL) * (excess - tl.where(columns == label, 1.0, 0.0))
            if ASKS_UNIFORM_NLL & PARTS:
                grad_z += tl.load(weights + UNIFORM_NLL) * (excess - 1.0 / num_columns)
        if OF_TEACHER & PARTS:
            y, _ = read_logits(teacher, columns, inside, teacher_scale, teacher_softcap, TEACHER_CAPPED)
        if ASKS_LOGIT_MSE & PARTS:
            gap = tl.where(inside, z - y - mean_gap, 0.0)
            squares += gap * gap
            grad_z += tl.load(weights + LOGIT_MSE) * (2.0 / num_columns) * gap
        if OF_DIVERGENCE & PARTS:
            log_q, log_p = z * inverse_t - log_z_q, y * inverse_t - log_z_p
            q, p = tl.exp(log_q), tl.exp(log_p)
            if ASKS_FORWARD_KL & PARTS:
                forward_sum += tl.where(inside, p * (log_p - log_q), 0.0)
                grad_x += tl.load(weights + FORWARD_KL) * (q - p)
            if ASKS_SOFT_CROSS_ENTROPY & PARTS:
                cross_sum -= tl.where(inside, p * log_q, 0.0)
                grad_x += tl.load(weights + SOFT_CROSS_ENTROPY) * (q - p)
            if ASKS_REVERSE_KL & PARTS:
                reverse_sum += tl.where(inside, q * (log_q - log_p), 0.0)
                grad_x += tl.load(weights + REVERSE_KL) * q * (log_q - log_p - reverse_kl)
            if OF_MIXTURE & PARTS:
                log_m = _log_mixture(log_q, log_p, share)
                p_m_sum += tl.where(inside, p * (log_p - log_m), 0.0)
                q_m_sum += tl.where(inside, q * (log_q - log_m), 0.0)
                weight_p = tl.load(weights + TEACHER_TO_MIXTURE) * counts_p
                weight_q = tl.load(weights + STUDENT_TO_MIXTURE) * counts_q
                joint = tl.exp(log_p + log_q - log_m)
                grad_x += _mixture_gradient(q, log_q, log_m, joint, share, overlap, kl_q_m, weight_p, weight_q)
            if ASKS_TOTAL_VARIATION & PARTS:
                variation += tl.where(inside, tl.abs(p - q), 0.0)
                sign = tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0))
                grad_x += tl.load(weights + TOTAL_VARIATION) * q * (sign - signed)
        if HAS_GRADIENT:
            gradient = (grad_z + grad_x * inverse_t) * slope
            tl.store(student + columns, gradient.to(student.dtype.element_ty), mask=inside)
    if ASKS_FORWARD_KL & PARTS:
        tl.store(sums + FORWARD_KL, tl.sum(forward_sum, axis=0))
    if ASKS_SOFT_CROSS_ENTROPY & PARTS:
        tl.store(sums + SOFT_CROSS_ENTROPY, tl.sum(cross_sum, axis=0))
    if ASKS_REVERSE_KL & PARTS:
        tl.store(sums + REVERSE_KL, tl.sum(reverse_sum, axis=0))
    if OF_MIXTURE & PARTS:
        tl.store(sums + TEACHER_TO_MIXTURE, tl.sum(p_m_sum, axis=0) * counts_p)
        tl.store(sums + STUDENT_TO_MIXTURE, tl.sum(q_m_sum, axis=0) * counts_q)
    if ASKS_TOTAL_VARIATION & PARTS:
        tl.store(sums + TOTAL_VARIATION, 0.5 * tl.sum(variation, axis=0))
    if ASKS_LOGIT_MSE & PARTS:
        tl.store(sums + LOGIT_MSE, tl.sum(squares, axis=0) / num_columns)


@triton.jit
def loss_kernel(
    student_ptr, teacher_ptr, labels_ptr, on_policy_ptr, sums_ptr, weights_ptr, temperatures_ptr, num_columns,
    student_stride, teacher_stride, student_scale, student_softcap, teacher_scale, teacher_softcap, share,
    PARTS: tl.constexpr,  # a bit for each part that is asked for
    SOFTENED: tl.constexpr,  # the number of the temperature, −1 for T = 1
    IS_CONTRASTIVE: tl.constexpr, IS_CENTERED: tl.constexpr, HAS_GRADIENT: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    student, teacher = student_ptr + token * student_stride, teacher_ptr + token * teacher_stride
    sums, label = sums_ptr + token * NUM_PARTS, tl.load(labels_ptr + token)
    inverse_t = 1.0
    if SOFTENED >= 0:
        inverse_t = 1.0 / tl.load(temperatures_ptr + SOFTENED)
    log_z, log_z_q, log_z_p, label_logit, z_mean, reverse_kl, mean_gap = _normalizers(
        student, teacher, label, num_columns, inverse_t, student_scale, student_softcap, teacher_scale, teacher_softcap,
        PARTS, SOFTENED >= 0, STUDENT_CAPPED, TEACHER_CAPPED, BLOCK,
    )  # fmt: skip
    if not IS_CENTERED:
        mean_gap = 0.0
    counts_p, counts_q = 1.0, 1.0  # whether KL(p ‖ m) and KL(q ‖ m) count for this token
    if IS_CONTRASTIVE:
        counts_q = tl.load(on_policy_ptr + token).to(tl.float32)
        counts_p = 1.0 - counts_q
        share = counts_p * share + counts_q * (1.0 - share)
    overlap, kl_q_m, signed = 0.0, 0.0, 0.0
    if HAS_GRADIENT and OF_INNER_SUMS & PARTS:
        overlap, kl_q_m, signed = _inner_sums(
            student, teacher, num_columns, inverse_t, share, log_z_q, log_z_p, student_scale, student_softcap,
            teacher_scale, teacher_softcap, PARTS, STUDENT_CAPPED, TEACHER_CAPPED, BLOCK,
        )  # fmt: skip
    _losses_and_gradient(
        student, teacher, label, sums, weights_ptr, num_columns, inverse_t, share, counts_p, counts_q, log_z, log_z_q,
        log_z_p, reverse_kl, mean_gap, overlap, kl_q_m, signed, student_scale, student_softcap, teacher_scale,
        teacher_softcap, PARTS, HAS_GRADIENT, STUDENT_CAPPED, TEACHER_CAPPED, BLOCK,
    )  # fmt: skip
    if ASKS_NLL & PARTS:
        tl.store(sums + NLL, log_z - label_logit)
    if ASKS_UNIFORM_NLL & PARTS:
        tl.store(sums + UNIFORM_NLL, log_z - z_mean)


def kernel_losses(
    terms: KernelTerms,
    student: Products,
    teacher: Products | None,
    labels: Tensor,
    on_policy_mask: Tensor | None,
    weights: Tensor,
    temperatures: Tensor,
    *,
    has_gradient: bool,
) -> Tensor:
    """Sums (parts,) over n tokens of the parts of `terms`, in float32; 0 for those not asked for.

    labels: (n,) ids; on_policy_mask: (n,) bool, read where the mixture is contrastive; weights: (parts,) float32, what a
    token's part counts in the loss; temperatures: (K,) float32, of the terms. With `has_gradient` the gradient of the
    weighted loss with respect to the student's products takes their place.
    """
    count, num_columns = student.tile.shape
    sums = torch.zeros(count, len(KernelPart), dtype=torch.float32, device=student.tile.device)
    if not count:
        return sums.sum(0)
    other = teacher or student
    with torch.cuda.device_of(student.tile):
        loss_kernel[(count,)](
            student.tile, other.tile, labels, labels if on_policy_mask is None else on_policy_mask, sums, weights,
            temperatures, num_columns, student.tile.stride(0), other.tile.stride(0), student.scale, student.softcap,
            other.scale, other.softcap, 0.5 if terms.share is None else terms.share,
            PARTS=part_bits(*terms.parts), SOFTENED=-1 if terms.softened is None else terms.softened,
            IS_CONTRASTIVE=terms.is_contrastive, IS_CENTERED=terms.centers, HAS_GRADIENT=has_gradient,
            STUDENT_CAPPED=student.softcap != 0, TEACHER_CAPPED=other.softcap != 0, **tile_of(num_columns),
        )  # fmt: skip
    return sums.sum(0)
