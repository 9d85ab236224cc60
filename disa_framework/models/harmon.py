"""Harmon, text to image: a MAR with a causal language model between encoder and decoder (Wu et al., arXiv 2503.21979).
UniPic-1 is the same network (Wang et al., arXiv 2508.03320).

Letters: `B` batch, `N` image tokens, `D` token channels, `T` prompt tokens, `S` buffer slots, `m` visible tokens,
`L = m + S` image tokens that the language model reads, `n` tokens of a stage, `w` width of the MAR's encoder,
`v` width of the language model, `G` guidance branches (1 or 2), `g` those at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal, TokenLayout
from disa_framework.models.mar import MAR, MARState, Positions, TrainingDraws, mar_base, mar_huge, published_sizes
from disa_framework.nn.precise import unrounded
from disa_framework.nn.text import Words, check_prompts, library, pretrained, split
from disa_framework.nn.tokens import gather_tokens, patchify, unpatchify
from disa_framework.runtime.devices import bring
from disa_framework.runtime.feature_cache import Backbone
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.noise import NoiseSource
from disa_framework.values import check_numbers

ImageSize = int | tuple[int, int]
"""Height and width in pixels; one number is both."""

AttnImplementation = Literal["sdpa", "eager", "flash_attention_2"]
"""How transformers computes attention."""

_STRIDE = 16  # pixels to a latent of the KL-16 autoencoder
_EXAMPLE = "Qwen/Qwen2.5-1.5B-Instruct"


@dataclass(frozen=True)
class Qwen2:
    """Size of a Qwen2 language model, by the names of transformers; the defaults are Qwen2.5-0.5B's."""

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    vocab_size: int = 151936
    tie_word_embeddings: bool = True
    rope_theta: float = 1e6

    def __post_init__(self) -> None:
        sizes = vars(self)
        check_numbers(Qwen2.__init__, sizes)
        for name, part in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
            if sizes[name] % sizes[part]:
                raise ValueError(f"{name} {sizes[name]} is not divisible by {part} {sizes[part]}")


@dataclass(frozen=True)
class Vocabulary(Words):
    """A tokenizer of whole words, for a language model that is trained from its beginnings.

    Attributes:
        words: of the prompts; what is around every prompt is known besides, and comes first.
    """

    @cached_property
    def ids(self) -> dict[str, int]:
        return self.numbered(*split(request(None)), *split(request("")))


@dataclass(frozen=True)
class Context:
    """What the language model has read before the image, and how the image follows.

    Attributes:
        cache: transformers' cache of the prompts' keys and values, `T` of them.
        places: `[G B, S + N]` positions of the image's tokens; they follow the prompt, not its padding.
        mask: `[G B, 1, S + N, T + S + N]`, added to the scores of attention: 0 where a token of the image may look.
        positions: the MAR's tables, for this image size.
        conditional: the cache of the first `B` prompts alone, where some stages need them without the others.
    """

    cache: Any
    places: Tensor
    mask: Tensor
    positions: Positions
    conditional: Any = None

    def first(self, rows: int) -> Context:
        """That of all `G B` rows, or of the `B` conditional ones."""
        if rows == len(self.places):
            return self
        return Context(self.conditional, self.places[:rows], self.mask[:rows], self.positions)


