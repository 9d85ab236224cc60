"""Plain samplers, correct and unoptimized, that the fast ones are measured against.

Each draws what `generate` draws from the same model and the same noise, up to rounding, in the manner of the published
code: conditional and unconditional rows everywhere, whether guidance acts or not, and nothing carried over from one
step to the next but the state.

Letters: `B` batch, `N` tokens, `D` token channels, `n` tokens of a stage, `S` buffer slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from disa_framework.guidance import Guidance, combine
from disa_framework.models import MAR, XAR, FlowAR
from disa_framework.models.adaptive import allocate_caches, grid_positions, rotary
from disa_framework.models.layers import flow_times, unpatchify
from disa_framework.models.mar import masked_counts
from disa_framework.noise import NoiseSource
from disa_framework.solvers import Solver
from disa_framework.solvers.table import Table


@torch.inference_mode()
def mar(
    model: MAR, labels: Tensor, budget: Sequence[int], solver: Solver, guidance: Guidance, noise: NoiseSource
) -> Tensor:
    """Latents `[B, C, H, W]`; all tokens go through both ends of the backbone, and times and conditioning are embedded
    for every row at every step."""
    B, N, D, net = len(labels), model.num_tokens, model.token_channels, model.diffloss.net
    counts, order = masked_counts(N, len(budget)), noise.permutation(N)
    embedding = torch.cat((model.class_emb(labels), model.fake_latent.expand(B, -1)))
    tokens, masked = order.new_zeros(B, N, D, dtype=model.dtype), torch.ones_like(order, dtype=torch.bool)
    for stage, steps in enumerate(budget):
        still = torch.zeros_like(masked).scatter(1, order[:, : counts[stage]], True)
        drawn, n = masked & ~still, int(masked[0].sum() - still[0].sum())
        z = _mar_backbone(model, tokens.repeat(2, 1, 1), embedding, masked.repeat(2, 1))[drawn.repeat(2, 1)]
        scale = guidance.at((N - max(counts[stage], 1)) / N)

        def evaluate(x: Tensor, t: float, z: Tensor = z, scale: float = scale) -> Tensor:
            rows = torch.cat((x.chunk(2)[0],) * 2)
            y = net.time_embed(torch.full((len(rows),), t, device=x.device)) + net.cond_embed(z)
            out, value = net(rows, y).chunk(2, dim=-1)
            return torch.cat((_guided(out, scale if guidance.acts(model.process.unit_time(t)) else 1.0), value), dim=-1)

        table = solver.table(model.process, steps)
        normals = noise.normal(stage, (n, D), table.draws, table.state_dtype).flatten(1, 2)
        tokens[drawn] = _integrate(table, evaluate, normals).to(tokens.dtype)
        masked = still
    return unpatchify(tokens, model.patch_size, *model.latent_shape[1:])


@torch.inference_mode()
def flowar(
    model: FlowAR, labels: Tensor, budget: Sequence[int], solver: Solver, guidance: Guidance, noise: NoiseSource
) -> Tensor:
    """Latents `[B, C, H, W]`; the head's times, conditioning and rotary table are made anew at every step."""
    B, C, K, net = len(labels), model.latent_shape[0], model.max_stages, model.flownet
    embedding = torch.cat((model.class_emb(labels), model.class_emb.weight[-1].expand(B, -1)))[:, None]
    blocks = (*model.encoder_blocks, *model.decoder_blocks)
    caches, x = allocate_caches(blocks, 2 * B, model.ends[-1], embedding), embedding
    for stage, (side, steps) in enumerate(zip(model.scales, budget, strict=True)):
        z = model.backbone(x, embedding, model.tables([side]), model.stage_tokens(stage), caches)
        scale = guidance.at(stage / (K - 1) if stage else 0.0)

        def evaluate(x: Tensor, t: float, z: Tensor = z, side: int = side, scale: float = scale) -> Tensor:
            rows = torch.cat((x.chunk(2)[0],) * 2)
            conditioning = net.condition(z, rotary(net.res_blocks).table(grid_positions(side)))
            times = net.embed_times(flow_times(torch.full((len(rows), 1), t), x.device))
            return _guided(net(rows, times, conditioning), scale if guidance.acts(t) else 1.0)

        table = solver.table(model.process, steps)
        normals = noise.normal(stage, (side * side, C), table.draws, table.state_dtype)
        tokens = _integrate(table, evaluate, normals).to(model.dtype)
        if stage + 1 < K:
            x = model.z_proj(model.next_input(tokens, stage).repeat(2, 1, 1))
    return unpatchify(tokens, 1, *model.latent_shape[1:])


@torch.inference_mode()
def xar(
    model: XAR, labels: Tensor, budget: Sequence[int], solver: Solver, guidance: Guidance, noise: NoiseSource
) -> Tensor:
    """Latents `[B, C, H, W]`; both branches draw every cell, and times are embedded at every step."""
    B, C, K, n = len(labels), model.latent_shape[0], model.max_stages, model.cell_tokens
    embedding = torch.cat((model.class_emb(labels), model.class_emb.weight[-1].expand(B, -1)))[:, None]
    caches = allocate_caches((*model.encoder_blocks, *model.decoder_blocks), 2 * B, K * n, embedding)
    cells: list[Tensor] = []

    def velocity(x: Tensor, t: float, stage: int) -> Tensor:
        times = model.time_embed(flow_times(torch.full((len(x), 1), t), x.device))
        return model.velocity(x, embedding + times, model.cell(stage), caches)

    for stage, steps in enumerate(budget):
        if stage:
            velocity(cells[-1].repeat(2, 1, 1), 0.0, stage - 1)
        scale = guidance.at(stage / (K - 1) if stage else 0.0)

        def evaluate(x: Tensor, t: float, stage: int = stage, scale: float = scale) -> Tensor:
            v = velocity(torch.cat((x.chunk(2)[0],) * 2), t, stage)
            return _guided(v, scale if guidance.acts(t) else 1.0)

        table = solver.table(model.process, steps)
        normals = noise.normal(stage, (n, C), table.draws, table.state_dtype)
        cells.append(_integrate(table, evaluate, normals).to(model.dtype))
    return model.from_cells(torch.cat(cells, dim=1))


def _mar_backbone(model: MAR, tokens: Tensor, embedding: Tensor, masked: Tensor) -> Tensor:
    """`z [2 B, N, w]` of all tokens `[2 B, N, D]`, given those that are not masked."""
    rows, S, positions = len(tokens), model.buffer_size, model.positions
    buffer = embedding[:, None].expand(-1, S, -1)
    x = model.z_proj_ln(torch.cat((buffer, model.z_proj(tokens)), dim=1) + positions.encoder)
    seen = torch.cat((masked.new_ones(rows, S), ~masked), dim=1)
    x = x[seen].unflatten(0, (rows, -1))
    for block in model.encoder_blocks:
        x = block(x)
    x = model.decoder_embed(model.encoder_norm(x))
    whole = model.mask_token.repeat(rows, seen.shape[1], 1)
    whole[seen] = x.flatten(0, 1)
    x = whole + positions.decoder
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_norm(x)[:, S:] + positions.head


def _guided(out: Tensor, scale: float) -> Tensor:
    """Both halves guided alike."""
    cond, null = out.chunk(2)
    return torch.cat((combine(cond, null, scale),) * 2)


def _integrate(table: Table, evaluate: Callable[[Tensor, float], Tensor], normals: Tensor) -> Tensor:
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
    return x.chunk(2)[0]
