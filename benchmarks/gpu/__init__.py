"""Everything that only a GPU can show: that it draws there what it draws on the CPU, and how long that takes.

    python -m benchmarks.gpu [--minutes 7] [--output outputs/gpu.json] [--dry]

It needs PyTorch, Lightning, torchmetrics, safetensors and transformers, and no network. Each part runs in a process of
its own, which is stopped when its time is up, and the file is written after every finding, so that nothing is lost.
With --dry tiny models do all of it on the CPU, in about a minute, to see that it runs.
"""
