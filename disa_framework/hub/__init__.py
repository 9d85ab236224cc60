"""Published weights: their layouts, reading, loading, converting, downloading."""

from disa_framework.hub.checkpoint import read_checkpoint
from disa_framework.hub.converting import convert
from disa_framework.hub.downloading import download
from disa_framework.hub.loading import load_model

__all__ = ["convert", "download", "load_model", "read_checkpoint"]
