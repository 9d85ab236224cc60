"""Plain samplers, correct and unoptimized, that the fast ones are measured against.

Each draws what `generate` draws from the same weights, in float32, and the same noise, up to rounding, in the manner of
the published code: conditional and unconditional rows everywhere, whether guidance acts or not, and nothing carried
over from one step to the next but the state. Of a model they use weights and the layout of its tokens; its layers are
those of plain_layers.py.

Letters: `B` batch, `N` tokens, `D` token channels, `C` latent channels, `n` tokens of a stage, `s` side of a scale,
`w` width, `S` buffer slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_layers import (
    Table,
    Weights,
    adaptive_block,
    diffusion_head,
    embed_times,
    flow_head,
    layer_norm,
    linear,
    modulation,
    rms_norm,
    rotary_table,
    vit_block,
)
from disa_framework.models import MAR, XAR, FlowAR
from disa_framework.nn.adaln import allocate_caches
from disa_framework.nn.attention import KVCache, Past
from disa_framework.nn.rotary import grid_positions, rotary
from disa_framework.nn.time import flow_times
from disa_framework.nn.tokens import patchify, unpatchify
from disa_framework.sampling.guidance import Guidance, combine
from disa_framework.sampling.noise import NoiseSource
from disa_framework.solvers import Solver
from disa_framework.solvers.table import Table as SolverTable

Integrate = Callable[[SolverTable, Callable[[Tensor, float], Tensor], Tensor], Tensor]
"""`(table, evaluate, normals) -> tokens`, the way from noise to tokens of one stage."""


def masked_counts(num_tokens: int, num_stages: int) -> tuple[int, ...]:
    """How many tokens stay masked after each stage: a cosine, falling by at least one, 0 at the end."""
    counts: list[int] = []
    current = num_tokens
    for k in range(num_stages - 1):
        cosine = math.floor(num_tokens * math.cos(math.pi / 2 * (k + 1) / num_stages))
        current = max(1, min(current - 1, cosine))
        counts.append(current)
    return (*counts, 0)


def integrate(table: SolverTable, evaluate: Callable[[Tensor, float], Tensor], normals: Tensor) -> Tensor:
    """The tokens `[rows, ...]` that a one-step solver makes of `normals [draws, rows, ...]`; its state is doubled."""
    assert not any(row.C or row.D for row in table.rows), "the plain samplers know one-step solvers"
    noise = torch.cat((normals, normals), dim=1)
    x = noise[0]
    for i, (t, row) in enumerate(zip(table.nodes.times, table.rows, strict=True)):
        out = evaluate(x.float(), t).to(x.dtype)
        out, value = out.chunk(2, dim=-1) if table.learns_variance else (out, None)
        x = row.A * x + row.B * (row.P * x + row.Q * out)
        if row.S:
            std = row.S if value is None else row.S * torch.exp(row.R * value)
            x = x + std * noise[i + 1]
    return x.chunk(2)[0].float()


@torch.inference_mode()
def mar(
    model: MAR,
    labels: Tensor,
    budget: Sequence[int],
    solver: Solver,
    guidance: Guidance,
    noise: NoiseSource,
    integrate: Integrate = integrate,
) -> Tensor:
    """Latents `[B, C, H, W]`; all tokens go through both ends of the backbone, and times and conditioning are embedded
    for every row at every step."""
    B, N, D = len(labels), model.num_tokens, model.token_channels
    counts, order = masked_counts(N, len(budget)), noise.permutation(N)
    embedding = torch.cat((model.class_emb.weight[labels], model.fake_latent.expand(B, -1)))
    tokens, masked = torch.zeros(B, N, D, device=order.device), torch.ones_like(order, dtype=torch.bool)
    for stage, steps in enumerate(budget):
        still = torch.zeros_like(masked).scatter(1, order[:, : counts[stage]], True)
        drawn, n = masked & ~still, int(masked[0].sum() - still[0].sum())
        z = _mar_backbone(model, tokens.repeat(2, 1, 1), embedding, masked.repeat(2, 1))[drawn.repeat(2, 1)]
        scale = guidance.at((N - max(counts[stage], 1)) / N)

        def evaluate(x: Tensor, t: float, z: Tensor = z, scale: float = scale) -> Tensor:
            out = diffusion_head(_doubled(x), _times(x, t), z, model.diffloss.net)
            eps, value = out.chunk(2, dim=-1)
            return torch.cat((_guided(eps, scale if guidance.acts(model.process.unit_time(t)) else 1.0), value), dim=-1)

        table = solver.table(model.process, steps)
        normals = noise.normal(stage, (n, D), table.draws).flatten(1, 2)
        tokens[drawn] = integrate(table, evaluate, normals)
        masked = still
    return unpatchify(tokens, model.patch_size, *model.latent_shape[1:])


@torch.inference_mode()
def flowar(
    model: FlowAR,
    labels: Tensor,
    budget: Sequence[int],
    solver: Solver,
    guidance: Guidance,
    noise: NoiseSource,
    integrate: Integrate = integrate,
) -> Tensor:
    """Latents `[B, C, H, W]`; the head's times, conditioning and rotary table are made anew at every step."""
    C, K, net = model.latent_shape[0], model.max_stages, model.flownet
    embedding = _class_embedding(model, labels)
    blocks = (*model.encoder_blocks, *model.decoder_blocks)
    caches, x = allocate_caches(blocks, len(embedding), model.ends[-1], embedding), embedding
    for stage, (side, steps) in enumerate(zip(model.scales, budget, strict=True)):
        place, positions = model.stage_tokens(stage), grid_positions(side)
        tables = [rotary_table(positions, rotary(part)) for part in (model.encoder_blocks, model.decoder_blocks)]
        z = _backbone(model, x, embedding, tables, place, caches) + model.diffusion_pos_embed_learned[:, place]
        scale = guidance.at(stage / (K - 1) if stage else 0.0)

        def evaluate(x: Tensor, t: float, z: Tensor = z, at: Tensor = positions, scale: float = scale) -> Tensor:
            v = flow_head(_doubled(x), _flow_times(x, t), z, net, rotary_table(at, rotary(net.res_blocks)))
            return _guided(v, scale if guidance.acts(t) else 1.0)

        table = solver.table(model.process, steps)
        normals = noise.normal(stage, (side * side, C), table.draws)
        tokens = integrate(table, evaluate, normals)
        if stage + 1 < K:
            image = F.interpolate(unpatchify(tokens, 1, side, side), size=model.latent_shape[1:], mode="bicubic")
            seen = patchify(F.interpolate(image, size=model.scales[stage + 1], mode="area"), 1)
            x = linear(seen.repeat(2, 1, 1), model.z_proj)
    return unpatchify(tokens, 1, *model.latent_shape[1:])


