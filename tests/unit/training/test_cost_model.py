"""The model of cost against cases worked out by hand, and at its limits."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech2image.training import cost_model, synchronised
from speech2image.training.cost_model import Machine, Work

#: Round figures: a peak of 1000, memory of 100 bytes/s, links of 10, networks of 2.
MACHINE = Machine(
    flops=1000.0, achieved_share=0.5, memory=100.0, memory_bytes=1e6, op_s=0.0, is_async=False, per_node=4,
    link=10.0, link_s=0.0, network=2.0, network_s=0.0, overlap=0.0, read=1e9, write=8.0, assemble=1e9,
    assemble_s=0.0, startup_s=0.0, node_mtbf_s=math.inf, preempt_s=math.inf,
)  # fmt: skip
WORK = Work(
    images=2, ops=((3, 500.0, 10.0), (2, 0.0, 50.0)), backward_share=2 / 3, trained=5, averaged=2, frozen=0,
    activation_bytes=100.0, num_norms=0, num_units=1, clips=False, batch=2, normals=0, read_bytes=0.0, missed_share=1.0,
    assemble_bytes=0.0, workers=1,
)  # fmt: skip


def machine(**changes: float | bool) -> Machine:
    return dataclasses.replace(MACHINE, **changes)  # type: ignore[arg-type]


def work(**changes: float | bool) -> Work:
    return dataclasses.replace(WORK, **changes)  # type: ignore[arg-type]


def test_kernels_cost_what_limits_each() -> None:
    # 3 products of 500 / (1000 * 0.5) = 1 s each, more than their 10 / 100; 2 copies of 50 / 100 s each
    assert cost_model.kernels_s(WORK, machine(op_s=0.25)) == (3.0, 1.0, 1.25)


def test_update_reads_and_writes_what_adam_and_averages_need() -> None:
    assert cost_model.update_s(WORK, MACHINE) == pytest.approx(4 * (7 * 5 + 3 * 2) / 100)
    assert cost_model.update_s(work(clips=True), MACHINE) == pytest.approx(4 * (10 * 5 + 3 * 2) / 100)
    assert cost_model.update_s(WORK, MACHINE, copies=True) == pytest.approx(4 * (13 * 5 + 3 * 2) / 100)
    assert cost_model.update_s(WORK, MACHINE, shards=2) == pytest.approx(4 * (7 * 5 + 3 * 2) / 200)


def test_state_and_memory_are_weights_gradients_moments_and_averages() -> None:
    assert WORK.state_bytes == 4 * (3 * 5 + 2)
    assert cost_model.memory_bytes(WORK) == 4 * (4 * 5 + 2) + 100
    assert cost_model.memory_bytes(work(frozen=7), shards=2) == 2 * (4 * 5 + 2) + 4 * 7 + 100


def test_ring_of_four_moves_three_halves_of_the_bytes_in_six_messages() -> None:
    assert cost_model.ring_s(80.0, 4, 10.0, 0.5) == pytest.approx(1.5 * 8 + 6 * 0.5)


def test_all_reduce_over_two_nodes_adds_links_and_network() -> None:
    # 4 GPUs a node: 1.5 x 80 / 10 inside; 2 nodes: 1 x 80 / 2 between them
    assert cost_model.all_reduce_s(80.0, 8, MACHINE) == pytest.approx(12 + 40)


def test_many_small_messages_between_nodes_take_the_tree() -> None:
    slow = machine(network_s=1.0)
    nodes = 64
    ring, tree = (f(1.0, nodes, 2.0, 1.0) for f in (cost_model.ring_s, cost_model.tree_s))
    assert tree == pytest.approx(1.0 + 12.0) and ring > 126
    inside = cost_model.ring_s(1.0, 4, 10.0, 0.0)
    assert cost_model.all_reduce_s(1.0, 4 * nodes, slow) == pytest.approx(inside + tree)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_gpu_sends_nothing(strategy: cost_model.Strategy) -> None:
    slow = machine(link_s=1.0, network_s=1.0)
    assert cost_model.gradients_s(WORK, slow, 1, strategy) == 0.0
    assert cost_model.norms_s(work(num_norms=9), slow, 1) == 0.0
    cost = cost_model.step_cost(WORK, slow, 1, 10, strategy)
    assert cost.gradients == cost.norms == 0.0


def test_fsdp_moves_three_halves_of_what_ddp_moves() -> None:
    ddp, fsdp = (cost_model.gradients_s(WORK, MACHINE, 4, name) for name in ("ddp", "fsdp"))
    assert ddp == pytest.approx(2 * 3 / 4 * 20 / 10) and fsdp == pytest.approx(1.5 * ddp)


def test_every_rank_draws_for_the_whole_batch() -> None:
    few, many = (cost_model.kernels_s(work(batch=batch, normals=100), MACHINE)[2] for batch in (2, 512))
    assert many == pytest.approx(256 * few) and few == pytest.approx(200 / cost_model.NORMALS_A_SECOND)


def test_buckets_are_those_of_training() -> None:
    assert synchronised.BUCKET_BYTES == cost_model.BUCKET_BYTES


def test_gradients_of_many_buckets_pay_latency_for_each() -> None:
    large = work(trained=3 * cost_model.BUCKET_BYTES // 4)
    fast = machine(link=math.inf, link_s=1.0)
    assert cost_model.gradients_s(large, fast, 2) == pytest.approx(3 * 2 * 1.0)


def test_traffic_hides_behind_its_share_of_the_backward_pass() -> None:
    half = machine(overlap=0.5)
    assert cost_model.exposed_s(5.0, 6.0, WORK, half, "ddp") == pytest.approx(5 - 6 * 2 / 3 / 2)
    assert cost_model.exposed_s(5.0, 6.0, WORK, half, "fsdp") == pytest.approx(5 - 6 / 2)
    assert cost_model.exposed_s(1.0, 6.0, WORK, half, "ddp") == 0.0


def test_batches_read_whole_pages_for_all_ranks_and_share_cores() -> None:
    read = work(read_bytes=5000.0, assemble_bytes=100.0, workers=4, missed_share=0.5)
    slow = machine(read=8192.0, assemble=50.0, assemble_s=1.0)
    storage, core = cost_model.batch_s(read, slow, 3)
    assert storage == pytest.approx(3 * 2 * 0.5 * 8192 / 8192) and core == pytest.approx(2 * (1 + 2) / 4)


def test_batches_without_workers_are_made_between_steps() -> None:
    slow = machine(assemble_s=1.0)
    alone = cost_model.step_cost(work(workers=0), slow, 1, 10)
    beside = cost_model.step_cost(WORK, slow, 1, 10)
    assert alone.data == pytest.approx(2.0) and beside.data == 0.0


def test_slow_host_shows_only_where_the_device_waits() -> None:
    ahead, lockstep = (
        cost_model.step_cost(WORK, machine(op_s=0.1, is_async=is_async), 1, 10).host
        for is_async in (True, False)
    )
    assert ahead == 0.0 and lockstep == pytest.approx(0.5)
    behind = cost_model.step_cost(WORK, machine(op_s=10.0, is_async=True), 1, 10)
    assert behind.arithmetic + behind.memory + behind.host == pytest.approx(50.0)


def test_checkpoints_are_spread_over_their_steps() -> None:
    assert cost_model.save_s(WORK, MACHINE) == pytest.approx(68 / 8)
    assert cost_model.step_cost(WORK, MACHINE, 1, 10).checkpoints == pytest.approx(0.85)


def test_interruptions_add_up_over_nodes_and_preemptions() -> None:
    often = machine(node_mtbf_s=100.0, preempt_s=50.0)
    assert cost_model.mtbf_s(often, 4) == pytest.approx(1 / (1 / 100 + 1 / 50))
    assert cost_model.mtbf_s(often, 5) == pytest.approx(1 / (2 / 100 + 1 / 50))
    assert cost_model.mtbf_s(MACHINE, 5) == math.inf


@given(save=st.floats(0.01, 10.0), mtbf=st.floats(1e4, 1e7))
def test_best_interval_loses_least(save: float, mtbf: float) -> None:
    def overhead(interval: float) -> float:
        return save / interval + cost_model.lost_share(interval, save, 0.0, mtbf)

    best = cost_model.best_interval_s(save, mtbf)
    assert overhead(best) <= 1.01 * min(
        overhead(best * factor) for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
    )


def test_parts_add_up_and_the_largest_limits() -> None:
    cost = cost_model.step_cost(work(num_norms=3), machine(link_s=0.1, op_s=0.2), 4, 10)
    assert cost.total == pytest.approx(sum(cost.parts.values()))
    assert cost.limit == "memory"
    # 3 s products, 1 s copies, 2.84 s update with buckets, 1 s starting, 3 s bytes + 0.6 s messages, norms 3 x 0.6 s, saves 0.85 s
    assert cost.total == pytest.approx(3 + 1 + 2.84 + 1 + 3.6 + 1.8 + 0.85)


def test_efficiency_falls_with_gpus_and_is_whole_without_traffic() -> None:
    real = [cost_model.step_cost(WORK, MACHINE, gpus, 10).total for gpus in (1, 2, 4, 8, 32, 256)]
    assert real == sorted(real) and real[-1] > real[0]
    free = machine(link=math.inf, network=math.inf, read=math.inf)
    ideal = {cost_model.step_cost(WORK, free, gpus, 10).total for gpus in (2, 8, 256)}
    assert len(ideal) == 1  # the same step everywhere: images a second grow in proportion
