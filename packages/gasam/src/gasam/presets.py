"""The relatives of GA-SAM by the names of their papers: settings of `GASAM`, and what each does with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _validation
from ._mixing import Remembering, factors, fixed
from ._segments import Memory, as_parameter, local
from .optimizer import GASAM

if TYPE_CHECKING:
    from typing import TypeAlias

    Base: TypeAlias = type[Optimizer] | Optimizer

__all__ = ["ASAM", "GSAM", "MSAM", "SAM", "SAMON", "WSAM", "FriendlySAM", "LookSAM", "MultiStepRisk"]


class SAM(GASAM):
    r"""SAM: one perturbation of norm rho along the gradient of all parameters.

    .. math:: \epsilon = \rho\, g / \|g\|_2, \qquad w \leftarrow \text{base}(w, \nabla L(w + \epsilon))

    Args:
        params, base_optimizer: as in `GASAM`.
        rho: radius of the perturbation, in units of the parameters (default 0.05, the paper's).
        **options: those of `GASAM`, where the defaults are ``segments="global"``, ``strength_exponent=0``,
            ``size_exponent=0`` and ``reference="none"``; all others are for the class of the base optimizer.

    Raises:
        ValueError, TypeError: as `GASAM`.

    Example:
        >>> import torch
        >>> from gasam import SAM
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = SAM(model, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.second_step(zero_grad=True)

    Reference: P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, Sharpness-Aware Minimization for Efficiently Improving
    Generalization, https://arxiv.org/abs/2010.01412
    """

    def __init__(self, params: Any, base_optimizer: Base, rho: float = 0.05, **options: Any) -> None:
        ball = {"segments": "global", "strength_exponent": 0.0, "size_exponent": 0.0, "reference": "none"}
        super().__init__(params, base_optimizer, rho, **{**ball, **options})


class ASAM(SAM):
    r"""ASAM: SAM whose perturbation of a weight is proportional to its magnitude.

    .. math:: \epsilon = \rho\, T^2 g / \|T g\|_2, \qquad T = |w| + \eta \text{ for weights}, 1 \text{ for biases}

    Weights are parameters with `weight` in their name or, where names are not known, of two dimensions or more.

    Args:
        params, base_optimizer: as in `GASAM`; a module, so that names are known.
        rho: radius, without unit (default 0.5, that of the authors' code).
        eta: added to the magnitude of a weight, in its units (default 0.01, that of the authors' code).
        **options: as in `SAM`.

    Raises:
        ValueError, TypeError: as `GASAM`.

    Example:
        >>> import torch
        >>> from gasam import ASAM
        >>> optimizer = ASAM(torch.nn.Linear(3, 1), torch.optim.SGD, lr=0.1)

    Reference: J. Kwon, J. Kim, H. Park, I. K. Choi, ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
    Learning of Deep Neural Networks, https://arxiv.org/abs/2102.11600
    """

    def __init__(
        self, params: Any, base_optimizer: Base, rho: float = 0.5, *, eta: float = 0.01, **options: Any
    ) -> None:
        super().__init__(params, base_optimizer, rho, **{"adaptive": True, "eta": eta, **options})


class SAMON(SAM):
    r"""SAM-ON: SAM that perturbs the norm layers only.

    .. math:: \epsilon = \rho\, g_\text{norm} / \|g_\text{norm}\|_2

    Args:
        params, base_optimizer: as in `GASAM`; a module, so that its norm layers are known.
        rho: radius of the perturbation, in units of the parameters (default 0.5, that of the authors' code).
        **options: as in `SAM`. With ``adaptive=True``, and perhaps ``norm=math.inf``, it is the paper's ASAM-ON.

    Raises:
        ValueError, TypeError: as `GASAM`; there is no norm layer.

    Example:
        >>> import torch
        >>> from gasam import SAMON
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
        >>> optimizer = SAMON(model, torch.optim.SGD, lr=0.1)

    Reference: M. Mueller, T. Vlaar, D. Rolnick, M. Hein, Normalization Layers Are All That Sharpness-Aware Minimization
    Needs, https://arxiv.org/abs/2306.04226
    """

    def __init__(self, params: Any, base_optimizer: Base, rho: float = 0.5, **options: Any) -> None:
        super().__init__(params, base_optimizer, rho, **{"only": "norm", **options})


class MultiStepRisk(SAM):
    r"""The mean risk over the path of K ascents, as in the defence against corrupted parameters.

    .. math:: e^j = \operatorname{Proj}_\rho\bigl(e^{j-1} + \tfrac{1.5 \rho}{K}\, u^{j-1} / \|u^{j-1}\|_2\bigr),
        \qquad g = \tfrac{1}{K+1} \sum_{j=0}^K \nabla L(w + e^j)

    Args:
        params, base_optimizer: as in `GASAM`.
        rho: radius of the ball that holds the path, in units of the parameters (default 0.05, SAM's).
        steps: number of ascents K (default 2, that of the authors' code).
        **options: as in `SAM`; ``norm=math.inf`` is the other ball of the paper.

    Raises:
        ValueError, TypeError: as `GASAM`.

    Example:
        >>> import torch
        >>> from gasam import MultiStepRisk
        >>> optimizer = MultiStepRisk(torch.nn.Linear(3, 1), torch.optim.SGD, steps=3, lr=0.1)

    Reference: Z. Zhang, R. Luo, X. Ren, Q. Su, L. Li, X. Sun, Adversarial Parameter Defense by Multi-Step Risk
    Minimization, https://arxiv.org/abs/2109.02889
    """

    def __init__(self, params: Any, base_optimizer: Base, rho: float = 0.05, *, steps: int = 2, **options: Any) -> None:
        super().__init__(params, base_optimizer, rho, **{"steps": steps, "risk": "average", **options})


class GSAM(SAM):
    r"""GSAM: SAM that also closes the gap between the perturbed loss and the clean one.

    .. math:: g = g_p - \alpha \Bigl(g_0 - \frac{\langle g_0, g_p \rangle}{\|g_p\|^2} g_p\Bigr)

    of the clean gradient :math:`g_0` and the perturbed gradient :math:`g_p`, with products over all parameters.

    Args:
        params, base_optimizer: as in `GASAM`.
        rho: radius of the perturbation, in units of the parameters (default 0.05, SAM's). The authors let it follow
            the learning rate.
        alpha: weight of the part of the clean gradient that is orthogonal to the perturbed one (default 0.4, that of
            the authors' code).
        **options: as in `SAM`.

    Raises:
        ValueError, TypeError: as `GASAM`; `alpha` is negative or not finite, or `risk` is not "last".

    Example:
        >>> import torch
        >>> from gasam import GSAM
        >>> optimizer = GSAM(torch.nn.Linear(3, 1), torch.optim.SGD, alpha=0.4, lr=0.1)

    Reference: J. Zhuang, B. Gong, L. Yuan, Y. Cui, H. Adam, N. Dvornek, S. Tatikonda, J. Duncan, T. Liu, Surrogate Gap
    Minimization Improves Sharpness-Aware Training, https://arxiv.org/abs/2203.08065
    """

    _keeps_clean = True

    def __init__(
        self, params: Any, base_optimizer: Base, rho: float = 0.05, *, alpha: float = 0.4, **options: Any
    ) -> None:
        _validation.check_number("alpha", alpha, 0)
        super().__init__(params, base_optimizer, rho, **fixed("GSAM", options, risk="last"))
        self._alpha = alpha

    def _combine(self, params: list[Tensor], clean: list[Tensor], grads: list[Tensor], found_inf: Tensor) -> None:
        _, both, perturbed = self._inner_products(params, clean, grads).unbind()
        share = torch.where(perturbed > 0, both / perturbed, 0.0)
        self._mix(grads, clean, factors(both, -self._alpha, 1 + self._alpha * share), found_inf)


class WSAM(SAM):
    r"""WSAM: SAM whose sharpness is a regulariser of its own weight.

    .. math:: w \leftarrow \text{base}(w, g_0) - \eta A (g_p - g_0) \quad\text{or, coupled,}\quad
        w \leftarrow \text{base}(w, A g_p + (1 - A) g_0), \qquad A = \frac{\gamma}{1 - \gamma}

    with the learning rate :math:`\eta` of each group, the clean gradient :math:`g_0`, the perturbed gradient
    :math:`g_p`.

    Args:
        params, base_optimizer: as in `GASAM`.
        rho: radius of the perturbation, in units of the parameters (default 0.05, that of the authors' code).
        gamma: weight of the sharpness, in [0, 1) (default 0.9, that of the authors' code); 0.5 coupled is SAM.
        decouple: keep the sharpness out of the base optimizer and its momentum (default True, that of the authors'
            code).
        **options: as in `SAM`.

    Raises:
        ValueError, TypeError: as `GASAM`; `gamma` is outside [0, 1), or `risk` is not "last".

    Example:
        >>> import torch
        >>> from gasam import WSAM
        >>> optimizer = WSAM(torch.nn.Linear(3, 1), torch.optim.AdamW, gamma=0.8, lr=1e-3)

    Reference: Y. Yue, J. Jiang, Z. Ye, N. Gao, Y. Liu, K. Zhang, Sharpness-Aware Minimization Revisited: Weighted
    Sharpness as a Regularization Term, https://arxiv.org/abs/2305.15817
    """

    _keeps_clean = True

    def __init__(
        self,
        params: Any,
        base_optimizer: Base,
        rho: float = 0.05,
        *,
        gamma: float = 0.9,
        decouple: bool = True,
        **options: Any,
    ) -> None:
        _validation.check_number("gamma", gamma)
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must be in [0, 1), got {gamma!r}")
        super().__init__(params, base_optimizer, rho, **fixed("WSAM", options, risk="last"))
        self._share = gamma / (1 - gamma)
        self._decouple = decouple

    def _forget_memory(self) -> None:
        super()._forget_memory()
        self._sharpness = Memory()

    def _combine(self, params: list[Tensor], clean: list[Tensor], grads: list[Tensor], found_inf: Tensor) -> None:
        if not self._decouple:
            self._mix(grads, clean, factors(found_inf, 1 - self._share, self._share), found_inf)
            return
        sharpness = self._sharpness.views([local(p) for p in params])
        torch._foreach_copy_(sharpness, grads)
        self._mix(sharpness, clean, factors(found_inf, -1, 1), found_inf)
        self._mix(grads, clean, factors(found_inf, 1, 0), found_inf)

    def _after_base(self, params: list[Tensor], clean: list[Tensor], grads: list[Tensor], found_inf: Tensor) -> None:
        if not self._decouple:
            return
        place = {p: k for k, p in enumerate(params)}
        for group in self.param_groups:
            some = [p for p in group["params"] if p in place]
            weights = [local(p) for p in some]
            factor = -self._share * group["lr"]
            self._mix(weights, self._sharpness.views(weights), factors(found_inf, factor, 1), found_inf)


class FriendlySAM(Remembering, SAM):
    r"""F-SAM: SAM that ascends along the gradient less the part that batches have in common.

    .. math:: \epsilon = \rho\, d / \|d\|_2, \quad d = g - \sigma m, \qquad m \leftarrow \lambda m + (1 - \lambda) g

    with m = 0 in the first step, after which it is g.

    Args:
        params, base_optimizer: as in `GASAM`.
        rho: radius of the perturbation, in units of the parameters (default 0.05, that of the authors' code, whose
            published runs have 0.2).
        sigma: share of the mean gradient that is taken away (default 1, that of the authors' code).
        lmbda: decay of the mean gradient, in [0, 1] (default 0.9, that of the authors' code, whose published runs have
            0.6 and 0.95).
        **options: as in `SAM`.

    Raises:
        ValueError, TypeError: as `GASAM`; `sigma` is negative or not finite, `lmbda` is outside [0, 1], `steps` is not
            1, or `risk` is not "last".

    Example:
        >>> import torch
        >>> from gasam import FriendlySAM
        >>> optimizer = FriendlySAM(torch.nn.Linear(3, 1), torch.optim.SGD, rho=0.2, lmbda=0.6, lr=0.1)

    Reference: T. Li, P. Zhou, Z. He, X. Cheng, X. Huang, Friendly Sharpness-Aware Minimization,
    https://arxiv.org/abs/2403.12350
    """

    _name = "mean_gradient"

    def __init__(
        self,
        params: Any,
        base_optimizer: Base,
        rho: float = 0.05,
        *,
        sigma: float = 1.0,
        lmbda: float = 0.9,
        **options: Any,
    ) -> None:
        _validation.check_number("sigma", sigma, 0)
        _validation.check_number("lmbda", lmbda)
        if not 0 <= lmbda <= 1:
            raise ValueError(f"lmbda must be in [0, 1], got {lmbda!r}")
        super().__init__(params, base_optimizer, rho, **fixed("FriendlySAM", options, steps=1, risk="last"))
        self._sigma, self._lmbda = sigma, lmbda

    def _direction(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        mean, direction = self._remember(params), self._kept.views([local(p) for p in params])
        squares, _, given = self._inner_products(params, mean, grads).unbind()
        scale: float | Tensor = 1.0 if self._scale is None else self._scale.to(squares)
        torch._foreach_copy_(direction, grads)
        self._mix(direction, mean, factors(squares, -self._sigma * scale, 1), torch.zeros_like(squares))
        decay = self._lmbda * (squares > 0).to(squares)
        self._mix(mean, grads, factors(squares, (1 - decay) / scale, decay), (~given.isfinite()).to(torch.float32))
        return direction


class LookSAM(Remembering, SAM):
    r"""LookSAM: SAM in each k-th step, from which the others take the part that leads to flatness.

    .. math:: g_v = g_p - \frac{\langle g_p, g_0 \rangle}{\|g_0\|^2} g_0 \quad\text{if } t \bmod k = 0,
        \qquad\text{else}\quad g \leftarrow g + \alpha \frac{\|g\|}{\|g_v\| + 10^{-8}}\, g_v

    of the clean gradient :math:`g_0` and the perturbed gradient :math:`g_p`, with products over all parameters.

    Args:
        params, base_optimizer: as in `GASAM`.
        rho: radius of the perturbation, in units of the parameters (default 0.1, pytorch_optimizer's: the authors have
            not published code).
        k: an ascent is taken in each of so many steps (default 10, pytorch_optimizer's); it is `every` of `GASAM`.
        alpha: weight of what is used again (default 0.7, pytorch_optimizer's).
        **options: as in `SAM`. Look-LayerSAM has ``segments="tensor", adaptive="layer"``.

    Raises:
        ValueError, TypeError: as `GASAM`; `alpha` is negative or not finite, `k` is no positive integer, `every` is not
            `k`, or `risk` is not "last".

    Example:
        >>> import torch
        >>> from gasam import LookSAM
        >>> optimizer = LookSAM(torch.nn.Linear(3, 1), torch.optim.SGD, k=5, lr=0.1)

    Reference: Y. Liu, S. Mai, X. Chen, C.-J. Hsieh, Y. You, Towards Efficient and Scalable Sharpness-Aware
    Minimization, https://arxiv.org/abs/2203.02714
    """

    _keeps_clean = True
    _name = "flatness_gradient"

    def __init__(
        self,
        params: Any,
        base_optimizer: Base,
        rho: float = 0.1,
        *,
        k: int = 10,
        alpha: float = 0.7,
        **options: Any,
    ) -> None:
        _validation.check_count("k", k)
        _validation.check_number("alpha", alpha, 0)
        super().__init__(params, base_optimizer, rho, **fixed("LookSAM", options, every=k, risk="last"))
        self._alpha = alpha

    def _combine(self, params: list[Tensor], clean: list[Tensor], grads: list[Tensor], found_inf: Tensor) -> None:
        first, both, _ = self._inner_products(params, clean, grads).unbind()
        share = torch.where(first > 0, both / first, 0.0)
        new = self._remember(params)
        self._mix(new, grads, factors(first, 1, 0), found_inf)
        self._mix(new, clean, factors(first, -share, 1), found_inf)

    def _plain(self, params: list[Tensor], grads: list[Tensor]) -> None:
        remembered = self._remember(params)
        old, _, new = self._inner_products(params, remembered, grads).unbind()
        factor = self._alpha * new.sqrt() / (old.sqrt() + 1e-8)
        self._mix(grads, remembered, factors(old, factor, 1), torch.zeros_like(old))


class MSAM(SAM):
    r"""MSAM: SAM for the price of its base optimizer, whose momentum it ascends along.

    .. math:: \epsilon = -\rho\, m / \|m\|_2, \qquad w \leftarrow \text{base}(w, \nabla L(w + \epsilon))

    with the momentum m of the steps before, so that one gradient is enough: ``step(closure)`` calls the closure once,
    and ``first_step`` precedes the forward pass. Weights are perturbed only in between, and not in the first step.

    Args:
        params, base_optimizer: as in `GASAM`, with momentum: a `momentum_buffer` or `exp_avg` in its states.
        rho: radius of the perturbation, in units of the parameters (default 0.3, that of the authors' code, whose
            published runs have 0.3 on ImageNet and 3 on CIFAR-100).
        **options: as in `SAM`.

    Raises:
        ValueError, TypeError: as `GASAM`; the base optimizer has no momentum, `steps` or `ascent_fraction` is not 1, or
            `risk` is not "last".

    Example:
        >>> import torch
        >>> from gasam import MSAM
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = MSAM(model, torch.optim.SGD, lr=0.1, momentum=0.9)
        >>> optimizer.first_step()
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.second_step(zero_grad=True)

    Reference: M. Becker, F. Altrock, B. Risse, Momentum-SAM: Sharpness Aware Minimization without Computational
    Overhead, https://arxiv.org/abs/2401.12033
    """

    _needs_gradient = False

    def __init__(self, params: Any, base_optimizer: Base, rho: float = 0.3, **options: Any) -> None:
        options = fixed("MSAM", options, steps=1, risk="last", ascent_fraction=1.0)
        if isinstance(base_optimizer, Optimizer):
            _validation.check_momentum(base_optimizer)
        super().__init__(params, base_optimizer, rho, **options)
        _validation.check_momentum(self.base_optimizer)

    def _direction(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        direction = self._kept.views([local(p) for p in params])
        for p, d in zip(params, direction, strict=True):
            state = self.state.get(p, {})
            momentum = state.get("momentum_buffer", state.get("exp_avg"))
            if momentum is None:
                d.zero_()
            else:
                torch.neg(as_parameter(p, momentum), out=d)
        return direction
