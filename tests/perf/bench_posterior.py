"""Time and memory of one posterior step and of the training loss beside their textbook forms.

The textbook forms, written here, are what the paper describes read literally: tokens as log one-hot tensors over
the code book and the mask, every product a sum of logs with `logaddexp`, the softmax in float64, the loss by
autograd through two dense posteriors.  Both are run interleaved on the same input and must agree; medians are printed,
the ratio as the median over rounds, so that other work on the machine matters less.

Run: python tests/perf/bench_posterior.py [--tokens 2887 --length 1024 --batch 1 --rounds 7]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from speech2image.diffusion.process import posterior, start_log_probs
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.variational import VariationalLoss

LOG_ZERO = torch.tensor(1e-30).log().item()


class Textbook:
    """Mask-and-replace diffusion on log one-hot tensors `(B, K+1, L)`."""

    def __init__(self, schedule: MaskReplaceSchedule) -> None:
        self.schedule = schedule
        self.tables = schedule.released_logs()

    def one_hot(self, tokens: Tensor) -> Tensor:
        one_hot = F.one_hot(tokens, self.schedule.num_tokens + 1).permute(0, 2, 1)
        return torch.log(one_hot.float().clamp(min=1e-30))

    def move(self, log_x: Tensor, t: Tensor, cumulative: bool) -> Tensor:
        """Push a log distribution through one step or through all steps up to `t`."""
        prefix = "cumprod_" if cumulative else ""
        alpha, beta, gamma, keep = (
            self.tables[name][t][:, None, None]
            for name in (f"log_{prefix}at", f"log_{prefix}bt", f"log_{prefix}ct", f"log_1_min_{prefix}ct")
        )
        tokens = torch.logaddexp(log_x[:, :-1] + alpha, beta)
        return torch.cat([tokens, torch.logaddexp(log_x[:, -1:] + keep, gamma)], dim=1)

    def predict_start(self, logits: Tensor) -> Tensor:
        log_p = F.log_softmax(logits.double(), dim=1).float()
        mask_row = torch.full_like(log_p[:, :1], -70.0)
        return torch.cat([log_p, mask_row], dim=1).clamp(-70.0, 0.0)

    def posterior(self, log_x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_x_t = self.one_hot(x_t)
        masked = (x_t == self.schedule.mask_index)[:, None]
        mask_row = torch.full_like(log_x0[:, :1], LOG_ZERO)
        from_start = self.move(log_x_t, t, cumulative=True)[:, :-1]
        gamma_bar = self.tables["log_cumprod_ct"][t][:, None, None].expand_as(from_start)
        from_start = torch.where(masked, gamma_bar, from_start)
        from_s = self.move(log_x_t, t, cumulative=False)[:, :-1]
        gamma = self.tables["log_ct"][t][:, None, None].expand_as(from_s)
        from_s = torch.cat([torch.where(masked, gamma, from_s), torch.where(masked, 0.0, LOG_ZERO)], dim=1)
        ratio = torch.cat([log_x0[:, :-1] - from_start, mask_row], dim=1)
        total = torch.logsumexp(ratio, dim=1, keepdim=True)
        return (self.move(ratio - total, t - 1, cumulative=True) + from_s + total).clamp(-70.0, 0.0)

    def loss(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, aux_weight: float) -> Tensor:
        log_x0, log_p = self.one_hot(x0), self.predict_start(logits)
        model, true = self.posterior(log_p, x_t, t), self.posterior(log_x0, x_t, t)
        kl = (true.exp() * (true - model)).sum(1).sum(1)
        first = -(log_x0.exp() * model).sum(1).sum(1)
        at_start = (t == 0).float()
        aux = (log_x0[:, :-1].exp() * (log_x0[:, :-1] - log_p[:, :-1])).sum(1).sum(1)
        steps = self.schedule.num_steps
        main = at_start * first + (1 - at_start) * kl
        extra = (at_start * first + (1 - at_start) * aux) * aux_weight * (2 - t / steps)
        return ((main + extra) * steps).sum() / x0.numel()


def interleaved(forms: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each form and of their ratio in a round; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, form in forms.items():
            begin = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    rounds_ratio = [old / new for old, new in zip(times["textbook"][1:], times["ours"][1:], strict=True)]
    return medians | {"ratio": statistics.median(rounds_ratio)}


@torch.no_grad()
def compare_posteriors(textbook: Textbook, logits: Tensor, x_t: Tensor, t: Tensor, rounds: int) -> None:
    """Time one reverse step given log p(x_0 | x_t)."""
    log_p, with_row = start_log_probs(logits), textbook.predict_start(logits)
    forms = {
        "textbook": lambda: textbook.posterior(with_row, x_t, t),
        "ours": lambda: posterior(log_p, x_t, t, textbook.schedule),
    }
    gap = float((forms["textbook"]() - forms["ours"]()).abs().max())
    taken = interleaved(forms, rounds)
    print(
        f"posterior {tuple(logits.shape)}: textbook {taken['textbook']:.4f} s, ours {taken['ours']:.4f} s,"
        f" ratio {taken['ratio']:.1f}, largest difference {gap:.1e}"
    )


def main() -> None:
    """Run both comparisons and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("tokens", 2887), ("length", 1024), ("batch", 1), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--only",
        choices=["posterior", "loss-ours", "loss-textbook"],
        help="one part; loss-* prints peak memory",
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = (options.batch, options.length)
    schedule = MaskReplaceSchedule(options.tokens)
    textbook, ours = Textbook(schedule), VariationalLoss(schedule)
    t = torch.randint(1, 100, shape[:1])
    x0 = torch.randint(options.tokens, shape)
    x_t = torch.where(torch.rand(shape) < 0.5, x0, schedule.mask_index)
    logits = torch.randn(options.batch, options.tokens, options.length)
    if options.only in (None, "posterior"):
        compare_posteriors(textbook, logits, x_t, t, options.rounds)
    scores = logits.requires_grad_()
    probs = torch.full(shape[:1], 0.01)

    def step(value: Tensor) -> Tensor:
        scores.grad = None
        value.backward()
        return value.detach()

    losses = {
        "textbook": lambda: step(textbook.loss(scores, x0, x_t, t, 5e-4)),
        "ours": lambda: step(ours(scores, x0, x_t, t, probs)["loss"]),
    }
    if options.only is None:
        found = {name: float(form()) for name, form in losses.items()}
        taken = interleaved(losses, options.rounds)
        print(
            f"loss and gradient: textbook {taken['textbook']:.4f} s, ours {taken['ours']:.4f} s,"
            f" ratio {taken['ratio']:.1f}, losses {found['textbook']:.6f} {found['ours']:.6f}"
        )
    elif options.only.startswith("loss"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        losses[options.only.removeprefix("loss-")]()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{options.only}: the peak rises by {(after - before) / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
