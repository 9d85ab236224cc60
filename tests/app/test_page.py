"""What the page offers, tells and draws, without a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
import yaml
from torch import Tensor

from disa_framework import SamplingConfig
from disa_framework.app.page import Offer, Page
from disa_framework.app.settings import CONFIGURED, FIELDS
from disa_framework.models import ARDiffusionModel, Harmon
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import Euler
from disa_framework.tokenizers import Identity
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar
from tests.models.tiny_harmon import save_tokenizer, tiny_harmon

SAMPLING = SamplingConfig(Linear(4, 2), num_stages=3)


class OneChannel(Identity):
    """Shows the first channel of latents, whatever their size."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :1].sin()


@pytest.fixture
def harmon(tmp_path: Path) -> Harmon:
    return tiny_harmon(save_tokenizer(tmp_path))


PRESETS = {"few": SamplingConfig(Constant(2), num_stages=2)}


def page_of(model: ARDiffusionModel, sampling: SamplingConfig | None = None, **offered: Any) -> Page:
    return Page(ARDiffusionModule(model, sampling or SAMPLING).eval(), offer=Offer(**offered))


def mar_page(**offered: Any) -> Page:
    return Page(ARDiffusionModule(tiny_mar(latent_channels=1), SAMPLING).eval(), PRESETS, Offer(**offered))


def controls(page: Page, **changes: Any) -> list[Any]:
    """Those of both sides: A as configured with changes, B the preset `few`."""
    own, other = page.begin_with(CONFIGURED), page.begin_with("few")
    return [*(changes.get(name, value) for name, value in zip(FIELDS, own, strict=True)), *other]


def components(page: Page, kind: type[gr.components.Component]) -> list[Any]:
    return [block for block in page.build().blocks.values() if isinstance(block, kind)]


def test_it_asks_for_what_the_model_can_be_asked_for(harmon: Harmon) -> None:
    boxes = components(mar_page(classes=("cat", "dog"), labels=(1,)), gr.CheckboxGroup)
    assert [(box.choices[:3], box.value) for box in boxes] == [([("cat", 0), ("dog", 1), ("2", 2)], [1])]
    many = page_of(tiny_flowar(num_classes=1000), SamplingConfig(solver=Euler()))
    assert not components(many, gr.CheckboxGroup) and len(components(many, gr.Textbox)) == 1
    texts = components(page_of(harmon, prompts=("a cat", "a dog")), gr.Textbox)
    assert [box.value for box in texts] == ["a cat\na dog"]
    assert not components(page_of(tiny_mar(), condition=torch.tensor([2])), gr.CheckboxGroup)


def test_it_tells_what_a_setting_costs_and_how_to_draw_with_it() -> None:
    page = mar_page(command=("disa-predict", "--config", "mine.yaml"))
    plot, cost, command, text, other_cost, *_ = page.describe([2, 1], 5, 3, *controls(page))
    assert "**9**" in cost and "3 stages" in cost and "**4**" in other_cost
    assert {line.get_label(): list(line.get_ydata()) for line in plot.axes[0].lines} == {"A": [4, 3, 2], "B": [2, 2]}
    assert "--labels '[2, 1]'" in command and "--num_images 5" in command and "--seed 3" in command
    assert yaml.safe_load(text) == page.module.sampling.dump()


def test_it_tells_what_does_not_fit_beside_what_does() -> None:
    page = mar_page(most_steps=20)
    for changes in ({"num_stages": 99}, {"schedule": "Constant", "early": 21}):
        plot, cost, command, *_ = page.describe([], 5, 3, *controls(page, **changes))
        assert cost.startswith("⚠") and not command
        assert [line.get_label() for line in plot.axes[0].lines] == ["B"]


@pytest.mark.parametrize(
    ("asked", "count", "changes", "message"),
    [
        ([], 9, {}, "at most 8 images"),
        ([], 4, {"schedule": "Linear", "early": 30}, "A: at most 20 steps"),
        ([], 4, {"num_stages": 99}, "A: num_stages must"),
        ([99], 4, {}, "labels must lie"),
        ("1, x", 4, {}, "whole numbers"),
    ],
)
def test_what_cannot_be_drawn_is_a_message(asked: Any, count: int, changes: dict[str, Any], message: str) -> None:
    page = mar_page(most_images=8, most_steps=20)
    with pytest.raises(gr.Error, match=message):
        next(page.draw(asked, count, 0, *controls(page, **changes)))


def test_it_draws_what_is_asked_for_in_both_ways() -> None:
    page = mar_page()
    *_, last = page.draw([2, 1], 5, 3, *controls(page))
    for picture, name in ((last[0], CONFIGURED), (last[2], "few")):
        module = page.module.drawing(page.choices.presets[name], seed=3)
        images = module.draw(torch.tensor([2, 1, 2, 1, 2]), torch.arange(5))
        side = images.shape[-1] * max(1, 48 // images.shape[-1])
        inside = picture[:, :].astype(float)
        border = (inside.shape[0] - 2 * side) // 3
        first = inside[border : border + side, border : border + side]
        zoom = side // images.shape[-1]
        expected = ((images[0, 0] + 1) * 127.5).round().clamp(0, 255)
        assert (first[::zoom, ::zoom] == expected.numpy()).all()
    assert "9 head evaluations" in last[1] and "4 head evaluations" in last[3] and "of A's" in last[3]


def test_prompts_are_drawn_a_line_each(harmon: Harmon) -> None:
    sampling = SamplingConfig(Constant(2), num_stages=2)
    page = Page(ARDiffusionModule(harmon, sampling, OneChannel()).eval())
    both = page.begin_with(CONFIGURED) * 2
    with pytest.raises(gr.Error, match="at least one prompt"):
        next(page.draw(" \n", 2, 0, *both))
    drawn = [
        list(page.draw(asked, 2, 0, *both))[-1][0] for asked in ("a cat\n\n a blue dog", "a cat\na blue dog", "a cat")
    ]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_code_of_its_page_in_the_documentation_runs() -> None:
    text = (Path(__file__).parents[2] / "docs/app.md").read_text()
    names: dict[str, Any] = {}
    exec("".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert isinstance(names["page"], gr.Blocks)