@torch.inference_mode()
def xar(
    model: XAR,
    labels: Tensor,
    budget: Sequence[int],
    solver: Solver,
    guidance: Guidance,
    noise: NoiseSource,
    integrate: Integrate = integrate,
) -> Tensor:
    """Latents `[B, C, H, W]`; both branches draw every cell, and times are embedded at every step."""
    C, K, n = model.latent_shape[0], model.max_stages, model.cell_tokens
    embedding = _class_embedding(model, labels)
    caches = allocate_caches((*model.encoder_blocks, *model.decoder_blocks), len(embedding), K * n, embedding)
    cells: list[Tensor] = []

    def velocity(x: Tensor, t: float, stage: int) -> Tensor:
        place, condition = model.cell(stage), embedding + embed_times(_flow_times(x, t), model.time_embed)
        ropes = [rotary(part) for part in (model.encoder_blocks, model.decoder_blocks)]
        tables = [(rope.freqs_cos[place], rope.freqs_sin[place]) for rope in ropes]
        return linear(_backbone(model, linear(x, model.z_proj), condition, tables, place, caches), model.pred)

    for stage, steps in enumerate(budget):
        if stage:
            velocity(cells[-1].repeat(2, 1, 1), 0.0, stage - 1)
        scale = guidance.at(stage / (K - 1) if stage else 0.0)

        def evaluate(x: Tensor, t: float, stage: int = stage, scale: float = scale) -> Tensor:
            return _guided(velocity(_doubled(x), t, stage), scale if guidance.acts(t) else 1.0)

        table = solver.table(model.process, steps)
        normals = noise.normal(stage, (n, C), table.draws)
        cells.append(integrate(table, evaluate, normals))
    return model.from_cells(torch.cat(cells, dim=1))


