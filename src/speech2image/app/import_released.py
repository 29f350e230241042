"""`speech2image import`: turn a released checkpoint into a run folder.

The folder then serves `embed`, `generate` and `evaluate` like one that was trained here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from speech2image.config.runid import run_id
from speech2image.errors import ConfigError, nearest_names

SYSTEMS = ("stackgan_v2", "li_et_al", "sen", "speechclip", "vqgan", "s2ivq_d", "vq_diffusion")


def run(config: dict[str, Any]) -> None:
    """Import one system and print the run folder."""
    system = config["system"]
    if system not in SYSTEMS:
        near = nearest_names(str(system), SYSTEMS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"system: found {system!r}, expected one of {', '.join(SYSTEMS)}{hint}",
            "Type: speech2image import system=stackgan_v2 checkpoint=netG_210000.pth",
        )
    if config["checkpoint"] is None:
        raise ConfigError("checkpoint: which file? found null", "Type: checkpoint=<released file>")
    importers = {
        "stackgan_v2": _stackgan_v2,
        "li_et_al": _li_et_al,
        "sen": _sen,
        "speechclip": _speechclip,
        "vqgan": _vqgan,
        "s2ivq_d": _s2ivq_d,
        "vq_diffusion": _vq_diffusion,
    }
    print(importers[system](config, Path(config["checkpoint"])))


def _li_et_al(config: dict[str, Any], path: Path) -> Path:
    from speech2image.hub.convert.li_encoder import convert

    found = convert(path)
    settings = _settings(config, "encoder", "li_et_al", found.target, found.arguments)
    return _write(config, settings, {"encoder": found}, path, sentence_dim=found.arguments["width"])


def _sen(config: dict[str, Any], path: Path) -> Path:
    from speech2image.hub.convert.sen import convert

    found = convert(path)
    settings = _settings(config, "encoder", "s2igan", found.target, found.arguments)
    return _write(config, settings, {"encoder": found}, path, sentence_dim=2 * found.arguments["rnn_dim"])


#: Width of CLIP's joint space: open_clip's name of the model, its file below `paths.weights`.
_CLIPS = {
    512: ("ViT-B-32-quickgelu", "clip_vit_b32.safetensors"),
    768: ("ViT-L-14-quickgelu", "clip_vit_l14.safetensors"),
    1024: ("RN50x64-quickgelu", "clip_rn50x64.safetensors"),
}


def _speechclip(config: dict[str, Any], path: Path) -> Path:
    """Import a SpeechCLIP encoder; images are later embedded by CLIP's own file, named here."""
    from speech2image.hub.convert.speechclip import convert

    found = convert(path)
    settings = _settings(config, "encoder", "wave_16k", found.target, found.arguments)
    settings["loss"] = {"objective": "speechclip", "rivals": "other_image"}
    sentence_dim = found.arguments["embed_dim"]
    if sentence_dim in _CLIPS:
        network, file = _CLIPS[sentence_dim]
        settings["vision"] = {
            "_target_": "speech2image.vision.clip_tower.ClipTower",
            "network": network,
            "weights_path": str(Path(config["paths"]["weights"]) / file),
            "sha256": None,
        }
    return _write(config, settings, {"encoder": found}, path, sentence_dim=sentence_dim)


def _vqgan(config: dict[str, Any], path: Path) -> Path:
    """Import a codec, with the reduction table of its code book where one is named."""
    from speech2image.codecs.codec import Codec
    from speech2image.hub.convert.vqgan import convert, convert_code_map
    from speech2image.hub.released import build_converted

    found = convert(path, config["data"]["image_px"])
    parts, tables = {"network": found}, []
    if config["code_map"] is not None:
        parts["code_map"] = convert_code_map(Path(config["code_map"]))
        tables = [build_converted(parts["code_map"], Path(config["code_map"]))]
    codec = Codec(build_converted(found, path), *tables)  # type: ignore[arg-type]
    settings = _settings(config, "codec", "s2igan", found.target, found.arguments)
    settings["codec"] |= {"disc_layers": 2, "disc_width": 64}
    return _write(
        config, settings, parts, path,
        num_tokens=codec.num_tokens, num_reduced=codec.num_tokens if tables else None,
        grid=list(codec.grid), codec_fingerprint=codec.fingerprint(),
    )  # fmt: skip


