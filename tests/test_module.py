"""The Lightning module: what is optimised, what is kept, and that a stopped run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from disa_framework import Guidance, SamplingConfig
from disa_framework.callbacks import FolderWriter, LastCheckpoint, SampleFolder
from disa_framework.data import RequestData
from disa_framework.hub.checkpoint import apply_weights, load_weights
from disa_framework.metrics import to_uint8
from disa_framework.models import MAR, ARDiffusionModel
from disa_framework.models.mar import TrainingDraws
from disa_framework.module import ARDiffusionModule, Optimization, parameter_groups, thirds
from disa_framework.nn.attention import AttentionLayer
from disa_framework.sampling.stage_sizes import ListedSizes
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import DDPM, Euler, Spaced, VPCosine
from disa_framework.tokenizers import Identity
from disa_framework.toy.digits import DigitsData
from disa_framework.toy.mixture import MixtureAR
from tests.models.test_causal import tiny as tiny_causal
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_sphere, tiny_xar

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*in eval mode",
    "ignore:Couldn't infer the batch indices",
    "ignore:.*no `val_dataloader`",
)


DIGITS: dict[str, Any] = {"latent_size": 8, "num_classes": 10}


def tiny_module(**options: Any) -> ARDiffusionModule:
    model = tiny_mar(std=None, **DIGITS).train()
    return ARDiffusionModule(model, optimization=Optimization(lr=1e-3, warmup_steps=3), **options)


def trainer(folder: Path, *callbacks: Callback, **limits: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, callbacks=list(callbacks),
        **{"num_sanity_val_steps": 0, "limit_val_batches": 1, **quiet, **limits},
    )  # fmt: skip


# --- optimisation -----------------------------------------------------------------------------------------


def test_biases_norms_and_the_head_are_not_decayed() -> None:
    model = tiny_mar()
    decayed, others = parameter_groups(model, Optimization(weight_decay=0.3))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    spared = {id(p) for p in others["params"]}
    for name, parameter in model.named_parameters():
        plain = name.startswith("diffloss.") or name.endswith(".bias") or "norm" in name or "_ln" in name
        assert (id(parameter) in spared) == plain, name


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    model = tiny_mar()
    model.mask_token.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, Optimization()) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p is not model.mask_token)


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[1]["lr"])


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_learning_rate_rises_linearly_and_stays(warmup: int, tmp_path: Path) -> None:
    module = ARDiffusionModule(tiny_mar(**DIGITS), optimization=Optimization(lr=0.01, warmup_steps=warmup))
    rates = Rates()
    trainer(tmp_path, rates, max_steps=warmup + 3).fit(module, datamodule=DigitsData(batch_size=16))
    assert rates.seen == pytest.approx([0.01 * (k + 1) / (warmup + 1) for k in range(warmup)] + 3 * [0.01])


def test_a_cosine_decay_ends_at_0_and_never_rises_after_warm_up() -> None:
    options = Optimization(warmup_steps=4, decay="cosine")
    factors = [options.factor(step, 20) for step in range(25)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in pairwise(factors[4:]))
    assert factors[12] == pytest.approx(0.5)
    assert factors[20:] == pytest.approx([0.0] * 5)
    assert options.factor(1000, float("inf")) == 1.0


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": float("nan")}, {"warmup_steps": -1}], ids=str)
def test_an_optimisation_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lr > 0.* and warmup_steps >= 0, got"):
        Optimization(**options)


# --- the loss of stages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_causal(), tiny_sphere(), tiny_xar()], ids=lambda model: type(model).__name__)
def test_what_is_drawn_last_changes_the_loss_of_the_last_stage_alone(model: ARDiffusionModel) -> None:
    latents, labels = torch.randn(2, *model.latent_shape), torch.arange(2) % model.num_classes
    changed = latents.clone()
    changed[..., -1, -1] += 1
    before, after = (model.losses(x, labels, torch.Generator().manual_seed(0)) for x in (latents, changed))
    assert before.parts is not None and after.parts is not None and len(before.parts) == model.max_stages
    torch.testing.assert_close(before.parts.mean(), before.total.detach())
    torch.testing.assert_close(before.parts[:-1], after.parts[:-1])
    assert before.parts[-1] != after.parts[-1]


@pytest.mark.parametrize(("masked", "third"), [(16, "early"), (12, "early"), (11, "middle"), (4, "late"), (1, "late")])
def test_a_batch_counts_for_the_stage_that_draws_its_masked_tokens(masked: int, third: str) -> None:
    model = tiny_mar(latent_size=8)
    sampling = SamplingConfig(num_stages=3, stage_sizes=ListedSizes((5, 7, 4)))
    drawn = model.training_draws(2, torch.device("cpu"), torch.Generator().manual_seed(0))
    order, corruption = drawn.order, model.head.corruption((4, 2, masked), None)
    draws = TrainingDraws(order, masked, drawn.dropped, corruption)
    losses = model.losses(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]), draws=draws)
    assert [(name, part.item()) for name, part in thirds(losses, model, sampling)] == [(third, losses.total.item())]


# --- what it holds ----------------------------------------------------------------------------------------


class Scaled(Identity):
    """A tokenizer with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))