def _mar_backbone(model: MAR, tokens: Tensor, embedding: Tensor, masked: Tensor) -> Tensor:
    """`z [2 B, N, w]` of all tokens `[2 B, N, D]`, given those that are not masked."""
    rows, S = len(tokens), model.buffer_size
    buffer = embedding[:, None].expand(-1, S, -1)
    x = torch.cat((buffer, linear(tokens, model.z_proj)), dim=1) + model.encoder_pos_embed_learned
    seen = torch.cat((masked.new_ones(rows, S), ~masked), dim=1)
    x = layer_norm(x, model.z_proj_ln)[seen].unflatten(0, (rows, -1))
    for block in model.encoder_blocks:
        x = vit_block(x, block)
    x = linear(layer_norm(x, model.encoder_norm), model.decoder_embed)
    whole = model.mask_token.repeat(rows, seen.shape[1], 1)
    whole[seen] = x.flatten(0, 1)
    x = whole + model.decoder_pos_embed_learned
    for block in model.decoder_blocks:
        x = vit_block(x, block)
    return layer_norm(x, model.decoder_norm)[:, S:] + model.diffusion_pos_embed_learned


def _backbone(
    model: FlowAR | XAR, x: Tensor, condition: Tensor, tables: list[Table], place: slice, caches: list[KVCache]
) -> Tensor:
    """What encoder and decoder of FlowAR and xAR make of `x [2 B, n, w]` at `place` under `condition [2 B, 1, w]`."""
    past = [Past(cache, place.start) for cache in caches]
    depth = len(model.encoder_blocks)
    x = rms_norm(x + model.encoder_pos_embed_learned[:, place]) * model.z_proj_ln.weight
    x = _transformer(x, condition, model.encoder_blocks, tables[0], past[:depth])
    x = linear(rms_norm(x) * model.encoder_norm.weight, model.decoder_embed)
    x = x + model.decoder_pos_embed_learned[:, place]
    x = _transformer(x, condition, model.decoder_blocks, tables[1], past[depth:])
    return rms_norm(x) * model.decoder_norm.weight


def _transformer(x: Tensor, condition: Tensor, blocks: Weights, table: Table, past: list[Past]) -> Tensor:
    """`x [2 B, n, w]` through all blocks, each of which has its past."""
    for block, seen in zip(blocks, past, strict=True):
        x = adaptive_block(x, modulation(condition, block.ada_lin[1]), block, table, seen)
    return x


def _class_embedding(model: FlowAR | XAR, labels: Tensor) -> Tensor:
    """Of the labels `[B]`, then of no class: `[2 B, 1, w]`."""
    return model.class_emb.weight[torch.cat((labels, torch.full_like(labels, model.num_classes)))][:, None]


def _doubled(x: Tensor) -> Tensor:
    """The first half of the rows, twice."""
    return torch.cat((x.chunk(2)[0],) * 2)


def _times(x: Tensor, t: float) -> Tensor:
    """The time `t` of each row of `x`."""
    return torch.full((len(x),), t, device=x.device)


def _flow_times(x: Tensor, t: float) -> Tensor:
    """The time `t` of each row of `x`, as FlowAR and xAR are told it: `[2 B, 1]`."""
    return flow_times(_times(x, t)[:, None], x.device)


def _guided(out: Tensor, scale: float) -> Tensor:
    """Both halves guided alike."""
    cond, null = out.chunk(2)
    return torch.cat((combine(cond, null, scale),) * 2)
