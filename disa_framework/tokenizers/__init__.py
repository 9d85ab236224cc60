"""What turns latents into what people look at or hear, and back."""

from disa_framework.tokenizers.autoencoder import Autoencoder
from disa_framework.tokenizers.base import Frozen, Identity, SpaceToDepth, Tokenizer
from disa_framework.tokenizers.deep import DeepAutoencoder
from disa_framework.tokenizers.folder import KLAutoencoder
from disa_framework.tokenizers.sphere import SphericalPatches

__all__ = [
    "Autoencoder", "DeepAutoencoder", "Frozen", "Identity", "KLAutoencoder", "SpaceToDepth", "SphericalPatches",
    "Tokenizer",
]  # fmt: skip
