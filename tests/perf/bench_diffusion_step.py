"""Time and memory of one training step of discrete diffusion beside its textbook form, cross-attention form.

The textbook form, written here and in `bench_posterior.py`, is what the paper describes read literally: a draw
from the log one-hot tensor over the code book with Gumbel noise, attention with its matrix written out, the
activation as a product, the loss by autograd through two dense posteriors, AdamW tensor by tensor.  Both have
equal weights, on equal draws their losses must agree.  Times are interleaved in alternating order, medians are
printed; peak memory is the resident set of a process of its own, beyond what it held before the first step.

Run: python tests/perf/bench_diffusion_step.py [--depth 4 --dim 512 --heads 16 --batch 2 --rounds 3 --threads 2]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from bench_posterior import Textbook

from speech2image.diffusion.process import gumbel, sample_marginal
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss
from speech2image.training.ema import ExponentialMovingAverage

Step = Callable[[], Tensor]
ADAMW = {"lr": 4.5e-4, "betas": (0.9, 0.96), "weight_decay": 0.045}
NUM_TOKENS, GRID, NUM_WORDS, WORDS_DIM = 2887, (32, 32), 77, 512


def textbook_scores(net: Any, tokens: Tensor, t: Tensor, words: Tensor) -> Tensor:
    """Score the codes with the weights of `net`, every formula of the paper as it stands."""

    def step_norm(norm: Any, content: Tensor) -> Tensor:
        scale, shift = norm.linear(F.silu(norm.emb(t)))[:, None].chunk(2, dim=2)
        return F.layer_norm(content, content.shape[-1:]) * (1 + scale) + shift

    def attend(attention: Any, content: Tensor, source: Tensor) -> Tensor:
        query, key, value = (
            F.linear(of, layer.weight, layer.bias).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for of, layer in ((content, attention.query), (source, attention.key), (source, attention.value))
        )
        weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return F.linear(mixed, attention.proj.weight, attention.proj.bias)

    content = net.content_emb(tokens)
    for block in net.blocks:
        normed = step_norm(block.ln1, content)
        content = content + attend(block.attn1, normed, normed)
        content = content + attend(block.attn2, step_norm(block.ln1_1, content), words)
        hidden = F.linear(block.ln2(content), block.mlp[0].weight, block.mlp[0].bias)
        content = content + F.linear(
            hidden * torch.sigmoid(1.702 * hidden), block.mlp[2].weight, block.mlp[2].bias
        )
    norm, last = net.to_logits
    return F.linear(norm(content), last.weight, last.bias).transpose(1, 2)


def textbook_draw(log_probs: Tensor) -> Tensor:
    """Draw a class a position from `(B, C, L)` log-probabilities with one Gumbel number a class."""
    return (log_probs + gumbel(torch.rand_like(log_probs))).argmax(1)


def textbook_step(net: DiffusionTransformer, x0: Tensor, words: Tensor) -> tuple[Step, Callable[..., Tensor]]:
    """Return the step in its textbook form, and its loss for given draws."""
    textbook = Textbook(MaskReplaceSchedule(NUM_TOKENS))
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False, **ADAMW)
    average = copy.deepcopy(list(net.parameters()))

    def loss(t: Tensor, x_t: Tensor) -> Tensor:
        return textbook.loss(textbook_scores(net, x_t, t, words), x0, x_t, t, 5e-4)

    def step() -> Tensor:
        t = torch.randint(textbook.schedule.num_steps, x0.shape[:1])
        value = loss(t, textbook_draw(textbook.move(textbook.one_hot(x0), t, cumulative=True)))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average, net.parameters(), strict=True):
                old.mul_(0.99).add_(new, alpha=0.01)
        return value.detach()

    return step, loss


def our_step(net: DiffusionTransformer, x0: Tensor, words: Tensor) -> tuple[Step, Callable[..., Tensor]]:
    """Return the step as `DiffusionModule` takes it, told words; and its loss for given draws."""
    bound = VariationalLoss(MaskReplaceSchedule(NUM_TOKENS)).train()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, **ADAMW)
    average, condition = ExponentialMovingAverage(net, 0.99), DiffusionCondition(words=words)

    def terms(t: Tensor, x_t: Tensor) -> dict[str, Tensor]:
        return bound(net(x_t, t, condition), x0, x_t, t, torch.full(t.shape, 0.01))

    def step() -> Tensor:
        t, _ = bound.sample_steps(torch.rand(x0.shape[0]))
        found = terms(t, sample_marginal(x0, t, bound.schedule, torch.rand(*x0.shape, 2)))
        found["loss"].backward()
        bound.observe(t, found["kl"])
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        return found["loss"].detach()

    return step, lambda t, x_t: terms(t, x_t)["loss"]


STEPS = {"textbook": textbook_step, "ours": our_step}


def network(options: argparse.Namespace, num_steps: int = 100) -> DiffusionTransformer:
    """Build the cross-attention form at the size asked for."""
    torch.manual_seed(0)
    sizes = (options.depth, options.dim, options.heads)
    return DiffusionTransformer(
        NUM_TOKENS, GRID, *sizes, conditioning="cross", words_dim=WORDS_DIM, num_steps=num_steps
    )


def unit_words(batch: int) -> Tensor:
    """Return word vectors `(B, 77, 512)` of length one, as CLIP's are."""
    return F.normalize(torch.randn(batch, NUM_WORDS, WORDS_DIM), dim=-1)


