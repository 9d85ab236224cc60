"""A model that draws from prompts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disa_framework.sampling.condition import Condition
from disa_framework.toy.mixture import MixtureAR


class PromptedMixture(MixtureAR):
    """Draws from the component of the mixture that the length of the prompt says."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 0

    def check_condition(self, condition: Condition) -> None:
        if isinstance(condition, Tensor):
            raise ValueError("PromptedMixture draws prompts: give texts, not labels")

    def component_weights(self, condition: Any, batch_size: int) -> Tensor:
        M = len(self.means)
        if condition is None:
            return torch.full((batch_size, M), 1 / M)
        return F.one_hot(torch.tensor([len(prompt) % M for prompt in condition]), M).float()
