"""Harmon learns digits from captions, with a vocabulary of its own, and is drawn and measured by prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from disa_framework.callbacks import SampleFolder
from disa_framework.cli.common import find_config
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.metrics import to_uint8
from disa_framework.models.harmon import Vocabulary, request
from disa_framework.nn.text import Words
from disa_framework.schedules import Linear
from disa_framework.toy.digits import CAPTIONS, digits
from examples.digits import draw, measure

CONFIG = "digits/harmon"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four steps and a validation."""
    folder = tmp_path_factory.mktemp("fit")
    few = ["max_steps=4", "limit_train_batches=4", "limit_val_batches=1", "check_val_every_n_epoch=1"]
    options = [*few, f"default_root_dir={folder}", "enable_progress_bar=false"]
    fit([f"--config={CONFIG}", "--data.batch_size=8", *(f"--trainer.{option}" for option in options)])
    return folder / "last.ckpt"


def test_the_configuration_knows_the_words_of_the_captions_and_no_others() -> None:
    options = yaml.safe_load(Path(find_config(CONFIG)).read_text())["model"]["init_args"]
    vocabulary = Vocabulary(**options["tokenizer"])
    read = [vocabulary.read(request(prompt)) for prompt in (None, *CAPTIONS)]
    assert len({tuple(ids) for ids in read}) == 11
    assert {i for ids in read for i in ids} == set(range(options["llm"]["vocab_size"]))


def test_nova_knows_the_words_of_the_captions_and_no_others() -> None:
    options = yaml.safe_load(Path(find_config("digits/nova")).read_text())["model"]["init_args"]
    words = {word for caption in CAPTIONS for word in caption.split()}
    assert set(Words(**options["text_encoder"]).ids) == words and options["text_width"] == len(words)
    assert options["text_length"] == max(len(caption.split()) for caption in CAPTIONS)


def test_it_is_trained_and_draws_the_captions_in_turn(checkpoint: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "drawn", CONFIG, Linear(2, 1), checkpoint, 20, CAPTIONS)
    assert len(list(folder.path.glob("0000*/samples/*.png"))) == 20
    assert folder.facts()["budget"] == list(Linear(2, 1).budget(16))
    assert 0 <= measure(folder, "random").agreement <= 1


def test_an_image_does_not_depend_on_the_size_of_its_batch(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a handwritten seven\nzero\ntwo two\n")
    args = [f"--config={CONFIG}", f"--ckpt_path={checkpoint}", f"--prompts={tmp_path / 'prompts.txt'}"]
    args += ["--each=2", "--num_stages=4", "--guidance.scale=2", "--trainer.enable_progress_bar=false"]
    images = [predict([*args, f"--batch_size={size}", f"--output={tmp_path / str(size)}"]).read(range(6))
              for size in (2, 4, 6)]  # fmt: skip
    for others in images[1:]:
        assert (others.int() - images[0].int()).abs().max() <= 1
    assert len(images[0].flatten(1).unique(dim=0)) == 6


def test_images_are_measured_as_the_digits_their_prompts_name(tmp_path: Path) -> None:
    images, labels = digits("plain")
    firsts = [images[labels == digit][:3] for digit in range(10)]
    prompts = CAPTIONS[::-1]
    folder = SampleFolder(tmp_path, [{"prompt": prompt} for prompt in prompts])
    folder.claim({})
    for index in range(30):
        folder.write(index, to_uint8(firsts[9 - index % 10][index // 10]))
    folder.describe({"num_images": 30, "head_evaluations_per_image": 0, "seconds_per_image": 0.0})
    assert measure(folder, "plain", prompts).agreement > 0.9


def test_a_prompt_of_unknown_words_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a handwritten seven\na handwritten cat\n")
    args = [f"--config={CONFIG}", f"--ckpt_path={checkpoint}", f"--prompts={tmp_path / 'prompts.txt'}"]
    with pytest.raises(ValueError, match=r"does not know 'cat': its words are .*, a, handwritten, zero, one"):
        predict([*args, f"--output={tmp_path / 'drawn'}"])
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize(
    ("config", "captions", "message"),
    [
        (CONFIG, "false", "Harmon draws prompts: give texts, not labels"),
        ("digits/mar", "true", "MAR draws classes: give labels, not list"),
    ],
)
def test_data_that_ask_in_another_way_than_the_model_are_refused(
    config: str, captions: str, message: str, tmp_path: Path
) -> None:
    args = [f"--config={config}", f"--data.captions={captions}", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(ValueError, match=message):
        fit([*args, "--trainer.enable_progress_bar=false"])


@pytest.mark.parametrize("word", ["two words", "", "comma,"])
def test_a_word_is_one_word(word: str) -> None:
    with pytest.raises(ValueError, match=f"each of words must be one word, got '{word}'"):
        Vocabulary(("fine", word))
