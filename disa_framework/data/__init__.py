"""Lightning data modules."""

from disa_framework.data.digits import DigitsData
from disa_framework.data.image_folder import ImageFolderData
from disa_framework.data.latents import LatentsData
from disa_framework.data.prompts import read_prompts
from disa_framework.data.requests import Request, RequestData, cycled, in_turn

__all__ = [
    "DigitsData",
    "ImageFolderData",
    "LatentsData",
    "Request",
    "RequestData",
    "cycled",
    "in_turn",
    "read_prompts",
]
