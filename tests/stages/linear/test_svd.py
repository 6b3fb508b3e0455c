"""Both methods against torch.linalg.svd of the materialised matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from linear_cases import close, family, image, network
from torch import nn

from stages.linear.scope import LinearScope, Masks, impulses
from stages.linear.svd import Triplets, block, power

METHODS = {"power": power, "block": block}


def dense(matrix: torch.Tensor) -> LinearScope:
    """A scope of a given matrix (outputs, inputs)."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return LinearScope(nn.Sequential(layer).eval(), torch.zeros(1, matrix.shape[1], dtype=torch.float64))


def with_values(values: list[float], outputs: int, inputs: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)

    def basis(n: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, : len(values)]

    return basis(outputs) @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis(inputs).t()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["shuffle", "instance", "tanh", "functional"])
def test_the_leading_ten_are_those_of_the_matrix(method: Callable[..., Triplets], name: str) -> None:
    scope = LinearScope(network(name), image())
    matrix = scope.forward(impulses(range(scope.x0.numel()), scope.x0)).flatten(1).t()
    k = min(10, *matrix.shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = method(scope, k, tolerance=1e-7)
    assert found.converged
    assert found.certificate <= 1e-7
    assert close(found.sigma, s[:k], 1e-6)
    v = found.v.flatten(1)
    assert close(v @ v.t(), torch.eye(k).double(), 1e-6)
    assert close((v * vh[:k]).sum(1).abs(), torch.ones(k).double(), 1e-6)
    assert close((found.u.flatten(1) * u.t()[:k]).sum(1).abs(), torch.ones(k).double(), 1e-6)


def test_a_whole_family_has_the_triplets_of_its_matrix() -> None:
    scope = LinearScope(family("resnet18"), image(0, 3, 32, 32))
    matrix = scope.adjoint(impulses(range(7), scope.output)).flatten(1)
    sigma, vh = torch.linalg.svd(matrix, full_matrices=False)[1:]
    found = block(scope, 5, tolerance=1e-8)
    assert found.converged
    assert close(found.sigma / sigma[0], sigma[:5] / sigma[0], 1e-8)
    assert close((found.v.flatten(1) * vh[:5]).sum(1).abs(), torch.ones(5).double(), 1e-6)


@pytest.mark.parametrize("masks", ["keep", "stream"])
def test_a_network_that_works_on_its_input_in_place_has_its_own_triplets(masks: Masks) -> None:
    """The block method asks with vectors that it goes on to use."""
    scope = LinearScope(network("in place"), image(), masks=masks)
    matrix = scope.adjoint(impulses(range(scope.output.numel()), scope.output)).flatten(1)
    assert close(block(scope, 3).sigma, torch.linalg.svdvals(matrix)[:3], 1e-6)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_residual_is_what_it_says(method: Callable[..., Triplets]) -> None:
    """Stopped early, the certificate still tells how far it is: a singular value lies within it."""
    matrix = with_values([5 * 0.95**i for i in range(30)], 32, 40)
    found = method(dense(matrix), 2, limit=2, tolerance=1e-14)
    v, u = found.v.flatten(1), found.u.flatten(1)
    assert not found.converged
    assert close(found.residual, (u @ matrix - found.sigma.unsqueeze(1) * v).norm(dim=1))
    assert close(found.sigma, (v @ matrix.t()).norm(dim=1))
    true = torch.linalg.svdvals(matrix)
    for sigma, residual in zip(found.sigma, found.residual, strict=True):
        assert float((true - sigma).abs().min()) <= float(residual) + 1e-12


def test_momentum_does_not_bias_sigma_and_saves_passes() -> None:
    matrix = with_values([3.0, 2.98, 1.0, 0.3], 20, 15)
    plain, fast = (power(dense(matrix), 1, tolerance=1e-10, momentum=m) for m in (0.0, 0.9))
    for found in (plain, fast):
        assert found.converged
        assert abs(float(found.sigma[0]) - 3.0) < 1e-9
    assert fast.passes < plain.passes


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_equal_values_and_lost_rank(method: Callable[..., Triplets]) -> None:
    matrix = with_values([2.0, 2.0, 2.0, 1.0], 8, 10)
    found = method(dense(matrix), 6, tolerance=1e-8)
    assert found.converged
    assert close(found.sigma, torch.tensor([2.0, 2, 2, 1, 0, 0]).double(), 1e-6)
    v = found.v.flatten(1)
    assert close(v @ v.t(), torch.eye(6).double(), 1e-6)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_system_that_is_zero(method: Callable[..., Triplets]) -> None:
    found = method(dense(torch.zeros(3, 4).double()), 2)
    assert found.sigma.tolist() == [0, 0]
    assert found.certificate == 0
    assert bool(torch.isfinite(found.v).all())


def test_a_small_search_space_starts_again() -> None:
    values = [10 * 0.97**i for i in range(60)]
    matrix = with_values(values, 70, 80)
    found = block(dense(matrix), 4, tolerance=1e-9, basis=14)
    assert found.converged
    assert close(found.sigma, torch.tensor(values[:4], dtype=torch.float64), 1e-9)


def test_the_block_method_sends_fewer_probes() -> None:
    scope = LinearScope(network("shuffle"), image())
    assert block(scope, 10, tolerance=1e-7).passes < power(scope, 10, tolerance=1e-7).passes


@pytest.mark.parametrize("k", [0, 5])
def test_more_values_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="1 to 3"):
        block(dense(torch.ones(3, 4).double()), k)
