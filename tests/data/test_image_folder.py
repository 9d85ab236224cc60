"""Images come from folders as published training saw them, and an epoch is the same however it is loaded."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from torch import Tensor

from disa_framework.callbacks import LastCheckpoint
from disa_framework.data import ImageFolderData
from disa_framework.data.image_folder import ImageFolder
from disa_framework.data.indexed import split
from disa_framework.module import ARDiffusionModule
from tests.models.tiny import tiny_mar
from tests.tokenizers.tiny_autoencoder import tiny_autoencoder, write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of twelve images."""
    return write_images(tmp_path / "images", 12)


def epoch(data: ImageFolderData, number: int = 0) -> tuple[Tensor, Tensor]:
    """All training batches of an epoch, joined."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]  # as Lightning does
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


# --- which images -----------------------------------------------------------------------------------------


def test_labels_count_the_sorted_class_folders_and_images_may_lie_deeper(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    for name in ("b/2.png", "b/1.JPG", "b/deep/er/0.webp", "a/x.bmp", "c/y.jpeg", ".cache/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "readme.png").write_text("not in a class")
    items = ImageFolder(tmp_path, image_size=4)
    assert items.classes == ("a", "b", "c")
    assert [str(Path(file).relative_to(tmp_path)) for file in items.files] == [
        "a/x.bmp", "b/1.JPG", "b/2.png", "b/deep/er/0.webp", "c/y.jpeg",
    ]  # fmt: skip
    assert items.labels == [0, 1, 1, 1, 2] and [items[i][1] for i in range(5)] == items.labels


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "no folder at"),
        (["."], "holds no class folders"),
        (["a"], "no images .* in the class folders a of"),
        (["a/deep", "b"], "in the class folders a, b of"),
    ],
)
def test_a_folder_without_images_is_refused(made: list[str], message: str, tmp_path: Path) -> None:
    for name in made:
        (tmp_path / "root" / name).mkdir(parents=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageFolderData(str(tmp_path / "root"))


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".cache/deep", "__MACOSX"])
def test_hidden_folders_and_files_are_no_images_and_no_classes(hidden: str, folder: Path) -> None:
    for place in (folder / hidden, folder / "bee" / hidden):
        place.mkdir(parents=True)
        (place / "000.png").write_bytes((folder / "bee/000.png").read_bytes())
    for name in ("._a.png", ".a.png", "__MACOSX.png.txt"):
        (folder / "bee" / name).write_text("no image")
    items = ImageFolder(folder, image_size=8)
    assert items.classes == ("ant", "bee", "cat") and len(items) == 36
    assert all(items.pixels(i).shape == (3, 8, 8) for i in range(36))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (range(12), "label 2 is folder 10, not 2; "),
        ((5, 40, 300), "label 0 is folder 300, not 5; "),
        (("1", "02"), "label 0 is folder 02, not 1; "),
        (("1.0", "2.0", "10.0"), r"label 1 is folder 10\.0, not 2\.0; "),
        (("class2", "class10", "other"), "label 0 is folder class10, not class2; "),
        ((9, 10, "other"), "label 0 is folder 10, not 9; "),
        (("00", "01", "02"), None),
        ((0, 1, 2), None),
        (("n01440764", "n02085620", "B", "a"), None),
    ],
    ids=str,
)
def test_class_folders_whose_numbers_are_not_in_order_are_told(names: Any, message: str | None, tmp_path: Path) -> None:
    write_images(tmp_path, 1, classes=tuple(map(str, names)))
    with pytest.warns(UserWarning, match=message) if message else nullcontext():
        assert ImageFolder(tmp_path, 8).classes == tuple(sorted(map(str, names)))


# --- epochs -----------------------------------------------------------------------------------------------


def test_training_mirrors_half_of_the_images_and_validation_none(folder: Path) -> None:
    items = ImageFolder(folder, image_size=8)
    mirrored = 0
    for index in range(len(items)):
        plain, _ = items[index]
        for number in range(20):
            image, _ = items[index, number]
            mirrored += torch.equal(image, plain.flip(-1))
            assert torch.equal(image, plain) or torch.equal(image, plain.flip(-1))
    assert 0.45 < mirrored / (20 * len(items)) < 0.55
    data = ImageFolderData(str(folder), image_size=8, batch_size=5, validation=0.25)
    images = torch.cat([images for images, _ in data.val_dataloader()])
    assert torch.equal(images, torch.stack([items[i][0] for i in data.validation_indices]))


def test_an_epoch_is_every_image_once_in_full_batches(folder: Path) -> None:
    data = ImageFolderData(str(folder), image_size=8, batch_size=5)
    batches = list(data.train_dataloader())
    assert [type(batch) for batch in batches] == [tuple] * 7 and data.num_classes == 3
    assert all(images.shape == (5, 3, 8, 8) and labels.shape == (5,) for images, labels in batches)
    assert all(images.dtype == torch.float32 and labels.dtype == torch.int64 for images, labels in batches)
    assert list(data.val_dataloader()) == []
    keys = list(data.train_dataloader().sampler)
    assert sorted(index for index, _ in keys) == list(range(36))


def test_an_epoch_depends_on_its_number_and_the_seed_alone(folder: Path) -> None:
    def load(number: int, **options: Any) -> tuple[Tensor, Tensor]:
        return epoch(ImageFolderData(str(folder), **{"image_size": 8, "batch_size": 6, **options}), number)

    images, labels = load(3)
    state = torch.get_rng_state()
    for same in (load(3, batch_size=4), load(3, num_workers=1)):
        assert torch.equal(same[0], images) and torch.equal(same[1], labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(load(4)[0], images) and not torch.equal(load(3, seed=1)[0], images)


def test_ranks_share_an_epoch(folder: Path) -> None:
    seen = []
    for rank in range(3):
        data = ImageFolderData(str(folder), image_size=8, batch_size=4)
        trainer: Any = SimpleNamespace(world_size=3, global_rank=rank)
        data.trainer = trainer
        seen += list(data.train_dataloader().sampler)
    assert sorted(seen) == [(index, 0) for index in range(36)]


def test_a_share_is_held_out_and_the_same_in_every_run(folder: Path) -> None:
    data = ImageFolderData(str(folder), image_size=8, batch_size=4, validation=0.25)
    assert sorted(data.train_indices + data.validation_indices) == list(range(36))
    assert len(data.validation_indices) == 9 and split(36, 0.25)[1] == data.validation_indices
    assert {index for index, _ in data.train_dataloader().sampler} == set(data.train_indices)


def test_a_folder_can_be_the_validation_set(folder: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", 2)
    data = ImageFolderData(str(folder), image_size=8, batch_size=4, validation=str(other))
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 6 and len(data.train_indices) == 36
    wrong = write_images(tmp_path / "wrong", 2, classes=("ant", "bee"))
    with pytest.raises(ValueError, match="other classes"):
        ImageFolderData(str(folder), image_size=8, batch_size=4, validation=str(wrong))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be from 1 to the 36 training items, got 0"),
        ({"batch_size": 37}, "batch_size must be from 1 to the 36"),
        ({"validation": 1.0}, "validation must be a folder, or a share of the 36 items"),
        ({"validation": -0.1}, "validation must be"),
        ({"validation": 0.001}, "validation must be"),
        ({"validation": "nowhere"}, "no folder at nowhere"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageFolderData(str(folder), **{"image_size": 8, "batch_size": 4, **options})


# --- training ---------------------------------------------------------------------------------------------


class Epochs(Callback):
    """Keeps the epochs that Lightning tells the training data."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.train_dataloader is not None
        self.seen.append(trainer.train_dataloader.sampler.epoch)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*in eval mode")
def test_a_model_trains_on_images_through_an_autoencoder_that_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    data = ImageFolderData(str(folder), image_size=8, batch_size=12, validation=0.25)
    autoencoder = tiny_autoencoder()
    module = ARDiffusionModule(tiny_mar(std=None).train(), tokenizer=autoencoder)
    epochs = Epochs()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=3, default_root_dir=tmp_path, logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[epochs, EMAWeightAveraging(), LastCheckpoint()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert epochs.seen == [0, 1, 2]
    assert trainer.callback_metrics["val_loss"].isfinite()
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() and all(name.startswith("model.") for name in state)
    after, before = autoencoder.network.state_dict(), tiny_autoencoder().network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
