"""Optional compilation, block by block.

All blocks of a network have the same shapes, so the compiler works once and every block uses the result; names of
parameters stay as they are.
"""

from __future__ import annotations

from speech2image.diffusion.transformer import DiffusionTransformer


def compile_blocks(
    network: DiffusionTransformer, backend: str = "inductor", mode: str | None = None
) -> DiffusionTransformer:
    """Let `torch.compile` fuse each block in place; the first call of a new batch size takes longer.

    Args:
        network: changed in place, keeps its state keys.
        backend: compiler; `inductor` needs a C++ compiler on a CPU, Triton on a GPU.
        mode: e.g. `max-autotune`; None: the default.

    Returns: the same network.
    """
    for block in network.blocks:
        block.compile(backend=backend, mode=mode, dynamic=False)
    return network