def interleaved(forms: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of each form, and the median over rounds of textbook / ours.

    The order alternates; the clock is the processor's on one thread, so that other work counts less, else the wall's.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for index in range(rounds):
        for name in list(forms)[:: 1 if index % 2 else -1]:
            begin = clock()
            forms[name]()
            taken[name].append(clock() - begin)
    ratio = statistics.median(a / b for a, b in zip(taken["textbook"], taken["ours"], strict=True))
    return {name: statistics.median(times) for name, times in taken.items()}, ratio


def peak_mib(options: argparse.Namespace, side: str) -> float:
    """Run two steps of one side in a process of its own, return how far its resident set rose."""
    sizes = [f"--{name}={getattr(options, name)}" for name in ("depth", "dim", "heads", "batch", "threads")]
    call = subprocess.run(
        [sys.executable, __file__, f"--only={side}", *sizes], capture_output=True, text=True, check=True
    )
    return float(call.stdout.split()[-1])


def parse(defaults: dict[str, int], description: str) -> argparse.Namespace:
    """Read the options, set the threads."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", choices=STEPS, help="memory of one side")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def resident_mib() -> float:
    """Return the largest resident set of this process so far (Linux; `getrusage` would include the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Compare losses, measure, print."""
    defaults = {"depth": 4, "dim": 512, "heads": 16, "batch": 2, "rounds": 3, "threads": 2}
    options = parse(defaults, __doc__ or "")
    net = network(options).train()
    x0 = torch.randint(NUM_TOKENS, (options.batch, GRID[0] * GRID[1]))
    words = unit_words(options.batch)
    if options.only:
        step, _ = STEPS[options.only](net, x0, words)
        before = resident_mib()
        step()
        step()
        print(resident_mib() - before)
        return
    sides = {name: make(copy.deepcopy(net), x0, words) for name, make in STEPS.items()}
    t = torch.linspace(20, 80, options.batch).long()
    x_t = torch.where(torch.rand(x0.shape) < 0.5, x0, NUM_TOKENS)
    losses = {name: float(loss(t, x_t).detach()) for name, (_, loss) in sides.items()}
    assert abs(losses["textbook"] - losses["ours"]) < 1e-3 * losses["textbook"], losses
    for step, _ in sides.values():
        step()
    medians, ratio = interleaved({name: step for name, (step, _) in sides.items()}, options.rounds)
    memory = {name: peak_mib(options, name) for name in STEPS}
    print(f"diffusion training step, {vars(options)}, losses {losses['textbook']:.5f} {losses['ours']:.5f}")
    for name in STEPS:
        print(f"  {name:8s} {medians[name]:7.3f} s   {memory[name]:7.0f} MiB")
    print(f"  {ratio:.2f}x faster, {memory['ours'] / memory['textbook']:.2f}x the memory")


if __name__ == "__main__":
    main()
