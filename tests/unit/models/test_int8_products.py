"""Products of int8 by float32 against integers."""

import pytest
import torch

from distill_lit.models.int8_products import EXACT_TERMS, int8_product, use_fast_int8_products


def matrix(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    limits = torch.iinfo(dtype)
    return torch.randint(
        limits.min, limits.max + 1, shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape))
    )


@pytest.mark.parametrize("terms", [1, 576, EXACT_TERMS, EXACT_TERMS + 1, 5 * EXACT_TERMS + 3])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_products_are_those_of_integers(terms: int, dtype: torch.dtype) -> None:
    first, second = matrix(dtype, 7, terms), matrix(torch.int8, terms, 5)
    product = int8_product(first, second)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), first.long() @ second.long())


@pytest.mark.parametrize(("first", "second"), [(-128, -128), (-128, 127), (255, -128)])
def test_sums_of_the_largest_products_are_exact(first: int, second: int) -> None:
    """An odd sum of which float32 holds the neighbours only, were it not added up in int32."""
    terms = 3 * EXACT_TERMS + 1
    dtype = torch.uint8 if first > 127 else torch.int8
    rows, columns = torch.full((2, terms), first, dtype=dtype), torch.full((terms, 3), second, dtype=torch.int8)
    rows[:, 0], columns[0] = 1, 1
    assert (int8_product(rows, columns) == 1 + (terms - 1) * first * second).all()


def test_torch_multiplies_as_before_where_its_own_way_is_replaced() -> None:
    first, second = matrix(torch.int8, 19, 1030), matrix(torch.int8, 33, 1030).T
    before = torch._int_mm(first, second)
    use_fast_int8_products()
    assert torch.equal(torch._int_mm(first, second), before)
    assert torch.equal(before.long(), first.long() @ second.long())
