"""The largest eigenvalues of the Hessian, from products with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._landscape import Landscape, Loss, NotTwiceDifferentiableError, check_integers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def top_eigenvalue(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    k: int = 1,
    iterations: int = 64,
    tol: float = 1e-3,
    hvp: str = "auto",
    step: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    """The largest eigenvalues of the Hessian of the mean loss, by Lanczos' method with full reorthogonalisation.

    The Hessian H is that of `mean(loss(model, batch) for batch in data)` in all parameters that require gradients. It
    is never formed: each iteration takes one product H v, which costs about two gradients over `data`. The model is
    used in the mode it is in, every time from the same buffers and random numbers (torch's and Python's), so that batch
    normalisation and dropout are fixed functions. Weights, buffers, gradients, mode and random state come back as
    they were, bit for bit.

    Args:
        model: its parameters are the variables. Memory: one copy of them for each iteration.
        loss: called as `loss(model, batch)`, returns a scalar.
        data: batches, weighted equally; iterated over again and again.
        k: how many eigenvalues.
        iterations: at most so many products. A value from too few is too small, never too large.
        tol: stop when each value is known to this relative error; 0 takes all iterations.
        hvp: "exact" differentiates twice (attention is computed by its formula: the fused kernels cannot);
            "difference" is (grad L(w + h v) - grad L(w - h v)) / 2h with ||v|| = 1, and also sees the kinks of ReLU;
            "auto" is "exact", or "difference" where an operator cannot be differentiated twice, such as cuDNN's
            recurrent layers.
        step: h, in the units of the weights.
        seed: of the first vector.

    Returns:
        The `k` algebraically largest eigenvalues, descending, shape `(k,)`.

    Raises:
        TypeError: `data` can be iterated over once only, or `model` is no module.
        ValueError: an argument is out of its range, `data` is empty, the loss is no scalar or its Hessian not finite.
        RuntimeError: with `hvp="exact"`, an operator cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from gasam.flatness import top_eigenvalue
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [torch.tensor([[3.0, 0.0], [0.0, 1.0]])]
        >>> top_eigenvalue(model, lambda model, x: model(x).square().sum() / 2, data, k=2).round()
        tensor([9., 1.])

    Reference:
        Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950.
    """
    check_integers(k=k, iterations=iterations)
    if hvp not in ("auto", "exact", "difference"):
        raise ValueError(f"hvp must be 'auto', 'exact' or 'difference', got {hvp!r}")
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be non-negative and finite, got {tol}")
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be positive and finite, got {step}")
    with Landscape(model, loss, data) as landscape:
        if k > min(iterations, landscape.numel):
            raise ValueError(f"k must be at most iterations and the number of weights, got {k}")
        size = min(iterations, landscape.numel)
        if hvp != "difference":
            try:
                return _lanczos(landscape.product, landscape.normals(seed), k, size, tol, asymmetry=1e-2)
            except NotTwiceDifferentiableError:
                if hvp == "exact":
                    raise
        landscape.check_precision("hvp='difference'")

        def difference(v: Tensor) -> Tensor:
            return (landscape.gradient(step * v)[1] - landscape.gradient(-step * v)[1]) / (2 * step)

        return _lanczos(difference, landscape.normals(seed), k, size, tol)


def _lanczos(
    product: Callable[[Tensor], Tensor],
    normals: Iterator[Tensor],
    k: int,
    iterations: int,
    tol: float,
    asymmetry: float = math.inf,
) -> Tensor:
    """The `k` largest eigenvalues of a symmetric operator, descending.

    A Krylov space that is invariant holds one eigenvector of a multiple eigenvalue. So the search starts again in its
    orthogonal complement, until that changes none of the `k` values.

    Autograd takes for constants what an operator without double backward hands on, often without an error. What is left
    of the Hessian is not symmetric: products are not orthogonal to the basis beyond its last two vectors. In bfloat16
    rounding errors make that 1e-3 of the largest product.
    """
    basis: list[Tensor] = []
    found = torch.empty(0, dtype=torch.float64, device="cpu")  # the largest of the spaces that were exhausted
    largest = 0.0
    while True:
        diagonal: list[float] = []
        beside: list[float] = []
        v, _ = _orthogonalise(next(normals), basis)
        v /= v.norm()
        while True:
            basis.append(v)
            w = product(v)
            largest = max(largest, w.norm().item())
            diagonal.append(torch.dot(v, w).item())
            w = w - diagonal[-1] * v
            if beside:
                w = w - beside[-1] * basis[-2]
            w, removed = _orthogonalise(w, basis)
            beta = w.norm().item()
            if not math.isfinite(beta):
                raise ValueError("the Hessian must be finite: the loss or a derivative overflows at these weights")
            if removed > asymmetry * largest:
                raise NotTwiceDifferentiableError
            values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
            top = torch.cat([found, values]).topk(min(k, len(found) + len(values))).values
            exhausted = beta <= 100 * torch.finfo(v.dtype).eps * largest
            if exhausted or len(basis) == iterations:
                break
            errors = beta * vectors[-1].abs()
            ours = max(int((values >= top[-1]).sum()), 1)
            if len(top) == k and (errors[-ours:] <= tol * values[-ours:].abs()).all():
                break
            beside.append(beta)
            v = w / beta
        unchanged = len(found) == k and ((top - found).abs() <= tol * top.abs()).all()
        if not exhausted or unchanged or len(basis) == iterations:
            return top.to(v)
        found = top


def _orthogonalise(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, float]:
    """What is orthogonal to the basis, and the length of the rest."""
    removed = 0.0
    for again in (False, True) if basis else ():  # what the first pass leaves is its rounding errors
        along = torch.stack([torch.dot(v, w) for v in basis])
        removed = removed if again else along.norm().item()
        for v, length in zip(basis, along, strict=True):
            w = w - length * v
    return w, removed


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    off = torch.tensor(beside, dtype=torch.float64, device="cpu")
    return matrix + torch.diag(off, 1) + torch.diag(off, -1)