class Harmon(ARDiffusionModel[MARState]):
    """Draws images from prompts, of any size whose sides are multiples of 16 pixels.

    Args:
        mar: encoder, decoder and head; its classes are not used.
        llm: folder or hub name of a trained Qwen2 language model, or the size of one whose weights are to come.
        tokenizer: folder or hub name of the language model's tokenizer, by default where the language model is; or
            the words that a new language model learns.
        image_size: height and width in pixels, or one number for both; the MAR's own by default.
        attn_implementation: of the language model, as transformers calls it.
        freeze_llm: whether training leaves the language model as it is.

    Raises:
        ValueError: transformers or the attention is not installed, or no image has this size.
        OSError: there is no such language model.
    """

    caches_features = True

    def __init__(
        self,
        mar: MAR,
        llm: str | Qwen2,
        tokenizer: str | Vocabulary | None = None,
        image_size: ImageSize | None = None,
        attn_implementation: AttnImplementation = "sdpa",
        freeze_llm: bool = False,
    ) -> None:
        super().__init__()
        channels, side, _ = mar.latent_shape
        size = _STRIDE * side if image_size is None else image_size
        self.process = mar.process
        self.latent_shape = (channels, *latent_size(size, mar.patch_size))
        self.num_classes = 0
        _, height, width = self.latent_shape
        self.grid = (height // mar.patch_size, width // mar.patch_size)
        self.num_tokens = self.max_stages = math.prod(self.grid)
        self.tokenizer_source = tokenizer or (llm if isinstance(llm, str) else None)
        self.mar = mar
        self._attn_implementation = attn_implementation
        self.llm = language_model(llm, attn_implementation)
        width, hidden = mar.z_proj.out_features, self.llm.config.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.proj_out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width))
        mar.class_emb.requires_grad_(False)
        if freeze_llm:
            self.llm.requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with unrounded(self.llm):
            return super()._apply(fn, recurse)

    @property
    def head(self) -> nn.Module:
        return self.mar.head

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout.published(*self.grid)

    def check_condition(self, condition: Condition) -> None:
        check_prompts(condition, "Harmon")
        self.tokenize(cast(Sequence[str], condition))

    # --- language ---------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """Of the language model; read when the first prompt is."""
        source = self.tokenizer_source
        if source is None:
            raise ValueError(f"Harmon has no tokenizer: give its folder or hub name, such as {_EXAMPLE}")
        return source if isinstance(source, Vocabulary) else pretrained("AutoTokenizer", source, _EXAMPLE)

    def tokenize(self, prompts: Sequence[str | None]) -> list[list[int]]:
        """Ids of all that the language model reads for each prompt; `None` asks for any image."""
        texts = [request(prompt) for prompt in prompts]
        if isinstance(self.tokenizer, Vocabulary):
            return [self.tokenizer.read(text) for text in texts]
        return self.tokenizer(texts).input_ids

    def pad(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Ids of prompts `[B, T]`, padded on the right, and their lengths `[B]`.

        Raises:
            ValueError: there is no tokenizer, or it is that of another language model.
        """
        rows = [torch.tensor(row) for row in self.tokenize(prompts)]
        ids, known = pad_sequence(rows, batch_first=True), self.llm.config.vocab_size
        if ids.max() >= known:
            raise ValueError(
                f"the tokenizer {self.tokenizer_source} has the id {ids.max()}, the language model knows {known}: "
                "they do not belong together"
            )
        return bring(ids, self.device), bring(torch.tensor([len(row) for row in rows]), self.device)

    def read(self, ids: Tensor, lengths: Tensor) -> Context:
        """Runs prompts `ids [G B, T]`, as `pad` makes them, through the language model once."""
        T, L = ids.shape[1], self.mar.buffer_size + self.num_tokens
        cache = library().DynamicCache()
        # Padding comes last, so no token of a prompt looks at it, whether or not it is masked.
        self.llm.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        image, key = torch.arange(L, device=ids.device), torch.arange(T + L, device=ids.device)
        prompt, earlier = key < lengths[:, None, None], (key >= T) & (key <= T + image[:, None])
        hidden = ~(prompt | earlier)[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.llm.dtype, device=ids.device).masked_fill_(hidden, -torch.inf)
        return Context(cache, lengths[:, None] + image, mask, self.positions)

    def follow(self, x: Tensor, context: Context) -> Tensor:
        """What the language model makes of `x [G B, L, v]` after the prompts, which alone stay in the cache.

        Of `[B, L, v]`, too, which is the conditional branch.
        """
        context = context.first(len(x))
        L, T = x.shape[1], context.mask.shape[-1] - context.mask.shape[-2]
        mask = context.mask[:, :, :L, : T + L]
        if self._attn_implementation == "flash_attention_2":
            mask = mask[:, 0, -1] == 0  # it is causal by itself, and asks which keys are no padding
        out = self.llm.base_model(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=context.places[:, :L],
            past_key_values=context.cache,
            use_cache=True,
        )
        context.cache.crop(-L)
        return out.last_hidden_state

    # --- backbone ---------------------------------------------------------------------------------------

    @property
    def positions(self) -> Positions:
        """The MAR's tables, resized to the size of the images."""
        native, S = self.mar.positions, self.mar.buffer_size
        return Positions(
            resize_table(native.encoder, S, self.grid),
            resize_table(native.decoder, S, self.grid),
            resize_table(native.head, 0, self.grid),
        )

    def backbone(self, tokens: Tensor, context: Context, visible: Tensor, drawn: Tensor) -> Tensor:
        """Conditioning `z [G B, n, w]` of the tokens at `drawn [B, n]`, given those at `visible [B, m]`.

        Args:
            tokens: `[B, N, D]`; only visible ones are read.
            context: of `G B` prompts.
        """
        positions, G = context.positions, len(context.places) // len(tokens)
        visible = visible.sort(dim=1).values  # the language model reads in raster order
        buffer = self.mar.fake_latent.expand(len(tokens), -1)
        # The encoder knows no prompt, so one pass serves all branches.
        encoded = self.mar.encode(gather_tokens(tokens, visible), buffer, visible, positions)
        x = self.instruct(encoded, G, context)
        return self.mar.decode(x, visible.repeat(G, 1), drawn.repeat(G, 1), positions)

    def instruct(self, encoded: Tensor, g: int, context: Context) -> Tensor:
        """What the decoder is given, `[g B, L, w]`: what the encoder made, and what the language model adds.

        Args:
            encoded: `[B, L, w]`, the buffer in front, then tokens in raster order.
            g: all branches, or 1 for the conditional one.
            context: of `G B` prompts.
        """
        S = self.mar.buffer_size
        x = self.proj_in(encoded).roll(-S, dims=1).repeat(g, 1, 1)  # the buffer is read last
        return encoded.repeat(g, 1, 1) + self.proj_out(self.follow(x, context).roll(S, dims=1))

    def instruct_unsorted(self, encoded: Tensor, g: int, context: Context, visible: Tensor) -> Tensor:
        """The same, of tokens that come and go in the order of their places `visible [B, m]`."""
        S = self.mar.buffer_size
        buffer = torch.arange(S, device=visible.device).expand(len(visible), -1)
        order = torch.cat((buffer, visible + S), dim=1).argsort(dim=1)
        x = self.instruct(gather_tokens(encoded, order), g, context)
        return gather_tokens(x, order.argsort(dim=1).repeat(g, 1))

    # --- sampling ---------------------------------------------------------------------------------------

    def begin(self, condition: Sequence[str] | None, sampling: SamplingConfig, noise: NoiseSource) -> MARState:
        batch_size, guided = noise.batch_size, sampling.branches_from(0) > 1
        null = [None] * batch_size
        prompts = [*(null if condition is None else condition), *(null if guided else ())]
        blank = self.mar.fake_latent.new_zeros(batch_size, self.num_tokens, self.mar.token_channels)
        context = self.read(*self.pad(prompts))
        alone = sampling.cache is not None or any(sampling.guidance_at(k).branches < 2 for k in range(sampling.stages))
        if guided and alone:
            context = replace(context, conditional=_first_rows(context.cache, batch_size))
        return MARState.begin(blank, context, sampling, noise, self.layout)

    def propose(self, state: MARState, stage: int) -> Proposal:
        visible, drawn = state.places(stage)
        cache, G = state.sampling.cache, state.sampling.guidance_at(stage).branches
        context = state.context.first(G * len(drawn))
        if cache is None:
            z = self.backbone(state.tokens, context, visible, drawn)
            return self.mar.proposal(state, stage, drawn, z)
        buffer = self.mar.fake_latent.expand(len(drawn), -1)
        between = partial(self.instruct_unsorted, context=state.context, visible=visible)
        backbone = Backbone(self.mar, state.context.positions, state.tokens, visible, drawn, G, buffer, between)
        z, memory = backbone.conditioning(cache, stage, state.memory)
        return self.mar.proposal(state, stage, drawn, z, memory)

    def accept(self, state: MARState, proposal: Proposal, tokens: Tensor) -> MARState:
        return state.accept(proposal, tokens)

    def finish(self, state: MARState) -> Tensor:
        return unpatchify(state.tokens, self.mar.patch_size, *self.latent_shape[1:])

    # --- training ---------------------------------------------------------------------------------------

    def losses(
        self,
        latents: Tensor,
        condition: Sequence[str] | None,
        generator: torch.Generator | None = None,
        draws: TrainingDraws | None = None,
    ) -> Losses:
        """As the contract says; `draws` replaces the generator. The MAR's `label_dropout` drops prompts."""
        tokens = patchify(latents, self.mar.patch_size)
        draws = draws or self.mar.training_draws(len(tokens), tokens.device, generator, self.num_tokens)
        if condition is not None:
            self.check_condition(condition)
        prompts = [None] * len(tokens) if condition is None else condition
        ids, lengths = self.pad([*prompts, None])
        ids = torch.where(draws.dropped[:, None], ids[-1], ids[:-1])
        lengths = torch.where(draws.dropped, lengths[-1], lengths[:-1])
        z = self.backbone(tokens, self.read(ids, lengths), *draws.places())
        return self.mar.masked_losses(tokens, z, draws)


def request(prompt: str | None) -> str:
    """What the language model was trained to answer with an image; `None` asks for any."""
    text = "Generate an image." if prompt is None else f"Generate an image: {prompt}"
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def latent_size(image_size: ImageSize, patch_size: int) -> tuple[int, int]:
    """Height and width of the latents of an image.

    Raises:
        ValueError: if they are no whole tokens.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    unit = _STRIDE * patch_size
    if height < unit or width < unit or height % unit or width % unit:
        raise ValueError(f"image_size must be multiples of {unit} pixels, got {image_size}")
    return height // _STRIDE, width // _STRIDE


def resize_table(table: Tensor, kept: int, grid: Sequence[int]) -> Tensor:
    """Bilinearly resizes positions `[1, kept + s s, w]` of a square to those of a grid; the first `kept` stay."""
    side = math.isqrt(table.shape[1] - kept)
    if tuple(grid) == (side, side):
        return table
    square = table[:, kept:].mT.unflatten(-1, (side, side))
    image = F.interpolate(square, tuple(grid), mode="bilinear", align_corners=False)
    return torch.cat((table[:, :kept], image.flatten(2).mT), dim=1)


def language_model(source: str | Qwen2, attn_implementation: AttnImplementation) -> Any:
    """A trained language model, in the default precision, or a new one of a size.

    Raises:
        ValueError: transformers or the attention is not installed.
        OSError: there is no such language model.
    """
    transformers = library()
    try:
        if isinstance(source, str):
            model = pretrained("AutoModelForCausalLM", source, _EXAMPLE, attn_implementation=attn_implementation)
            return model.to(torch.get_default_dtype())
        config = transformers.Qwen2Config(**asdict(source))
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    except ImportError as error:
        raise ValueError(f"attn_implementation {attn_implementation!r} cannot be used: {error}") from error


def _first_rows(cache: Any, count: int) -> Any:
    """A copy of a cache of transformers, of its first rows alone."""
    first = library().DynamicCache()
    for layer, (keys, values, *_) in enumerate(cache):
        first.update(keys[:count], values[:count], layer)
    return first


_QWEN_1_5B = Qwen2(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12)


def harmon_0_5b(
    tokenizer: str | None = None,
    image_size: ImageSize = 512,
    attn_implementation: AttnImplementation = "sdpa",
    freeze_llm: bool = False,
) -> Harmon:
    """Harmon-0.5B: MAR-B around Qwen2.5-0.5B-Instruct, whose weights the published checkpoint holds too."""
    return Harmon(mar_base(), Qwen2(), tokenizer, image_size, attn_implementation, freeze_llm)


def harmon_1_5b(
    tokenizer: str | None = None,
    image_size: ImageSize = 512,
    attn_implementation: AttnImplementation = "sdpa",
    freeze_llm: bool = False,
) -> Harmon:
    """Harmon-1.5B: MAR-H around Qwen2.5-1.5B-Instruct."""
    return Harmon(mar_huge(), _QWEN_1_5B, tokenizer, image_size, attn_implementation, freeze_llm)


def unipic_mar() -> MAR:
    """That of UniPic-1: MAR-H for 512x512 pixels, with another process."""
    return MAR(latent_size=32, max_beta=0.2, **published_sizes(1280, 20, 16, 12, 1536))


def unipic_1_5b(
    tokenizer: str | None = None,
    image_size: ImageSize = 1024,
    attn_implementation: AttnImplementation = "sdpa",
    freeze_llm: bool = False,
) -> Harmon:
    """UniPic-1.5B, which draws 1024x1024 pixels as 4,096 tokens, around Qwen2.5-1.5B-Instruct. Its published file also
    holds a vision encoder, which drawing has no use for."""
    return Harmon(unipic_mar(), _QWEN_1_5B, tokenizer, image_size, attn_implementation, freeze_llm)
