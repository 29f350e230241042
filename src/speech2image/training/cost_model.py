"""What a training step costs on 1 to many GPUs, as plain arithmetic: seconds, bytes and FLOPs, no torch.

Here: kernels on one GPU, gradients between GPUs, batches from storage, checkpoints and preemption, and the
bottleneck they make together.  What a step does is counted from the real modules in `step_counts.py`; what a
machine can do stands in `conf/hardware/`; `speech2image plan` joins them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: Bytes of a float32, the type of weights, gradients, optimizers and averages.
FLOAT_BYTES = 4
#: Gradients travel in buckets of this size, `synchronised.BUCKET_BYTES`.
BUCKET_BYTES = 32 * 2**20
#: One core draws so many normal numbers a second (measured, numpy's Philox, 9.4 ns each).
NORMALS_A_SECOND = 1.06e8
PAGE_BYTES = 4096

Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Machine:
    """What the hardware can do, in FLOP/s, bytes/s and seconds.

    Attributes:
        flops: peak of matrix products in the precision of the run.
        achieved_share: share of `flops` that products and convolutions reach.
        memory: bandwidth of device memory that kernels reach.
        memory_bytes: device memory of one GPU.
        op_s: host time to start one operation.
        is_async: the host runs ahead of the device; False: starting and computing add up.
        per_node: GPUs in a node.
        link: bandwidth between GPUs of a node, one direction, of one GPU.
        link_s: latency of one message inside a node.
        network: bandwidth between nodes, one direction, all adapters of a node together.
        network_s: latency of one message between nodes.
        overlap: share of the backward pass behind which gradient traffic hides; the suite's own `ddp` sends after it.
        read: bandwidth of the shared storage, all nodes together.
        write: bandwidth of the one process that writes checkpoints, read back and hashed.
        assemble: bytes a second at which one core assembles a batch.
        assemble_s: time of one core for an image beside its bytes.
        startup_s: from the start of a job to its first step, and again after each interruption.
        node_mtbf_s: mean time between failures of a node.
        preempt_s: mean time between preemptions of the job; infinity: never.
    """

    flops: float
    achieved_share: float
    memory: float
    memory_bytes: float
    op_s: float
    is_async: bool
    per_node: int
    link: float
    link_s: float
    network: float
    network_s: float
    overlap: float
    read: float
    write: float
    assemble: float
    assemble_s: float
    startup_s: float
    node_mtbf_s: float
    preempt_s: float


@dataclass(frozen=True)
class Work:
    """What one GPU does in one step.

    Attributes:
        images: its share of the batch.
        ops: operations forward and backward, `(times, FLOPs, bytes)` of each kind.
        backward_share: share of the FLOPs in the backward pass.
        trained: parameters that get gradients.
        averaged: parameters of moving averages.
        frozen: parameters that are only read.
        activation_bytes: most bytes kept for the backward pass at one time.
        num_norms: batch norms, forward and backward, whose statistics all ranks share.
        num_units: parts that FSDP gathers one after the other.
        clips: gradients are read and scaled once more.
        batch: images of the whole batch.
        normals: normal numbers drawn for an image; every rank draws those of the whole batch.
        read_bytes: bytes an image costs storage.
        missed_share: share of images that are not in memory already.
        assemble_bytes: bytes an image has in a batch.
        workers: loader processes of a GPU; 0: batches are made between steps.
    """

    images: int
    ops: tuple[tuple[int, float, float], ...]
    backward_share: float
    trained: int
    averaged: int
    frozen: int
    activation_bytes: float
    num_norms: int
    num_units: int
    clips: bool
    batch: int
    normals: int
    read_bytes: float
    missed_share: float
    assemble_bytes: float
    workers: int

    @property
    def state_bytes(self) -> float:
        """Return the bytes of a checkpoint: weights, two moments of Adam, averages."""
        return float(FLOAT_BYTES * (3 * self.trained + self.averaged))


# ---- one GPU ----------------------------------------------------------------------------------
def kernels_s(work: Work, machine: Machine) -> tuple[float, float, float]:
    """Return seconds of a step: by arithmetic, by memory traffic, and of the host, which starts both.

    Each kind of operation lasts max(FLOPs / (share of peak), bytes / bandwidth) and counts as what limits it.  The
    host also draws the normal numbers of the whole batch.

    Source:  the roofline of Williams, Waterman and Patterson, CACM 52(4), 2009, operation by operation.
    """
    arithmetic = traffic = 0.0
    for times, flops, num_bytes in work.ops:
        by_flops = times * flops / (machine.flops * machine.achieved_share)
        by_bytes = times * num_bytes / machine.memory
        if by_flops >= by_bytes:
            arithmetic += by_flops
        else:
            traffic += by_bytes
    host = (
        sum(times for times, _, _ in work.ops) * machine.op_s + work.batch * work.normals / NORMALS_A_SECOND
    )
    return arithmetic, traffic, host


def update_s(work: Work, machine: Machine, shards: int = 1, copies: bool = False) -> float:
    """Return seconds of clipping, Adam and moving averages: all of it memory traffic.

    Fused Adam reads weight, gradient and two moments and writes three of them (7 values a parameter), clipping
    reads gradients twice and writes them once (3), an average reads two values and writes one (3).  With `copies`
    gradients go into buckets, are divided and come back (6), see `synchronised.average_gradients`.
    """
    values = (7 + 3 * work.clips + 6 * copies) * work.trained + 3 * work.averaged
    return FLOAT_BYTES * values / shards / machine.memory


def memory_bytes(work: Work, shards: int = 1) -> float:
    """Return the bytes one GPU holds: weights, gradients, Adam, averages, frozen networks, activations."""
    kept = FLOAT_BYTES * (4 * work.trained + work.averaged) / shards
    return kept + FLOAT_BYTES * work.frozen + work.activation_bytes


# ---- between GPUs -----------------------------------------------------------------------------
def ring_s(num_bytes: float, ranks: int, bandwidth: float, latency_s: float) -> float:
    """Return the seconds of a ring all-reduce: 2 (N - 1) / N bytes over each link, 2 (N - 1) messages.

    Source:  Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009; NCCL's `PERFORMANCE.md` (bus bandwidth).
    """
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * num_bytes / bandwidth + 2 * (ranks - 1) * latency_s


def tree_s(num_bytes: float, ranks: int, bandwidth: float, latency_s: float) -> float:
    """Return the seconds of an all-reduce over two binary trees: 2 bytes a byte, 2 log2 N messages.

    Source:  Sanders, Speck and Träff, Parallel Computing 35(12), 2009, as NCCL 2.4 has it.
    """
    if ranks == 1:
        return 0.0
    return 2 * num_bytes / bandwidth + 2 * math.ceil(math.log2(ranks)) * latency_s


def all_reduce_s(num_bytes: float, ranks: int, machine: Machine) -> float:
    """Return the seconds until all ranks hold the sum of one buffer.

    Inside a node a ring over its links; between nodes each GPU reduces its part through its share of the
    adapters, by ring or tree, whichever ends first.  The two follow each other here; NCCL pipelines them.
    """
    local, nodes = min(ranks, machine.per_node), math.ceil(ranks / machine.per_node)
    inside = ring_s(num_bytes, local, machine.link, machine.link_s)
    way = (num_bytes, nodes, machine.network, machine.network_s)
    return inside + min(ring_s(*way), tree_s(*way))


def all_gather_s(num_bytes: float, ranks: int, machine: Machine) -> float:
    """Return the seconds until each rank holds all shards of one buffer; a reduce-scatter takes as long.

    Source:  half a ring all-reduce: (N - 1) / N bytes over each link, N - 1 messages.
    """
    local, nodes = min(ranks, machine.per_node), math.ceil(ranks / machine.per_node)
    inside = ring_s(num_bytes, local, machine.link, machine.link_s)
    return (inside + ring_s(num_bytes, nodes, machine.network, machine.network_s)) / 2


def gradients_s(work: Work, machine: Machine, ranks: int, strategy: Strategy = "ddp") -> float:
    """Return the seconds of traffic for gradients (`ddp`), or for weights and gradients (`fsdp`).

    `ddp` reduces buckets of 32 MiB; `fsdp` gathers each unit for the forward and for the backward pass and
    scatters its gradient, three halves of the bytes.

    Source:  Li et al., VLDB 13(12), 2020 (DDP, section 3.2); Zhao et al., VLDB 16(12), 2023 (FSDP, section 3).
    """
    if ranks == 1:
        return 0.0
    num_bytes = float(FLOAT_BYTES * work.trained)
    if strategy == "fsdp":
        units = max(1, work.num_units)
        return 3 * units * all_gather_s(num_bytes / units, ranks, machine)
    buckets = max(1, math.ceil(num_bytes / BUCKET_BYTES))
    return buckets * all_reduce_s(num_bytes / buckets, ranks, machine)


def norms_s(work: Work, machine: Machine, ranks: int) -> float:
    """Return the seconds that shared batch-norm statistics wait for: one small all-reduce each, never hidden."""
    return work.num_norms * all_reduce_s(0.0, ranks, machine)


def exposed_s(traffic_s: float, compute_s: float, work: Work, machine: Machine, strategy: Strategy) -> float:
    """Return the traffic that does not hide behind computing: DDP behind the backward pass, FSDP behind both."""
    behind = compute_s * (work.backward_share if strategy == "ddp" else 1.0) * machine.overlap
    return max(0.0, traffic_s - behind)


# ---- data, checkpoints, interruptions ---------------------------------------------------------
def batch_s(work: Work, machine: Machine, ranks: int) -> tuple[float, float]:
    """Return seconds of making a batch: storage, shared by all ranks, and cores, shared by the GPU's workers."""
    pages = math.ceil(work.read_bytes / PAGE_BYTES) * PAGE_BYTES
    storage = ranks * work.images * work.missed_share * pages / machine.read
    core = work.images * (machine.assemble_s + work.assemble_bytes / machine.assemble)
    return storage, core / max(1, work.workers)


