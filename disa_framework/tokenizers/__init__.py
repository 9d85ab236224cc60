"""What turns latents into what people look at or hear, and back."""

from disa_framework.tokenizers.autoencoder import Autoencoder
from disa_framework.tokenizers.base import Identity, SpaceToDepth, Tokenizer

__all__ = ["Autoencoder", "Identity", "SpaceToDepth", "Tokenizer"]
