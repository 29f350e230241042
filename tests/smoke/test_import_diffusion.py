"""Released codecs and S2IVQ-D transformers, written as their authors wrote them, become runs that paint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speech2image.codecs.codec import Codec
from speech2image.codecs.vqgan import VqGan
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionTransformer

Command = Callable[..., tuple[int, str, str]]
LOOKUP = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5])


def vqgan_file(path: Path) -> VqGan:
    torch.manual_seed(0)
    network = VqGan(
        image_px=32, channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1, attn_px=(4,), latent_dim=8,
        code_dim=6, num_codes=20,
    )  # fmt: skip
    torch.save({"state_dict": network.state_dict()}, path)
    return network


def transformer_file(path: Path, num_tokens: int = 7) -> DiffusionTransformer:
    torch.manual_seed(1)
    network = DiffusionTransformer(num_tokens, (4, 4), 2, 32, 16, conditioning="modulation", mlp="conv")
    state = {f"transformer.{key}": value for key, value in network.state_dict().items()}
    for block in range(2):
        state[f"transformer.blocks.{block}.ln2.emb.weight"] = torch.zeros(100, 32)
        state[f"transformer.blocks.{block}.ln2.linear.weight"] = torch.zeros(64, 32)
        state[f"transformer.blocks.{block}.ln2.linear.bias"] = torch.zeros(64)
    state |= MaskReplaceSchedule(num_tokens).released_logs()
    state |= {"Lt_history": torch.zeros(100), "Lt_count": torch.zeros(100)}
    torch.save(
        {"last_epoch": 1, "model": {f"transformer.{k}": v for k, v in state.items()}, "ema": state}, path
    )
    return network.eval()


def test_released_codec_and_transformer_paint_together(
    command: Command, tmp_path: Path, place: tuple[str, ...]
) -> None:
    from speech2image.training.painting import make_painter
    from speech2image.training.runs import load_codec, load_transformer, open_run

    runs = Path(place[2].split("=")[1])
    original, theirs = vqgan_file(tmp_path / "last.ckpt"), transformer_file(tmp_path / "cub.pth")
    torch.save(LOOKUP, tmp_path / "taming_vqvae_7.pt")
    code, out, err = command(
        "import", "system=vqgan", f"checkpoint={tmp_path}/last.ckpt", f"code_map={tmp_path}/taming_vqvae_7.pt",
        "data.image_px=32",
    )  # fmt: skip
    assert code == 0, err
    codec_run = out.strip().splitlines()[-1]
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    codec = load_codec(open_run(codec_run, runs, "codec"))
    assert codec.num_tokens == 7
    assert torch.equal(codec.encode(images), LOOKUP[Codec(original).encode(images)])
    code, out, err = command(
        "import", "system=s2ivq_d", f"checkpoint={tmp_path}/cub.pth", f"codec_run={codec_run}"
    )
    assert code == 0, err
    run = open_run(out.strip().splitlines()[-1], runs, "diffusion")
    tokens, t = torch.full((2, 16), 7), torch.tensor([99, 3])
    from speech2image.training.diffusion_module import scaled_condition

    condition = scaled_condition(torch.randn(2, 64), 1.0)
    with torch.no_grad():
        assert torch.equal(load_transformer(run)(tokens, t, condition), theirs(tokens, t, condition))
    asked = {"seed": 1, "condition": "sample", "paths": {"runs": str(runs)}, "strip": 0}
    asked |= {"sampler": {"name": "from_run"}}
    painter = make_painter(run, asked, torch.device("cpu"))
    painted = painter(torch.randn(2, 64), [("a", 0), ("b", 0)]).images
    assert painted.shape == (2, 3, 32, 32) and float(painted.abs().max()) <= 1


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_transformer_needs_its_codec(command: Command, tmp_path: Path, forgotten: bool) -> None:
    transformer_file(tmp_path / "cub.pth")
    vqgan_file(tmp_path / "last.ckpt")
    code, out, err = command(
        "import", "system=vqgan", f"checkpoint={tmp_path}/last.ckpt", "data.image_px=32", "name=full"
    )
    assert code == 0, err
    words = () if forgotten else (f"codec_run={out.strip().splitlines()[-1]}",)
    code, _, err = command("import", "system=s2ivq_d", f"checkpoint={tmp_path}/cub.pth", *words)
    assert code == 2 and "Traceback" not in err
    assert (
        ("codec_run: which codec" in err) if forgotten else ("7 codes of the network, 20 of the codec" in err)
    )
