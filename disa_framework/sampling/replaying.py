"""Many batches of one kind on a GPU: the host starts one graph a batch instead of a hundred thousand kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel
from disa_framework.runtime.graphs import Recording
from disa_framework.sampling.condition import Condition, place
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer, check_request, run
from disa_framework.sampling.noise import PhiloxNoise

Kind = tuple[object, ...]
"""What all batches share that one graph draws."""

Record = Callable[[Callable[[], Tensor], Sequence[Tensor]], Callable[..., Tensor]]


class Replaying:
    """Draws as `generate` does. When a kind of batch comes a second time in a row it is recorded as a CUDA graph, which
    draws those that follow. The last graph is kept.

    Args:
        record: makes a graph, as `Recording` does.
    """

    def __init__(self, record: Record = Recording) -> None:
        self.record = record
        self._seen: Kind = ()
        self._kept: tuple[Kind, Callable[..., Tensor] | None] = ((), None)

    @torch.inference_mode()
    def generate(
        self,
        model: ARDiffusionModel,
        condition: Tensor | None,
        sampling: SamplingConfig,
        seed: int,
        indices: Tensor,
        observers: Sequence[Observer] = (),
    ) -> Tensor:
        """Latents `[B, *latent_shape]`; arguments and errors are those of `generate`."""
        check_request(model, condition, len(indices))
        settled, source = model.settle(sampling), PhiloxNoise(seed, indices, model.device)
        # What a graph reads later batches overwrite: it must not be the caller's.
        labels = None if condition is None else place(condition, model.device).clone()
        inputs = [*source.tensors, *([] if labels is None else [labels])]
        kind = *_kind(model, settled, inputs), *observers
        if kind != self._kept[0] and kind == self._seen:
            self._kept = kind, self._recorded(lambda: run(model, labels, settled, source, observers), inputs)
        self._seen = kind
        if kind == self._kept[0] and self.graph is not None:
            return self.graph(*inputs)
        return run(model, labels, settled, source, observers)

    @property
    def graph(self) -> Callable[..., Tensor] | None:
        """What drew the last batches of one kind, if there is one."""
        return self._kept[1]

    def _recorded(self, function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[..., Tensor] | None:
        try:
            return self.record(function, inputs)
        except RuntimeError as error:
            warnings.warn(f"drawing without CUDA graphs: {str(error).splitlines()[0]}", stacklevel=2)
            return None


def replayable(
    model: ARDiffusionModel, condition: Condition | None, sampling: SamplingConfig, observers: Sequence[Observer]
) -> bool:
    """Whether a batch is on a GPU and a graph can hold it: not prompts, nor schedules that look at tokens, nor models
    whose samples come to an end of their own."""
    return (
        all(observer.recordable for observer in observers)
        and model.device.type == "cuda"
        and (condition is None or isinstance(condition, Tensor))
        and not sampling.schedule.adapts
        and type(model).finished is ARDiffusionModel.finished
        and not torch.is_autocast_enabled("cuda")
    )


def _kind(model: ARDiffusionModel, sampling: SamplingConfig, inputs: Sequence[Tensor]) -> Kind:
    """A graph reads weights where they were."""
    weights = hash(tuple(weight.data_ptr() for weight in chain(model.parameters(), model.buffers())))
    return model, model.dtype, weights, sampling, *((tuple(given.shape), given.dtype) for given in inputs)