def _s2ivq_d(config: dict[str, Any], path: Path) -> Path:
    """Import an S2IVQ-D transformer, with the codec inside its file or one that was imported before."""
    from speech2image.hub.convert.vq_diffusion import convert_s2ivq_d

    codec = _codec_of(config, path)
    found = convert_s2ivq_d(path, grid=_grid_of(codec))
    encoder_run = _named_encoder(config)
    node = {"_target_": _FROM_RUN, "run": encoder_run or "auto"}
    sizes = {"sentence_dim": 2 * found.arguments["dim"], "encoder_run": encoder_run}
    return _diffusion(config, path, codec, found, node, sizes)


def _vq_diffusion(config: dict[str, Any], path: Path) -> Path:
    """Import a VQ-Diffusion transformer with the codec and the text tower inside its file, where it has them."""
    from speech2image.hub.convert.vq_diffusion import convert

    codec = _codec_of(config, path)
    found = convert(path, grid=_grid_of(codec))
    form = found.arguments["conditioning"]
    sizes: dict[str, Any] = {"sentence_dim": None, "encoder_run": None}
    node: dict[str, Any] = {"_target_": None}
    if form == "class":
        sizes["num_classes"] = found.arguments["num_classes"]
    if form == "cross":
        sizes["words_dim"] = found.arguments["words_dim"]
        sizes["encoder_run"] = _named_encoder(config) or _text_inside(config, path)
        node = {"_target_": _FROM_RUN, "run": sizes["encoder_run"]}
        if sizes["encoder_run"] is None:
            node = {"_target_": _CLIP_TEXT, **_clip_text_files(config)}
    return _diffusion(config, path, codec, found, node, sizes)


_FROM_RUN = "speech2image.training.conditions.FromRun"
_CLIP_TEXT = "speech2image.text.clip_text.ClipTextEncoder"


def _clip_text_files(config: dict[str, Any]) -> dict[str, str]:
    weights = Path(config["paths"]["weights"])
    return {
        "weights_path": str(weights / "clip_vit_b32.safetensors"),
        "vocabulary_path": str(weights / "bpe_simple_vocab_16e6.txt.gz"),
    }


def _named_encoder(config: dict[str, Any]) -> str | None:
    from speech2image.training.runs import open_run

    if config["encoder_run"] is None:
        return None
    return str(open_run(config["encoder_run"], Path(config["paths"]["runs"]), "encoder").info["run_id"])


def _text_inside(config: dict[str, Any], path: Path) -> str | None:
    """Import CLIP's text tower of a file as an encoder run; return its id, None where there is no tower."""
    from speech2image.hub.convert.vq_diffusion import convert_text

    found = convert_text(path)
    if found is None:
        return None
    files = {"vocabulary_path": _clip_text_files(config)["vocabulary_path"]}
    settings = _settings(config, "encoder", "captions", found.target, {**found.arguments, **files})
    settings["name"] += "_text"
    sizes = {"sentence_dim": found.arguments["embed_dim"], "words_dim": found.arguments["width"]}
    return _write(config, settings, {"encoder": found}, path, **sizes).name


def _codec_of(config: dict[str, Any], path: Path) -> Any:
    """Return the run of the codec that is named, or of the one inside the file, imported beside it."""
    from speech2image.hub.convert.vq_diffusion import read_parts
    from speech2image.training.runs import open_run, read_run

    if config["codec_run"] is not None:
        return open_run(config["codec_run"], Path(config["paths"]["runs"]), "codec")
    if not read_parts(path).codec:
        raise ConfigError(
            "codec_run: which codec paints the codes of this network? found null, and its file holds none",
            "Import it first: speech2image import system=vqgan checkpoint=last.ckpt code_map=taming_vqvae_974.pt",
        )
    name = f"{config['name'] or 'imported_' + config['system']}_codec"
    return read_run(_vqgan({**config, "name": name}, path))


def _grid_of(codec: Any) -> tuple[int, int]:
    rows, columns = codec.info["grid"]
    return rows, columns