def test_a_loss_that_training_would_not_ask_for_is_refused() -> None:
    with pytest.raises(TypeError, match="losses"):
        type("Mine", (MAR,), {"loss": lambda self, latents, condition, generator=None: latents.mean()})


def test_only_the_model_and_the_tokenizer_are_kept() -> None:
    module = tiny_module(sampling=SamplingConfig(Linear(9, 2), guidance=Guidance(2.0)), tokenizer=Scaled())
    model = {f"model.{name}" for name in module.model.state_dict()}
    assert set(module.state_dict()) == {*model, "tokenizer.gain"}


def test_it_says_what_an_image_costs() -> None:
    solver, model = DDPM(Spaced(clip=950)), MixtureAR()
    module = ARDiffusionModule(model, SamplingConfig(Linear(50, 5), solver))
    # 440 steps; those above timestep 950 coincide.
    assert module.evaluations() == sum(solver.evaluations(model.process, t) for t in Linear(50, 5).budget(16)) < 440
    assert ARDiffusionModule(model, SamplingConfig(Constant(3), num_stages=5)).evaluations() == 15


def test_a_variation_draws_with_the_same_model_and_leaves_the_module_as_it_was() -> None:
    module = ARDiffusionModule(MixtureAR(), SamplingConfig(Constant(3)), seed=1)
    other = module.drawing(SamplingConfig(Constant(5), num_stages=4))
    assert (module.evaluations(), other.evaluations(), other.seed) == (48, 20, 1) and other.model is module.model
    latents = module.draw(None, torch.arange(2))
    assert torch.equal(module.drawing(seed=2).drawing(seed=1).draw(None, torch.arange(2)), latents)
    assert not torch.equal(module.drawing(seed=2).draw(None, torch.arange(2)), latents)
    with pytest.raises(ValueError, match="num_stages must lie in"):
        module.drawing(SamplingConfig(num_stages=99))


def test_attention_is_computed_as_asked() -> None:
    layers = [m for m in tiny_module(attention="auto").model.modules() if isinstance(m, AttentionLayer)]
    assert layers and {layer.backend for layer in layers} == {"auto"}
    with pytest.raises(ValueError, match="attention must be one of sdpa, flash, auto, got 'fast'"):
        tiny_module(attention="fast")


def test_drawn_images_are_decoded_latents() -> None:
    plain, scaled = (
        ARDiffusionModule(MixtureAR(), SamplingConfig(Constant(3)), tokenizer=Identity(scale)) for scale in (1.0, 4.0)
    )
    indices = torch.tensor([4, 2])
    latents = plain.draw(None, indices)
    assert torch.equal(scaled.draw(None, indices), latents / 4)
    torch.testing.assert_close(latents, plain.draw(None, torch.arange(5))[indices])


def test_the_predict_loop_writes_what_draw_returns(tmp_path: Path) -> None:
    module = ARDiffusionModule(tiny_mar(), SamplingConfig(Constant(3)))
    folder = SampleFolder(tmp_path / "drawn")
    folder.claim({})
    runner = trainer(tmp_path, FolderWriter(folder))
    runner.predict(module, datamodule=RequestData(5, torch.tensor([0, 1, 2, 0, 1]), 3), return_predictions=False)
    other = SampleFolder(tmp_path / "other")
    other.claim({})
    for index, image in enumerate(module.draw(torch.tensor([0, 1, 2, 0, 1]), torch.arange(5))):
        other.write(index, to_uint8(image))
    difference = folder.read(range(5)).int() - other.read(range(5)).int()
    assert difference.abs().max() <= 1  # rounding depends on the batch


