"""Published weights: their layouts, reading, loading, converting, downloading; what is shared with others."""

from disa_framework.hub.checkpoint import read_checkpoint
from disa_framework.hub.converting import convert
from disa_framework.hub.downloading import download
from disa_framework.hub.loading import load_model
from disa_framework.hub.repository import repository
from disa_framework.hub.sharing import push_sampling, push_to_hub, save_pretrained, shared_sampling

__all__ = [
    "convert", "download", "load_model", "push_sampling", "push_to_hub", "read_checkpoint", "repository",
    "save_pretrained", "shared_sampling",
]  # fmt: skip
