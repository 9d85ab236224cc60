"""`disa-cache`: encodes images once, to train on their latents."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from disa_framework.cli.common import make_parser, parse
from disa_framework.data.encoding import Stored, encode
from disa_framework.data.image_folder import ImageFolder
from disa_framework.data.latents import LatentsFolder
from disa_framework.data.reading import Reading
from disa_framework.tokenizers import Autoencoder

_CACHE = """Encodes the images of a folder of class folders, and their mirror images, to train on with LatentsData.

example:
  disa-cache imagenet/train latents --vae kl16.ckpt --batch_size 256 --num_workers 12 --trainer.devices 8

--vae FILE is short for --vae.weights FILE. A run that was stopped goes on where it was when it is started again.
"""


def cache(args: Sequence[str] | None = None) -> LatentsFolder | None:
    """Writes a folder of latents, and returns it on the first process; see `disa-cache --help`."""
    parser = make_parser("disa-cache", _CACHE)
    parser.usage = "disa-cache IMAGES LATENTS --vae FILE [--option VALUE ...]"
    parser.add_argument("images", type=str, help="Folder that holds a folder of images for each class.")
    parser.add_argument("latents", type=str, help="Folder for the latents.")
    parser.add_class_arguments(Autoencoder, "vae", as_group=False)
    parser.add_argument("--image_size", type=int, default=256, help="Width and height that images are cropped to.")
    parser.add_argument("--dtype", type=Stored, default="float32", help="Numbers in the files.")
    parser.add_class_arguments(Reading, skip={"trainer"})
    given = sys.argv[1:] if args is None else args
    config = parse(parser, [re.sub(r"^--vae(?==|$)", "--vae.weights", argument) for argument in given])
    if config.vae.weights is None:
        raise ValueError("give the weights of the autoencoder with --vae")
    init = parser.instantiate(config)
    vae, images = Autoencoder(**init.vae), ImageFolder(init.images, init.image_size)
    reading = Reading(init.batch_size, init.num_workers, init.trainer)
    folder = encode(images, vae, init.latents, init.dtype, reading)
    if folder:
        print(f"latents of {len(images)} images in {len(images.classes)} classes: {folder.path}")
    return folder
