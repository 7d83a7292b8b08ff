"""Matrix products by oneDNN: the same products, only inside the context."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor, nn

from lwdctl.models import products
from lwdctl.models.products import fast_products, onednn_is_faster

LARGE = 64, 256, 128
"""Rows, inner size and columns of a product that oneDNN is given."""

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Take oneDNN for the faster one; note the sizes of the products that it is given."""
    noted: list[tuple[int, ...]] = []
    product = products._product

    def noting(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        noted.append((*left.shape, right.shape[1]))
        return product(left, right, bias)

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_product", noting)
    yield noted
    assert not products._users


def factors(*sizes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    rows, inner, columns = sizes
    return (
        torch.randn(rows, inner, dtype=dtype),
        torch.randn(inner, columns, dtype=dtype),
        torch.randn(columns, dtype=dtype),
    )


@needs_onednn
@pytest.mark.parametrize("transposed", [(), (0,), (1,), (0, 1)])
def test_large_products_are_right(used: list[tuple[int, ...]], transposed: tuple[int, ...]) -> None:
    left, right, bias = factors(*LARGE)
    if 0 in transposed:
        left = left.t().contiguous().t()
    if 1 in transposed:
        right = right.t().contiguous().t()
    exact = left.double() @ right.double()
    with fast_products():
        one, two = left @ right, torch.addmm(bias, left, right)
    assert used == [LARGE, LARGE]
    torch.testing.assert_close(one.double(), exact, rtol=0, atol=2e-4)
    torch.testing.assert_close(two.double(), exact + bias, rtol=0, atol=2e-4)


@needs_onednn
def test_gradients_are_right(used: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, 256))
    values = torch.randn(64, 256, requires_grad=True)

    def gradients() -> list[Tensor]:
        loss = network(values).square().mean()
        return list(torch.autograd.grad(loss, [values, *network.parameters()]))

    expected = gradients()
    with fast_products():
        found = gradients()
    assert len(used) == 6  # two forward, four backward
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda: torch.mm(*factors(4, 256, 4096)[:2]),  # few rows
        lambda: torch.mm(*factors(64, 64, 64)[:2]),  # too small
        lambda: torch.mm(*factors(*LARGE, dtype=torch.float64)[:2]),
        lambda: torch.addmm(factors(*LARGE)[2], *factors(*LARGE)[:2], beta=0.5, alpha=2.0),
        lambda: torch.addmm(torch.ones(LARGE[0], LARGE[2]), *factors(*LARGE)[:2]),
        lambda: torch.mm(torch.ones(1, 1).expand(64, 256), factors(*LARGE)[1]),
        lambda: torch.mm(torch.ones(64, 0), torch.ones(0, 64)),
        lambda: torch.bmm(torch.ones(2, 64, 64), torch.ones(2, 64, 256)),
    ],
)
def test_other_products_are_those_of_torch(
    used: list[tuple[int, ...]], multiply: Callable[[], Tensor]
) -> None:
    expected = multiply()
    with fast_products():
        found = multiply()
    assert not used
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("left", "right"), [((64, 128), (256, 128)), ((64,), (64, 64)), ((64, 64), (64,))]
)
def test_wrong_sizes_are_refused(
    used: list[tuple[int, ...]], left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    with fast_products(), pytest.raises(RuntimeError):
        torch.mm(torch.ones(left), torch.ones(right))
    assert not used


@needs_onednn
def test_contexts_may_overlap(used: list[tuple[int, ...]]) -> None:
    left, right, _ = factors(*LARGE)
    expected = left @ right
    first, second = fast_products(), fast_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.allclose(left @ right, expected, atol=1e-4)
    assert len(used) == 1
    second.__exit__(None, None, None)
    assert torch.equal(left @ right, expected)
    assert len(used) == 1


def test_torch_is_left_alone_where_it_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    with fast_products():
        assert not products._users


@needs_onednn
def test_torch_can_be_told_not_to_use_it(
    used: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, _ = factors(*LARGE)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with fast_products():
        assert torch.equal(left @ right, torch.mm(left, right, out=torch.empty(0)))
    assert not used


def test_kernels_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise RuntimeError("there is already a kernel registered from python")

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_kept", [])
    monkeypatch.setattr(products, "_register", products._register.__wrapped__)
    monkeypatch.setattr(torch.library.Library, "impl", refused)
    for _ in range(2):
        with fast_products():
            assert not products._users


@needs_onednn
@pytest.mark.slow
def test_other_threads_may_multiply_all_the_while(used: list[tuple[int, ...]]) -> None:
    """Kernels that came and went with every context crashed the process within seconds."""
    left, right, _ = factors(*LARGE)
    expected = left @ right
    done = Event()

    def multiply() -> bool:
        right_all_along = True
        while not done.is_set():
            right_all_along &= torch.allclose(left @ right, expected, atol=1e-3)
        return right_all_along

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(multiply) for _ in range(2)]
            end = time.monotonic() + 3.0
            while time.monotonic() < end:
                with fast_products():
                    torch.mm(left, right)
            done.set()
            assert all(other.result() for other in others)
    finally:
        sys.setswitchinterval(interval)
    assert used


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_it_is_for_processors_that_the_library_does_not_use_fully(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, maker: str, capability: str, expected: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"vendor_id\t: {maker}\n")
    monkeypatch.setattr(products, "_CPU_INFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    has_it = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert onednn_is_faster.__wrapped__() == (expected and has_it)
