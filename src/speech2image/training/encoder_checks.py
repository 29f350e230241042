"""Which networks an encoder's objective takes: refused before training, with what to type."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from speech2image.errors import CheckpointError, ConfigError, MissingPackageError
from speech2image.vision.branch import ConvBranch, InceptionBranch

OBJECTIVES = ("li_et_al", "s2igan", "speechclip")
_NEEDS = {
    "s2igan": "trains an image branch",
    "speechclip": "needs image embeddings of the sentence's size",
}
_CHOICES = {
    "s2igan": "vision=conv_branch or vision=inception",
    "speechclip": "vision=clip_rn50x64 (or another CLIP), or vision=conv_branch",
}

_SOURCES = {
    "encoder.weights_path": "https://download.pytorch.org/torchaudio/models/{name}",
    "encoder.clip_path": "OpenAI's CLIP as open_clip_model.safetensors from huggingface.co, named {name}",
    "vision.weights_path": "OpenAI's CLIP as open_clip_model.safetensors from huggingface.co, named {name}",
}


def require_published(config: dict[str, Any]) -> None:
    """Refuse to prepare a corpus for SpeechCLIP while a package or weight file it needs is missing.

    Args:
        config: the whole configuration.

    Raises: MissingPackageError: CLIP's image tower without open_clip.  CheckpointError: names every
        missing file, and where each comes from.
    """
    if config["loss"]["objective"] != "speechclip":
        return
    if str(config["vision"]["_target_"]).endswith("ClipTower") and find_spec("open_clip") is None:
        raise MissingPackageError("open_clip_torch", "clip")
    named = {key: config[key.split(".")[0]].get(key.split(".")[1]) for key in _SOURCES}
    if config["encoder"].get("source") == "states":  # the tower belongs to audio, which looks for its file
        named.pop("encoder.weights_path")
    missing = {key: Path(path) for key, path in named.items() if path and not Path(path).is_file()}
    if missing:
        raise CheckpointError(
            "no weight file at " + ", ".join(f"{key}={path}" for key, path in missing.items())
            + " (nothing is downloaded here)",
            "On a machine with a network fetch "
            + "; ".join(_SOURCES[key].format(name=path.name) for key, path in missing.items()),
        )  # fmt: skip


def check_networks(
    encoder: nn.Module, image_branch: nn.Module | None, objective: str, num_classes: int | None
) -> None:
    """Refuse networks that do not fit an objective or each other.

    Args:
        encoder: the speech encoder, with `sentence_dim`.
        image_branch: the image side, or None.
        objective: `li_et_al`, `s2igan` or `speechclip`.
        num_classes: classes of the shared classifier; None: there is none.

    Raises: ConfigError: what does not fit, and what to type.
    """
    dim = getattr(encoder, "sentence_dim", None)
    if objective not in OBJECTIVES:
        raise ConfigError(f"encoder objective is {objective!r}", f"Use one of: {', '.join(OBJECTIVES)}.")
    if objective != "li_et_al":
        if image_branch is None or not hasattr(image_branch, "embed_dim"):
            raise ConfigError(
                f"objective {objective} {_NEEDS[objective]}, found {type(image_branch).__name__}",
                f"Choose one: {_CHOICES[objective]}.",
            )
        if image_branch.embed_dim != dim:
            raise ConfigError(
                f"the image branch has embeddings of {image_branch.embed_dim}, the speech encoder of {dim}",
                f"Type: encoder.embed_dim={image_branch.embed_dim}"
                if objective == "speechclip"
                else f"Type: vision.embed_dim={dim}",
            )
        if num_classes is not None and num_classes < 1:
            raise ConfigError(
                "the distinctive loss needs num_classes", "Give num_classes, or loss.distinctive_weight=0."
            )
        return
    if isinstance(image_branch, (ConvBranch, InceptionBranch)):
        raise ConfigError(
            f"objective li_et_al learns from a frozen teacher, {type(image_branch).__name__} is trained along",
            "Choose a teacher: vision=class_teacher or vision=googlenet.",
        )
    feature_dim = getattr(image_branch, "feature_dim", None)
    if feature_dim is not None and feature_dim != dim:
        raise ConfigError(
            f"the teacher has {feature_dim} features, the speech encoder's sentence {dim}",
            f"Type: encoder.width={feature_dim}",
        )