def save_s(work: Work, machine: Machine) -> float:
    """Return the seconds of one checkpoint, for which every rank waits."""
    return work.state_bytes / machine.write


def mtbf_s(machine: Machine, ranks: int) -> float:
    """Return the mean time between interruptions of a job: any node's failure, or a preemption."""
    nodes = math.ceil(ranks / machine.per_node)
    a_second = nodes / machine.node_mtbf_s + 1.0 / machine.preempt_s
    return 1.0 / a_second if a_second else math.inf


def best_interval_s(save: float, mtbf: float) -> float:
    """Return the time between checkpoints that loses least, where saving is short against `mtbf`.

    sqrt(2 save mtbf) - save.

    Source:  Young, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22(3), 2006 (its first order).
    """
    return max(save, math.sqrt(2 * save * mtbf) - save)


def lost_share(interval: float, save: float, restart: float, mtbf: float) -> float:
    """Return the extra time an interrupted job takes: each interruption loses half an interval and a restart.

    Source:  Young 1974, first order; good while the result is small.
    """
    return ((interval + save) / 2 + restart) / mtbf


# ---- all of it --------------------------------------------------------------------------------
@dataclass(frozen=True)
class StepCost:
    """A step of a job, in seconds of the clock, parts that add up to `total`.

    Attributes:
        arithmetic: kernels limited by products and convolutions.
        memory: kernels limited by device memory, optimizer and averages with them.
        host: waiting for the host to start kernels and to draw numbers.
        gradients: traffic that is not hidden.
        norms: shared batch-norm statistics.
        data: waiting for batches.
        checkpoints: saves, spread over the steps between them.
        interruptions: lost work and restarts, spread over all steps.
    """

    arithmetic: float
    memory: float
    host: float
    gradients: float
    norms: float
    data: float
    checkpoints: float
    interruptions: float

    @property
    def parts(self) -> dict[str, float]:
        """Return the parts by name."""
        return dict(self.__dict__)

    @property
    def total(self) -> float:
        """Return the seconds of a step, interruptions included."""
        return sum(self.parts.values())

    @property
    def limit(self) -> str:
        """Return the name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def step_cost(
    work: Work, machine: Machine, ranks: int, save_every: int, strategy: Strategy = "ddp"
) -> StepCost:
    """Return what a step costs on `ranks` GPUs.

    Args:
        work: of one GPU.
        machine: of each node.
        ranks: GPUs.
        save_every: steps between checkpoints.
        strategy: how ranks share weights.
    """
    shards = ranks if strategy == "fsdp" else 1
    arithmetic, traffic, host = kernels_s(work, machine)
    updating = update_s(work, machine, shards, copies=ranks > 1 and strategy == "ddp")
    device = arithmetic + traffic + updating
    waiting = max(0.0, host - device) if machine.is_async else host
    computing = arithmetic + traffic + waiting  # while kernels wait, gradients may still travel
    gradients = exposed_s(gradients_s(work, machine, ranks, strategy), computing, work, machine, strategy)
    norms = norms_s(work, machine, ranks)
    busy = device + waiting + gradients + norms
    storage, core = batch_s(work, machine, ranks)
    data = max(0.0, max(storage, core) - busy) if work.workers else storage + core
    save = save_s(work, machine)
    running = busy + data + save / save_every
    lost = lost_share(running * save_every, save, machine.startup_s, mtbf_s(machine, ranks))
    return StepCost(
        arithmetic, traffic + updating, waiting, gradients, norms, data, save / save_every, running * lost
    )
