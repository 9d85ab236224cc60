"""A flow-map head that learns its jumps from a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from disa_framework.hub.checkpoint import load_into
from disa_framework.nn.flow_map_head import FlowMapHead


class Teacher(Callback):
    """Begins with a trained model, whose backbone stays as it is, and has its head learn jumps from what it was.

    Args:
        weights: of the trained model: one like that which is trained, whatever its share of self-distillation was.
    """

    def __init__(self, weights: str | Path) -> None:
        self.weights = weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        model: Any = pl_module.model
        head = model.head
        if not isinstance(head, FlowMapHead):
            raise ValueError(
                f"a teacher needs a flow-map head, not {type(head).__name__}: give --model.self_distillation"
            )
        load_into(model, self.weights)
        model.requires_grad_(False)
        head.requires_grad_(True)
        head.learn_from(head)
