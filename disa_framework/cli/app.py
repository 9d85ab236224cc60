"""`disa-app`: a page in the browser, on which two ways to draw are compared."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from lightning import LightningDataModule

from disa_framework.cli.common import instantiate, make_module, make_parser, parse, recipes
from disa_framework.cli.drawing import add_drawing, load, reader, with_vae
from disa_framework.cli.refusals import OneLine
from disa_framework.data.conditions import ConditionReader, Labels, Prompts
from disa_framework.measure.cases import on_one_device, placed
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.config import SamplingConfig
from disa_framework.values import find

_APP = """Shows a page in the browser: choose what to draw, and two ways to draw it, and watch both from the same noise.

examples:
  disa-app
  disa-app --config fashion/flowar
  disa-app --config mar/base --ckpt_path mar-base.safetensors --vae kl16.safetensors --precision bf16

The page shows how many steps each stage has, what a setting costs, and the command that draws the same. Ctrl-C ends it.
Nobody but this machine can reach it, unless another --host is given: 0.0.0.0 is for everybody on the network.
"""
_FIRST = ["--config", "fashion/mar"]
_PAGE = ("--host", "--port", "--most_images", "--most_steps")
_ASKED = ("--labels", "--prompts")


def app(args: Sequence[str] | None = None) -> None:
    """Shows the page until it is interrupted; see `disa-app --help`."""
    given = [*(sys.argv[1:] if args is None else args)]
    given = given if any(argument.startswith(("--config", "--model")) for argument in given) else [*_FIRST, *given]
    parser = _make_parser()
    init = instantiate(parser, with_vae(parser, parse(parser, given)))
    _check_address(init.host, init.port)
    module, (command, configs) = make_module(init), _command(given)
    offered = {**_asked(reader(init), module.model), "classes": _classes(init.data), "command": command}
    load(module.model, init)
    precision = placed(module.eval(), on_one_device(dict(init.trainer)))
    from disa_framework.app.page import LAUNCH, Offer, Page  # which is seconds to import

    offer = Offer(**offered, most_images=init.most_images, most_steps=init.most_steps)
    presets = {name: SamplingConfig.load(path) for name, path in recipes(configs).items()}
    blocks = Page(module, presets, offer, precision).build()
    where = {"server_name": init.host, "server_port": init.port}
    _, address, _ = blocks.launch(**where, **LAUNCH, prevent_thread_lock=True)
    print(f"the page is at {address}; Ctrl-C ends it", flush=True)
    while True:
        time.sleep(1)


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-app", _APP)
    add = parser.add_argument
    add("--host", type=str, default="127.0.0.1", help="Address that is listened to.")
    add("--port", type=PositiveInt | None, help="(default: the first from 7860 on that is free)")
    add("--most_images", type=PositiveInt, default=64, help="That may be drawn at once.")
    add("--most_steps", type=PositiveInt, default=100, help="That a stage may have.")
    add_drawing(parser)
    return parser


def _check_address(host: str, port: int | None) -> None:
    """Raises an OSError if nothing can listen there."""
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.create_server((host, port or 0), family=family):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"no page can be shown at {host}, port {port or 'any'}: {reason}") from error


def _asked(given: ConditionReader, model: ARDiffusionModel) -> dict[str, Any]:
    """What the page asks for at first; of a reader that the page does not know, always."""
    if given == Labels():
        return {}
    condition = given.read(model)
    model.check_condition(condition)
    if isinstance(given, Labels):
        return {"labels": given.labels}
    return {"prompts": condition} if isinstance(given, Prompts) else {"condition": condition}


def _command(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """How a command that draws the same begins, and the names of its configurations."""
    own = OneLine(prog="disa-app", add_help=False, allow_abbrev=False)
    for option in (*_PAGE, *_ASKED):
        own.add_argument(option)
    rest = own.parse_known_args(given)[1]
    files = OneLine(prog="disa-app", add_help=False, allow_abbrev=False)
    files.add_argument("--config", action="append", default=[])
    return ["disa-predict", *rest], files.parse_known_args(rest)[0].config


def _classes(data: dict[str, Any] | None) -> Sequence[str]:
    """Names of the classes of a configuration's data, if their class says them."""
    try:
        return getattr(find(LightningDataModule, (data or {}).get("class_path", "")), "classes", ())
    except ValueError:  # it is unknown, as it is not needed to draw
        return ()
