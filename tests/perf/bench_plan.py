"""The model of cost beside real steps on this CPU, one rank: predicted and measured processor seconds.

Each round measures the machine (products, convolutions, memory, starting operations) and then times the step of each
toy, forward, backward, clipping, optimizers and average, as `speech2image plan` counts it.  Processor time on one
thread, because other programs take turns; medians over rounds, and the spread.

Run: OMP_NUM_THREADS=1 python tests/perf/bench_plan.py [--rounds 5] [--steps 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from speech2image.app.plan import machine_of, work_of
from speech2image.config.compose import compose
from speech2image.training import cost_model
from speech2image.training.machine import measure
from speech2image.training.step_counts import step_parts

TOYS = (
    "stackgan_v2_birds",
    "stackgan_v2_birds_64",
    "s2ivq_d_birds",
    "sen_birds",
    "speechclip_birds",
    "codec_birds",
)
FRAMES = 300


def one_step(config: dict[str, Any], images: int) -> Any:
    """Return a step as the suite's module makes it: all gradients, then every optimizer, then the average."""
    module, forward, backward = step_parts(config, images, FRAMES, torch.device("cpu"))
    optimizers = module.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    trained = [value for value in module.parameters() if value.requires_grad]
    clip, average = config["optim"].get("clip_norm"), getattr(module, "ema", None)

    def step() -> None:
        backward(forward())
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update()

    return step


def predicted_s(
    config: dict[str, Any], work: cost_model.Work, folder: Path
) -> tuple[float, dict[str, float]]:
    """Return the seconds of kernels and updates that the model gives, and what was measured for it."""
    found = measure(folder, torch.device("cpu"), half=False, clock=time.process_time)
    hardware = {
        **config["hardware"], "fp32_tflops": found["tflops"], "memory_gb": found["memory_gb"],
        "memory_tb_s": found["memory_tb_s"], "op_us": found["op_us"], "write_gb_s": found["write_gb_s"],
    }  # fmt: skip
    machine = machine_of({**config, "hardware": hardware})[0]
    return sum(cost_model.kernels_s(work, machine)) + cost_model.update_s(work, machine), found


def main() -> None:
    """Print a line for each toy; write all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    made: dict[str, Any] = {}
    toys = {}
    for name in TOYS:
        config = compose("plan", [f"experiment={name}", "hardware=this_machine"])
        images = config["trainer"]["batch_size"]
        work = dataclasses.replace(work_of({**config, "utterance_s": FRAMES / 100}, images)[0], workers=1)
        toys[name] = (config, work, one_step(config, images))
        made[name] = {"images": images, "predicted_s": [], "measured_s": [], "machine": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            for name, (config, work, step) in toys.items():
                predicted, found = predicted_s(config, work, Path(folder))
                start = time.process_time()
                for _ in range(options.steps):
                    step()
                measured = (time.process_time() - start) / options.steps
                if number:  # the first round warms up
                    made[name]["predicted_s"].append(predicted)
                    made[name]["measured_s"].append(measured)
                    made[name]["machine"].append(found)
    print(
        f"{'toy':<24}{'predicted':>10}{'measured':>10}{'ratio':>7}   measured from .. to, {options.rounds} rounds"
    )
    for name, entry in made.items():
        predicted, measured = (statistics.median(entry[key]) for key in ("predicted_s", "measured_s"))
        entry["ratio"] = statistics.median(
            p / m for p, m in zip(entry["predicted_s"], entry["measured_s"], strict=True)
        )
        spread = f"{1000 * min(entry['measured_s']):.0f} .. {1000 * max(entry['measured_s']):.0f} ms"
        print(
            f"{name:<24}{1000 * predicted:>7.0f} ms{1000 * measured:>7.0f} ms{entry['ratio']:>7.2f}   {spread}"
        )
    if options.out:
        options.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
