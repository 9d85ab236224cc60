"""In what precision samples are drawn, as far as the device computes in it.

Measured on trained models of digits, given the same noise: latents in bf16 differ from those in float32 by 0.4 to 1.2%
of their norm, in the median over images, in every family. Of FlowAR's, a few drawn with Euler-Maruyama's steps, which
add noise, took another way altogether.
"""

from __future__ import annotations

import warnings

import torch

from disa_framework.runtime.devices import cpu_units


def settled_precision(asked: int | str, trainer: object, accelerator: object) -> str:
    """What Lightning's trainer is told: the precision asked for, or 32 and a warning why, where the device lacks it.

    Args:
        asked: 32, 16, "bf16", or "auto": bf16 where the device computes in it, else 32.
        trainer: precision that the trainer has been told already, if any.
        accelerator: the trainer's.

    Raises:
        ValueError: the trainer has been told already.
    """
    if trainer is not None:
        raise ValueError(f"give either --precision {asked} or --trainer.precision {trainer}")
    device = _device(accelerator)
    if asked == "auto":
        lack = lacking("bf16", device)
        asked, why = (32, lack) if lack else ("bf16", f"this {device} multiplies it faster")
        warnings.warn(f"drawing in precision {asked}, as {why}", stacklevel=2)
    if lack := lacking(asked, device):
        warnings.warn(f"drawing in precision 32, as {lack}", stacklevel=2)
    return f"{32 if lack else asked}-true"


def lacking(precision: int | str, device: str) -> str | None:
    """Why a device does not compute in a precision; `None` if it does."""
    if device == "cpu" and precision == 16:
        return "CPUs are slow in 16: try bf16"
    if device == "cpu" and precision == "bf16" and not _cpu_has_bf16():
        return "this CPU has no bf16 arithmetic (AVX512-BF16 or AMX)"
    if device == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{torch.cuda.get_device_name()} has no bf16 arithmetic: try 16"
    return None


def _device(accelerator: object) -> str:
    """Kind of the device that the trainer will use."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None or accelerator == "cpu" else found.type


def _cpu_has_bf16() -> bool:
    return any(there and name.endswith("bf16") for name, there in cpu_units().items())
