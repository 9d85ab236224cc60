"""Lightning data modules, and what samples are asked to be."""

from disa_framework.data.conditions import ConditionReader, Labels, Prompts
from disa_framework.data.image_folder import ImageFolderData
from disa_framework.data.latents import LatentsData
from disa_framework.data.prompts import read_prompts
from disa_framework.data.requests import Request, RequestData

__all__ = [
    "ConditionReader", "ImageFolderData", "Labels", "LatentsData", "Prompts", "Request", "RequestData", "read_prompts",
]  # fmt: skip
