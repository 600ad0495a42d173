"""Magnitude pruning: the smallest weights become 0, at once or little by little."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from egret.checks import check_at_least, check_count
from egret.errors import EgretError
from egret.rate import choose_parameters

__all__ = ["MagnitudePruner"]


class MagnitudePruner:
    """Sets the smallest weights of a model to 0, and keeps them there.

    What a user would do without a rate term, to compare with. Make it, and the share is 0; call
    `step()` after each of the optimiser's. After n of `steps` calls the share of zeros is

        share · (1 − (1 − n / steps)³)

    and from then on `share`. With `steps=1` all of it is pruned in the first call.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    share : float
        Share of the chosen weights that become 0, 0 to 1.
    steps : int
        Calls of `step` until then, 1 or more.
    every : int
        More weights are pruned in every `every`-th call, and in the last of `steps`.
    masks : bool
        Whether a pruned weight stays 0. Without masks it may grow back, until it is among the
        smallest again when weights are pruned the next time.
    include, exclude : sequence of str
        As for `egret.rate.RateRegularizer`: matrices and kernels when absent.
    per : "model" or "tensor"
        Whether the smallest of all weights together are pruned, or of each tensor by itself.

    Attributes
    ----------
    names : tuple of str
        Names of the parameters pruned. Tied parameters appear once.

    Raises
    ------
    EgretError
        A number out of its range, or no parameter is chosen.

    Notes
    -----
    Source of the schedule: M. Zhu and S. Gupta, "To prune, or not to prune", arXiv 1710.01878.
    """

    def __init__(
        self,
        model: nn.Module,
        share: float,
        *,
        steps: int = 1,
        every: int = 10,
        masks: bool = True,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        per: str = "model",
    ) -> None:
        check_at_least("share", share, 0)
        if share > 1:
            raise EgretError(f"share: found {share!r}, expected 0 to 1")
        check_count("steps", steps)
        check_count("every", every)
        if per not in ("model", "tensor"):
            raise EgretError(f"per: found {per!r}, expected 'model' or 'tensor'")
        chosen = choose_parameters(model, include, exclude)
        self.names = tuple(chosen)
        self._parameters = tuple(chosen.values())
        self._share, self._steps, self._every = share, steps, every
        self._per_tensor = per == "tensor"
        self._calls = 0
        self._kept = None
        if masks:
            self._kept = [torch.ones_like(p, dtype=torch.bool) for p in self._parameters]

    def scheduled(self, calls: int) -> float:
        """Return the share of zeros that the schedule asks for after so many calls of `step`."""
        return self._share * (1 - (1 - min(1.0, calls / self._steps)) ** 3)

    @torch.no_grad()
    def step(self) -> None:
        """Prune what is due, and set weights that the optimiser has moved back to 0."""
        self._calls += 1
        if self._kept is not None:
            for parameter, kept in zip(self._parameters, self._kept, strict=True):
                parameter.masked_fill_(~kept, 0)
        if self._calls % self._every and self._calls != self._steps:
            return
        groups = [[i] for i in range(len(self._parameters))]
        if not self._per_tensor:
            groups = [list(range(len(self._parameters)))]
        for group in groups:
            device = self._parameters[group[0]].device
            magnitudes = [self._parameters[i].abs().flatten().to(device) for i in group]
            kept = _all_but_smallest(torch.cat(magnitudes), self.scheduled(self._calls))
            parts = kept.split([part.numel() for part in magnitudes])
            for i, part in zip(group, parts, strict=True):
                parameter = self._parameters[i]
                mask = part.view_as(parameter).to(parameter.device)
                parameter.masked_fill_(~mask, 0)
                if self._kept is not None:
                    self._kept[i] = mask

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes to go on from here: a number and the masks."""
        masks = {} if self._kept is None else dict(zip(self.names, self._kept, strict=True))
        return {"calls": self._calls, "kept": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another pruner of the same settings was.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        EgretError
            It has masks of other parameters.
        """
        expected = () if self._kept is None else self.names
        if tuple(state["kept"]) != expected:
            raise EgretError(
                f"pruning: found masks of {', '.join(state['kept']) or 'nothing'}, expected "
                f"{', '.join(expected) or 'none'}"
            )
        self._calls = state["calls"]
        if self._kept is not None:
            self._kept = [
                state["kept"][name].to(parameter.device)
                for name, parameter in zip(self.names, self._parameters, strict=True)
            ]


def _all_but_smallest(magnitudes: torch.Tensor, share: float) -> torch.Tensor:
    """Tell which of the magnitudes stay when a share of them goes; exactly that many go."""
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    # Among equal ones the first go: a threshold would take all of them or none.
    order = torch.argsort(magnitudes, stable=True)
    kept[order[: round(share * magnitudes.numel())]] = False
    return kept