def _diffusion(
    config: dict[str, Any], path: Path, codec: Any, found: Any, encoder: dict[str, Any], sizes: dict[str, Any]
) -> Path:
    """Write the run of a transformer; `sizes` of its condition, see `training/runs.py`."""
    own = {key: value for key, value in found.arguments.items() if key not in sizes}
    arguments = {"num_steps": 100, "sentence_scale": 1.0, "use_words": False, **own}
    if arguments["num_tokens"] != codec.info["num_tokens"]:
        raise ConfigError(
            f"{path.name} does not belong to {codec.path.name}: {arguments['num_tokens']} codes of the network,"
            f" {codec.info['num_tokens']} of the codec",
            "Name the reduction table (code_map=taming_vqvae_974.pt), or a codec that was imported with it"
            " (codec_run=runs/<id>).",
        )
    settings = _settings(config, "diffusion", "from_encoder", found.target, arguments)
    settings["data"]["image_px"] = codec.config["codec"]["image_px"]
    settings |= {
        "encoder": encoder,
        "codec": {"_target_": "speech2image.training.codes.CodecFromRun", "run": codec.info["run_id"]},
        "loss": {"objective": "vq_diffusion", "schedule": "released"},
        "sampler": {"name": "ancestral", "steps": None, "guidance_scale": 1.0, "top_r": 0.86, "top_k": 0},
    }
    return _write(
        config, settings, {"generator": found}, path, **sizes, codec_run=codec.info["run_id"],
        codec_fingerprint=codec.info["codec_fingerprint"], num_tokens=arguments["num_tokens"],
        grid=list(arguments["grid"]),
    )  # fmt: skip


def _stackgan_v2(config: dict[str, Any], path: Path) -> Path:
    from speech2image.hub.convert.stackgan_v2 import convert_discriminator, convert_generator

    generator = convert_generator(path)
    critics = [convert_discriminator(Path(file)) for file in config["discriminators"]]
    arguments = {key: value for key, value in generator.arguments.items() if key != "sentence_dim"}
    df_dim = critics[0].arguments["df_dim"] if critics else arguments["gf_dim"]
    settings = _settings(config, "gan", "from_encoder", generator.target, {**arguments, "df_dim": df_dim})
    settings["data"]["image_px"] = arguments["base_px"] * 2 ** (arguments["num_stages"] - 1)
    encoder_run = _named_encoder(config)
    settings["encoder"] = {"_target_": _FROM_RUN, "run": encoder_run or "auto"}
    parts = {"generator": generator} | {f"discriminators.{i}": critic for i, critic in enumerate(critics)}
    return _write(
        config,
        settings,
        parts,
        path,
        sentence_dim=generator.arguments["sentence_dim"],
        encoder_run=encoder_run,
    )


def _settings(
    config: dict[str, Any], stage: str, audio: str, target: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    role = stage if stage in ("encoder", "codec") else "generator"
    return {
        "name": config["name"] or f"imported_{config['system']}",
        "stage": stage,
        "seed": 0,
        "data": copy.deepcopy(config["data"]),
        "audio": {"name": audio},
        "vision": {"_target_": None},
        role: {"_target_": target, **arguments},
        "imported": str(Path(config["checkpoint"]).name),
    }


def _write(
    config: dict[str, Any], settings: dict[str, Any], parts: dict[str, Any], path: Path, **facts: Any
) -> Path:
    import time

    import torch
    from omegaconf import OmegaConf

    from speech2image.hub.released import build_converted
    from speech2image.hub.weights import save_weights
    from speech2image.training.runs import new_info, write_info
    from speech2image.weight_files import file_sha256

    state: dict[str, torch.Tensor] = {}
    parameters = {}
    for name, part in parts.items():
        model = build_converted(part, path)
        state |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
        parameters[name] = sum(parameter.numel() for parameter in model.parameters())
    digest = file_sha256(path)
    settings["imported_sha256"] = digest
    name = run_id(settings["name"], settings)
    folder = Path(config["paths"]["runs"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(
        folder / "weights.safetensors", state, {"run_id": name, "source": path.name, "sha256": digest}
    )
    (folder / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.create({**settings, "paths": config["paths"]}))
    )
    info = new_info(name, settings["stage"], settings["name"], settings["data"]["name"])
    info |= {"status": "imported", "parameters": parameters, "finished": info["created"], **facts}
    info |= {"has_image_branch": False, "imported": {"file": path.name, "sha256": digest}}
    info["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_info(folder, info)
    return folder
