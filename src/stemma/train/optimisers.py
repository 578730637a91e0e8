"""Optimisers that torch does not have, or has in another form than the published one.

Each works on all parameters of a group at once (`torch._foreach_*`). The state of a parameter is `step` and tensors of
its own shape or smaller, so that a checkpoint holds it by `parameter:slot`. A parameter may be one rank's shard:
`parts` gives norms, means and functions of the whole one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Groups = Iterable[dict[str, Any]]
Tensors = list[Tensor]


class Parts(Protocol):
    """What an optimiser needs of whole parameters, of which ranks may hold shards."""

    def shape(self, p: Tensor) -> torch.Size:
        """The shape of the whole parameter."""

    def all_reduce(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor], *dims: int) -> None:
        """Add up sums along the dimensions `dims` of each parameter (none named: all) over its shards, in place."""

    def norms(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensors:
        """The norm of each whole tensor."""

    def matrices(
        self, work: Callable[[Tensor], Tensor], tensors: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Tensors:
        """This rank's parts of `work(matrix)` (n ... M N -> n ... M N) for each whole matrix."""


class Whole:
    """`Parts` for parameters that are not sharded."""

    def shape(self, p: Tensor) -> torch.Size:
        return p.shape

    def all_reduce(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor], *dims: int) -> None:
        return

    def norms(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensors:
        return list(torch._foreach_norm(list(tensors)))

    def matrices(
        self, work: Callable[[Tensor], Tensor], tensors: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Tensors:
        found: dict[int, Tensor] = {}
        alike: dict[torch.Size, list[int]] = {}
        for i, p in enumerate(parameters):
            alike.setdefault(p.shape, []).append(i)
        for places in alike.values():
            found |= dict(zip(places, work(torch.stack([tensors[i] for i in places])).unbind(), strict=True))
        return [found[i] for i in range(len(parameters))]


class Optimizer(torch.optim.Optimizer):
    """Calls `update` for each group, with the parameters that have a gradient."""

    parts: Parts = Whole()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p].update({"step": torch.zeros(()), **self.slots(group, p)})
                self.state[p]["step"] += 1
            self.update(group, parameters, [p.grad for p in parameters if p.grad is not None])
        return loss

    def held(self, slot: str, parameters: Tensors) -> Tensors:
        """The tensors of one slot."""
        return [self.state[p][slot] for p in parameters]

    def steps(self, parameters: Tensors) -> list[float]:
        """Steps of each parameter, this one included."""
        return [float(t) for t in self.held("step", parameters)]

    @abstractmethod
    def slots(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, beside `step`."""

    @abstractmethod
    def update(self, group: dict[str, Any], parameters: Tensors, grads: Tensors) -> None:
        """Change the parameters, in place."""


class Adam(Optimizer):
    """Adam with decoupled weight decay and without bias correction: BERT's, as released (optimization.py). Step 1 is
    (1 - beta1) / sqrt(1 - beta2) times the corrected one."""

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def slots(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def update(self, group: dict[str, Any], parameters: Tensors, grads: Tensors) -> None:
        torch._foreach_add_(parameters, self.direction(group, parameters, grads), alpha=-group["lr"])

    def direction(self, group: dict[str, Any], parameters: Tensors, grads: Tensors, corrected: bool = False) -> Tensors:
        """The step at a rate of one, weight decay included."""
        (beta1, beta2), eps = group["betas"], group["eps"]
        first, second = self.held("exp_avg", parameters), self.held("exp_avg_sq", parameters)
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        root = torch._foreach_sqrt(second)
        if corrected:
            steps = self.steps(parameters)
            torch._foreach_div_(root, [math.sqrt(1 - beta2**t) for t in steps])
            torch._foreach_add_(root, eps)
            torch._foreach_mul_(root, [1 - beta1**t for t in steps])
        else:
            torch._foreach_add_(root, eps)
        out = list(torch._foreach_div(first, root))
        if group["weight_decay"]:
            torch._foreach_add_(out, parameters, alpha=group["weight_decay"])
        return out


class LAMB(Adam):
    """Adam whose step for each matrix, weight decay included, has the norm rate * ||matrix|| (You et al. 2019,
    algorithm 2). Norms and biases, which are not decayed, are not rescaled either, as in ALBERT's released code."""

    def __init__(
        self, groups: Groups, lr: float, betas: tuple[float, float], eps: float, corrected: bool = True
    ) -> None:
        super().__init__(groups, lr, betas, eps)
        self.corrected = corrected

    def update(self, group: dict[str, Any], parameters: Tensors, grads: Tensors) -> None:
        step = self.direction(group, parameters, grads, self.corrected)
        if group.get("adapted", True):
            sizes = zip(self.parts.norms(parameters, parameters), self.parts.norms(step, parameters), strict=True)
            torch._foreach_mul_(step, [torch.where((w > 0) & (u > 0), w / u, 1.0) for w, u in sizes])
        torch._foreach_add_(parameters, step, alpha=-group["lr"])


class Adafactor(Optimizer):
    """Shazeer & Stern 2018, algorithms 4 to 6: second moments factored into means of rows and columns, steps clipped by
    their root mean square (RMS) and scaled by the parameter's RMS. The rate is the schedule's; torch and others bound
    it by 1/sqrt(step), T5's code does not.

    `smallest`: a tensor is factored if its last two dimensions are both at least so large; None: never (PaLM).
    `momentum`: of the finished step. Decay: weight -= weight_decay * rate**power * weight.
    """

    def __init__(
        self,
        groups: Groups,
        lr: float,
        *,
        decay: float = 0.8,
        clip: float = 1.0,
        smallest: int | None = 128,
        momentum: float = 0.0,
        power: float = 1.0,
        eps: float = 1e-30,
        floor: float = 1e-3,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.decay, self.clip, self.smallest, self.momentum = decay, clip, smallest, momentum
        self.power, self.eps, self.floor = power, eps, floor

    def factored(self, p: Tensor) -> bool:
        """Whether the second moments of `p` are kept as two sums."""
        return self.smallest is not None and p.ndim >= 2 and min(self.parts.shape(p)[-2:]) >= self.smallest

    def slots(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        if self.factored(p):
            kept = {"row": p.new_zeros(p.shape[:-1]), "column": p.new_zeros(*p.shape[:-2], p.shape[-1])}
        else:
            kept = {"exp_avg_sq": torch.zeros_like(p)}
        return kept | ({"exp_avg": torch.zeros_like(p)} if self.momentum else {})

    def update(self, group: dict[str, Any], parameters: Tensors, grads: Tensors) -> None:
        lr = group["lr"]
        fresh = [t**-self.decay for t in self.steps(parameters)]  # 1 - beta2 of this step
        squares = list(torch._foreach_mul(grads, grads))
        torch._foreach_add_(squares, self.eps)
        factored = [i for i, p in enumerate(parameters) if "row" in self.state[p]]
        roots = dict(zip(factored, self.roots(parameters, squares, fresh, factored), strict=True))
        step = [
            roots[i] if i in roots else self.state[p]["exp_avg_sq"].lerp_(squares[i], fresh[i]).rsqrt()
            for i, p in enumerate(parameters)
        ]
        torch._foreach_mul_(step, grads)
        sizes = zip(
            [self.parts.shape(p).numel() ** 0.5 for p in parameters],
            self.parts.norms(parameters, parameters),
            self.parts.norms(step, parameters),
            strict=True,
        )
        factors = [
            lr * (w / n).clamp(min=self.floor) / (u / (n * self.clip)).clamp(min=1.0)  # by root mean squares
            for n, w, u in sizes
        ]
        torch._foreach_mul_(step, factors)
        if self.momentum:
            mean = self.held("exp_avg", parameters)
            torch._foreach_lerp_(mean, step, 1 - self.momentum)
            step = mean
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["weight_decay"] * lr**self.power)
        torch._foreach_sub_(parameters, step)

    def roots(self, parameters: Tensors, squares: Tensors, fresh: list[float], which: list[int]) -> Tensors:
        """1 / sqrt(second moments) of the parameters numbered in `which`; updates their means of rows and columns."""
        held = [parameters[i] for i in which]
        sizes = [self.parts.shape(p) for p in held]
        rows, columns = [squares[i].sum(-1) for i in which], [squares[i].sum(-2) for i in which]
        self.parts.all_reduce(rows, held, -1)
        self.parts.all_reduce(columns, held, -2)
        for p, i, size, row, column in zip(held, which, sizes, rows, columns, strict=True):
            self.state[p]["row"].lerp_(row / size[-1], fresh[i])
            self.state[p]["column"].lerp_(column / size[-2], fresh[i])
        rows, columns = self.held("row", held), self.held("column", held)
        means = [row.sum(-1, keepdim=True) for row in rows]
        self.parts.all_reduce(means, held, -2)
        # the product of two roots, so that no product of tiny sums falls to zero
        return [
            (row / (mean / size[-2])).rsqrt()[..., None] * column.rsqrt()[..., None, :]
            for row, column, mean, size in zip(rows, columns, means, sizes, strict=True)
        ]


class Muon(Adam):
    """Steps along the orthogonalised momentum (Jordan et al. 2024), scaled so that its entries are about 0.2 and
    AdamW's rate and weight decay suit (Liu et al. 2025, arXiv:2502.16982, section 2.2). Groups not marked `matrices`
    take AdamW."""

    def __init__(
        self,
        groups: Groups,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        super().__init__(groups, lr, betas, eps)
        self.momentum, self.iterations = momentum, iterations

    def slots(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        if group.get("matrices", False):
            return {"momentum": torch.zeros_like(p)}
        return super().slots(group, p)

    def update(self, group: dict[str, Any], parameters: Tensors, grads: Tensors) -> None:
        if not group.get("matrices", False):
            step = self.direction(group, parameters, grads, corrected=True)
            torch._foreach_add_(parameters, step, alpha=-group["lr"])
            return
        mean = self.held("momentum", parameters)
        torch._foreach_lerp_(mean, grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, mean, self.momentum)  # Nesterov's
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        step = self.parts.matrices(lambda x: orthogonal(x, self.iterations), ahead, parameters)
        torch._foreach_mul_(step, [-group["lr"] * 0.2 * math.sqrt(max(self.parts.shape(p)[-2:])) for p in parameters])
        torch._foreach_add_(parameters, step)


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """About U V' of each matrix U S V' in `x` (... M N), by Jordan's quintic Newton-Schulz iteration; singular values
    end between 0.7 and 1.2. In bf16 on CUDA."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x.bfloat16() if x.device.type == "cuda" else x
    tall = y.shape[-2] > y.shape[-1]
    y = y.mT if tall else y
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if tall else y).to(x.dtype)
