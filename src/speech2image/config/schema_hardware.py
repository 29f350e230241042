"""What a cluster can do: the group `hardware` of `speech2image plan`."""

from __future__ import annotations

from dataclasses import dataclass

from speech2image.config.option import option


@dataclass
class HardwareConfig:
    """GPUs, the links between them, storage, and how often jobs are interrupted; null: measured here."""

    name: str = option("h100", "what it is called in tables")
    bf16_tflops: float | None = option(None, "peak of dense bfloat16 products", unit="TFLOP/s", low=0)
    fp32_tflops: float | None = option(
        None, "peak of dense float32 products as the suite asks for them (TF32)", unit="TFLOP/s", low=0
    )
    achieved_share: float = option(
        0.5, "share of the peak that products and convolutions reach", low=0.01, high=1
    )
    memory_gb: float | None = option(None, "memory of a GPU", unit="GB", low=0)
    memory_tb_s: float | None = option(None, "its bandwidth", unit="TB/s", low=0)
    memory_share: float = option(0.8, "share of that bandwidth that kernels reach", low=0.01, high=1)
    op_us: float | None = option(None, "host time to start one operation", unit="us", low=0)
    is_async: bool = option(True, "the host runs ahead of the device")
    gpus_per_node: int = option(8, "GPUs of a node", low=1, high=1024)
    link_gb_s: float | None = option(None, "between GPUs of a node, one direction, each", unit="GB/s", low=0)
    link_us: float | None = option(None, "latency of a message inside a node", unit="us", low=0)
    network_gb_s: float = option(50.0, "between nodes, one direction, whole node", unit="GB/s", low=0.001)
    network_us: float = option(10.0, "latency of a message between nodes", unit="us", low=0)
    overlap: float = option(
        0.0,
        "share of the backward pass behind which gradients travel; the suite sends them after it",
        low=0,
        high=1,
    )
    cache_gb: float = option(500.0, "memory of a node in which the corpus may stay", unit="GB", low=0)
    read_gb_s: float = option(5.0, "shared storage, all nodes together", unit="GB/s", low=0.001)
    write_gb_s: float | None = option(
        None, "checkpoints by the one process that writes them, read back and hashed", unit="GB/s", low=0
    )
    assemble_gb_s: float = option(7.0, "bytes of batches one core assembles", unit="GB/s", low=0.001)
    assemble_us: float = option(20.0, "time of one core for an image beside its bytes", unit="us", low=0)
    startup_s: float = option(60.0, "from the start of a job to its first step", unit="s", low=0)
    node_mtbf_h: float = option(6300.0, "mean time between failures of a node", unit="h", low=0.01)
    preempt_h: float | None = option(
        None, "mean time between preemptions of the job; null: never", unit="h", low=0.01
    )