def test_images_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    model = tiny_mar()
    nn.init.constant_(model.mask_token, float("nan"))
    runner = trainer(tmp_path, FolderWriter(SampleFolder(tmp_path)))
    with pytest.raises(ValueError, match="NaN or infinite values"):
        runner.predict(ARDiffusionModule(model, SamplingConfig(Constant(3))), datamodule=RequestData(2))
    assert not list(tmp_path.glob("*.png"))


# --- training ---------------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=1e-6) for k in a)


def test_a_fit_leaves_a_checkpoint_with_averaged_weights(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module = tiny_module()
    runner = trainer(tmp_path, EMAWeightAveraging(decay=0.9), LastCheckpoint(), max_steps=5, val_check_interval=5)
    runner.fit(module, datamodule=DigitsData(batch_size=32))
    assert runner.global_step == 5
    assert {"train_loss", "val_loss"} <= runner.callback_metrics.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    kept = checkpoint(tmp_path)
    assert not same(kept["state_dict"], kept["current_model_state"])
    assert same(kept["state_dict"], module.state_dict())  # the run ends with the average in place

    fresh = tiny_mar(**DIGITS)
    apply_weights(fresh, load_weights(tmp_path / "last.ckpt"), "last.ckpt")
    assert same(fresh.state_dict(), module.model.state_dict())


def test_two_validations_of_the_same_weights_agree(tmp_path: Path) -> None:
    module, data = tiny_module(), DigitsData(batch_size=32)
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runner = trainer(tmp_path, limit_val_batches=3)
        losses.append(runner.validate(module, datamodule=data, verbose=False)[0]["val_loss"])
    assert losses[0] == losses[1]
    nn.init.normal_(module.model.get_parameter("diffloss.net.final_layer.linear.weight"))
    assert trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]["val_loss"] != losses[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "bf16", "16-mixed"])
@pytest.mark.filterwarnings("ignore:You passed", "ignore:.precision=bf16")
def test_gradients_are_clipped_in_every_precision(precision: str, tmp_path: Path) -> None:
    module = tiny_module()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    runner = trainer(tmp_path, max_steps=2, precision=precision, gradient_clip_val=1.0, limit_val_batches=0)
    runner.fit(module, datamodule=DigitsData(batch_size=16))
    assert runner.global_step == 2 and all(p.isfinite().all() for p in module.parameters())
    assert any((p != before[name]).any() for name, p in module.named_parameters())


class Data(LightningDataModule):
    """One batch of images `[4, *shape]`, with labels of `num_classes`."""

    def __init__(self, shape: tuple[int, ...], num_classes: int = 10) -> None:
        super().__init__()
        self.images, self.num_classes = torch.zeros(4, *shape), num_classes
        self.items = SimpleNamespace(classes=[f"folder {number}" for number in range(num_classes)])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(self.images, torch.arange(4) % self.num_classes), batch_size=4)


@pytest.mark.parametrize(
    "make",
    [tiny_mar, tiny_flowar, tiny_xar, tiny_causal, tiny_sphere],
    ids=["mar", "flowar", "xar", "causal", "sphere"],
)
@pytest.mark.parametrize("change", [(1, 0, 0), (0, 4, 4), (0, -1, -1), (0, 0, 4), ()], ids=str)
def test_data_of_another_size_than_the_models_are_refused_before_the_first_step(
    make: Callable[[], ARDiffusionModel], change: tuple[int, ...], tmp_path: Path
) -> None:
    model = make().train()
    solver = DDPM() if isinstance(model.process, VPCosine) else Euler()
    shape = tuple(side + more for side, more in zip(model.latent_shape, change, strict=False))
    runner = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    with pytest.raises(ValueError, match=re.escape(f"latents {list(model.latent_shape)} of a sample, those of the")):
        runner.fit(ARDiffusionModule(model, SamplingConfig(solver=solver)), datamodule=Data(shape, model.num_classes))
    assert runner.global_step == 0


def test_data_of_more_classes_than_the_models_are_refused_and_both_are_named(tmp_path: Path) -> None:
    message = r"the data have 12 classes, the model 10: give it --model.num_classes 12.*folder 10, folder 11"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1).fit(tiny_module(), datamodule=Data((1, 8, 8), 12))
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(tiny_module(), datamodule=Data((1, 8, 8), 7))


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="decay must be 'none' or 'cosine', got 'linear'"):
        Optimization(decay="linear")  # type: ignore[arg-type]


def test_checkpoints_at_no_epoch_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        LastCheckpoint(0)
