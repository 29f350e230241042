"""`speech2image plan`: what an experiment costs on 1 to many GPUs, counted, not run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError
from speech2image.training.cost_model import (
    Machine,
    StepCost,
    Strategy,
    Work,
    best_interval_s,
    lost_share,
    memory_bytes,
    mtbf_s,
    save_s,
    step_cost,
)

#: Mel frames, samples and stored states of a second of speech.
_FRAMES_A_SECOND = {"wave_16k": 16_000, "states": 50}
_MEL_FRAMES_A_SECOND = 100
#: How batches grow with GPUs: by name, what it means.
SCALINGS = {
    "same batch": "the experiment's batch, shared by all GPUs: the same run, sooner",
    "same share": "the experiment's batch on every GPU: fewer, larger steps over the same images, another run",
}


def run(config: dict[str, Any]) -> Path:
    """Print the tables, write `plan.json` and `plan.png`; print and return their folder."""
    from speech2image.report.plan_figure import draw_plan

    plan = make_plan(config)
    print("\n".join(tables(plan)))
    folder = Path(
        config["out"] or Path(config["paths"]["runs"]) / "plans" / f"{plan['experiment']}-{plan['hardware']}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "plan.json", (json.dumps(plan, indent=1) + "\n").encode())
    draw_plan(plan, folder / "plan.png")
    print(folder)
    return folder


def make_plan(config: dict[str, Any]) -> dict[str, Any]:
    """Return counts, machine and a row for each number of GPUs, plain JSON data.

    Raises:  ConfigError: `gpus` is no list of positive numbers, or hardware is not fully said.
    """
    gpus = config["gpus"]
    if not gpus or any(not isinstance(count, int) or count < 1 for count in gpus):
        raise ConfigError(f"gpus: found {gpus!r}, expected numbers of GPUs from 1", "Type: gpus=[1,8,64,256]")
    machine, measured = machine_of(config)
    batch, strategy = config["trainer"]["batch_size"], _strategy(config)
    works: dict[int, Work] = {}
    shown: dict[int, dict[str, Any]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for scaling in SCALINGS:
        rows[scaling] = []
        for count in sorted({1, *gpus}):
            whole = batch if scaling == "same batch" else batch * count
            if whole % count:
                continue  # every rank takes an equal share
            share = whole // count
            if share not in works:
                works[share], shown[share] = work_of(config, share)
            work = dataclasses.replace(works[share], batch=whole)
            rows[scaling].append(_row(config, machine, work, count))
        for row in rows[scaling]:
            row["efficiency"] = row["images_per_s"] / row["gpus"] / rows[scaling][0]["images_per_s"]
        rows[scaling] = [row for row in rows[scaling] if row["gpus"] in gpus]
    return {
        "experiment": config["name"], "hardware": config["hardware"]["name"], "strategy": strategy,
        "gpus": gpus, "corpus_images": config["corpus_images"],
        "batch": batch, "steps": config["trainer"]["max_steps"], "precision": config["trainer"]["precision"],
        "step": shown[batch], "machine": machine.__dict__ | {"preempt_s": _finite(machine.preempt_s)},
        "measured": measured, "rows": rows,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def machine_of(config: dict[str, Any]) -> tuple[Machine, dict[str, float]]:
    """Return the machine of a configuration, and what of it was measured here now.

    Raises:  ConfigError: a figure is open that only GPUs of several nodes could tell.
    """
    said, measured = dict(config["hardware"]), dict[str, float]()
    half = config["trainer"]["precision"] == "bf16-mixed"
    peak = "bf16_tflops" if half else "fp32_tflops"
    if any(said[key] is None for key in (peak, "memory_gb", "memory_tb_s", "op_us", "write_gb_s")):
        from speech2image.training.fit import device_of
        from speech2image.training.machine import measure

        measured = measure(Path(config["paths"]["runs"]), device_of(config), half)
        found = {**measured, peak: measured["tflops"]}
        said |= {key: found[key] for key in said if said[key] is None and key in found}
    link_gb_s = said["link_gb_s"] or math.inf  # one rank measures no link, and one rank needs none
    return Machine(
        flops=said[peak] * 1e12, achieved_share=said["achieved_share"],
        memory=said["memory_tb_s"] * 1e12 * said["memory_share"], memory_bytes=said["memory_gb"] * 1e9,
        op_s=said["op_us"] / 1e6, is_async=said["is_async"], per_node=said["gpus_per_node"],
        link=link_gb_s * 1e9, link_s=(said["link_us"] or 0.0) / 1e6,
        network=said["network_gb_s"] * 1e9, network_s=said["network_us"] / 1e6, overlap=said["overlap"],
        read=said["read_gb_s"] * 1e9, write=said["write_gb_s"] * 1e9,
        assemble=said["assemble_gb_s"] * 1e9, assemble_s=said["assemble_us"] / 1e6, startup_s=said["startup_s"],
        node_mtbf_s=said["node_mtbf_h"] * 3600,
        preempt_s=math.inf if said["preempt_h"] is None else said["preempt_h"] * 3600,
    ), measured  # fmt: skip


def work_of(config: dict[str, Any], images: int) -> tuple[Work, dict[str, Any]]:
    """Count the step of one GPU with its share of the batch; return it, and what to show of it."""
    from speech2image.training.step_counts import count_step

    audio = config["audio"]["name"]
    frames = round(config["utterance_s"] * _FRAMES_A_SECOND.get(audio, _MEL_FRAMES_A_SECOND))
    counts = count_step(config, images, frames)
    read, assembled = _image_bytes(config, frames)
    work = Work(
        images=images, ops=tuple((times, *cost) for cost, times in counts.ops.items()),
        backward_share=1 - counts.forward_flops / counts.flops, trained=counts.trained, averaged=counts.averaged,
        frozen=counts.frozen, activation_bytes=counts.activation_bytes,
        num_norms=counts.num_norms if config["trainer"]["sync_batch_norm"] else 0, batch=images,
        normals=config["generator"]["noise_dim"] + config["generator"]["condition_dim"]
        if config["stage"] == "gan" else 0,
        num_units=counts.num_units, clips=config["optim"].get("clip_norm") is not None,
        read_bytes=read, missed_share=_missed_share(config, read), assemble_bytes=assembled, workers=config["trainer"]["num_workers"],
    )  # fmt: skip
    shown = {
        "flops": counts.flops, "operations": counts.num_ops,
        "kernel_bytes": sum(times * num_bytes for (_, num_bytes), times in counts.ops.items()),
        "trained": counts.trained, "averaged": counts.averaged, "frozen": counts.frozen,
        "activation_bytes": counts.activation_bytes, "norms": counts.num_norms,
        "read_bytes_an_image": read, "missing": counts.missing,
    }  # fmt: skip
    return work, shown


def _image_bytes(config: dict[str, Any], frames: int) -> tuple[float, float]:
    """Return the bytes an image costs storage, and has in a batch, with what is told about it.

    Corpora keep images at 76/64 of the side and read them whole; sentences lie in memory.
    """
    pixels = 3.0 * config["data"]["image_px"] ** 2
    kept = pixels * (76 / 64) ** 2
    if config["stage"] == "diffusion":
        grid = config["generator"]["grid"] or [8, 8]
        return 4.0 * grid[0] * grid[1], 8.0 * grid[0] * grid[1] + 4096.0
    if config["stage"] == "gan":
        return 2 * kept, 2 * pixels + 4096.0
    if config["stage"] == "codec":
        return kept, pixels
    bands = {"wave_16k": 1, "states": 13 * 768}.get(config["audio"]["name"], 40)
    return kept + 4.0 * frames * bands, pixels + 4.0 * frames * bands


def _strategy(config: dict[str, Any]) -> Strategy:
    return "fsdp" if config["trainer"].get("strategy") == "fsdp" else "ddp"


def _missed_share(config: dict[str, Any], read: float) -> float:
    """Return the share of images that are not in the page cache of a node after the first epoch."""
    cached = config["hardware"]["cache_gb"] * 1e9
    return max(0.0, 1.0 - cached / (config["corpus_images"] * read))


def _row(config: dict[str, Any], machine: Machine, work: Work, gpus: int) -> dict[str, Any]:
    trainer, every = config["trainer"], config["callbacks"]["checkpoint"]["every"]
    strategy = _strategy(config)
    cost = step_cost(work, machine, gpus, every, strategy)
    steps = math.ceil(trainer["max_steps"] * trainer["batch_size"] / work.batch)
    held = memory_bytes(work, gpus if strategy == "fsdp" else 1)
    return {
        "gpus": gpus, "images_per_gpu": work.images, "batch": work.batch, "steps": steps, "step_s": cost.total,
        "parts_s": cost.parts, "limit": cost.limit, "images_per_s": work.batch / cost.total,
        "hours": (steps * cost.total + machine.startup_s) / 3600,
        "gpu_hours": gpus * (steps * cost.total + machine.startup_s) / 3600,
        "memory_gb": held / 1e9, "fits": held < 0.9 * machine.memory_bytes,
        **_saving(cost, work, machine, gpus, every),
    }  # fmt: skip


def _saving(cost: StepCost, work: Work, machine: Machine, gpus: int, every: int) -> dict[str, Any]:
    """Return how often to save, and what saving and interruptions cost as configured and at best."""
    save, mtbf = save_s(work, machine), mtbf_s(machine, gpus)
    step = cost.total - cost.checkpoints - cost.interruptions
    best = best_interval_s(save, mtbf)

    def overhead(interval: float) -> float:
        return save / interval + lost_share(interval, save, machine.startup_s, mtbf)

    return {
        "save_s": save, "mtbf_h": mtbf / 3600, "save_every": every, "best_save_every": max(1, round(best / step)),
        "overhead": overhead(every * step), "best_overhead": overhead(best),
    }  # fmt: skip


# ---- tables -----------------------------------------------------------------------------------
_HEAD = (
    "GPUs",
    "images/GPU",
    "batch",
    "step",
    "images/s",
    "efficiency",
    "hours",
    "GPU hours",
    "GB/GPU",
    "limited by",
)


def tables(plan: dict[str, Any]) -> list[str]:
    """Return the plan as lines to read."""
    step = plan["step"]
    run = f"{plan['steps']:,} steps of {plan['batch']} images, {plan['precision']}, {plan['strategy']}"
    lines = [
        f"{plan['experiment']}: {run}, on {plan['hardware']}",
        f"a step: {step['flops'] / 1e12:.3g} TFLOP, {step['operations']:,} operations move "
        + f"{step['kernel_bytes'] / 1e9:.3g} GB, {step['trained'] / 1e6:.1f} M trained parameters",
        *(f"not counted: {part}" for part in step["missing"]),
    ]
    for scaling, rows in plan["rows"].items():
        lines += ["", f"{scaling}: {SCALINGS[scaling]}"]
        idle = [str(count) for count in plan["gpus"] if count not in {row["gpus"] for row in rows}]
        lines += [f"  {' and '.join(idle)} GPUs: the batch cannot be shared equally"] if idle else []
        cells = [_HEAD, *(_cells(row) for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
        lines += [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
        ]
    last = plan["rows"]["same share"][-1]
    often = f"an interruption every {last['mtbf_h']:.3g} h"
    now = f"saving every {last['save_every']} steps costs {100 * last['overhead']:.2g} %"
    best = f"the best interval is {last['best_save_every']} steps ({100 * last['best_overhead']:.2g} %)"
    saving = f"checkpoints: {last['save_s']:.2g} s each; on {last['gpus']} GPUs {often}: {now}, {best}"
    return [*lines, "", saving]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share = row["parts_s"][row["limit"]] / row["step_s"]
    memory = f"{row['memory_gb']:.1f}" + ("" if row["fits"] else " (too large)")
    return (
        f"{row['gpus']}", f"{row['images_per_gpu']}", f"{row['batch']:,}", _time(row["step_s"]),
        f"{row['images_per_s']:,.4g}", f"{row['efficiency']:.2f}", f"{row['hours']:,.2f}",
        f"{row['gpu_hours']:,.1f}", memory, f"{row['limit']} {100 * share:.0f} %",
    )  # fmt: skip


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
