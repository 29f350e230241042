"""The keys at the root of each verb's configuration that are not groups."""

from __future__ import annotations

from typing import Any

_OPTIONAL_TEXT: tuple[type, ...] = (str, type(None))

#: Verb: key: accepted types.
ROOT_FIELDS: dict[str, dict[str, Any]] = {
    "prepare": {"verify": bool},
    "train": {"name": str, "stage": str, "seed": int, "evaluate": bool, "validate_only": bool},
    "plan": {
        "name": str,
        "stage": str,
        "seed": int,
        "gpus": list,
        "utterance_s": (int, float),
        "corpus_images": int,
        "out": _OPTIONAL_TEXT,
    },
    "embed": {"run": _OPTIONAL_TEXT, "split": str, "out": _OPTIONAL_TEXT},
    "generate": {
        "run": _OPTIONAL_TEXT,
        "speech": _OPTIONAL_TEXT,
        "text": _OPTIONAL_TEXT,
        "voice": _OPTIONAL_TEXT,
        "class_id": (int, type(None)),
        "num_images": int,
        "condition": str,
        "out": _OPTIONAL_TEXT,
        "split": str,
        "seed": int,
        "max_utterances": (int, type(None)),
        "strip": int,
    },
    "evaluate": {
        "run": _OPTIONAL_TEXT,
        "images": _OPTIONAL_TEXT,
        "split": str,
        "seed": int,
        "seeds": (list, type(None)),
        "bounds": bool,
        "judge": _OPTIONAL_TEXT,
        "classifier": bool,
        "clip_weights": _OPTIONAL_TEXT,
        "clip_network": str,
    },
    "report": {
        "runs": (list, str),
        "out": _OPTIONAL_TEXT,
        "title": _OPTIONAL_TEXT,
        "num_utterances": int,
        "attention": bool,
    },
    "collect": {"sweep": _OPTIONAL_TEXT, "wait": bool},
    "import": {
        "system": _OPTIONAL_TEXT,
        "checkpoint": _OPTIONAL_TEXT,
        "discriminators": list,
        "image_checkpoint": _OPTIONAL_TEXT,
        "encoder_run": _OPTIONAL_TEXT,
        "code_map": _OPTIONAL_TEXT,
        "codec_run": _OPTIONAL_TEXT,
        "name": _OPTIONAL_TEXT,
    },
}

#: Verb: key: what it means (shown by `--help`).
ROOT_HELP: dict[str, dict[str, str]] = {
    "prepare": {"verify": "read every stored array back and compare its hash"},
    "train": {
        "name": "first part of the run's name",
        "stage": "encoder, codec, gan or diffusion",
        "seed": "root of every random draw",
        "evaluate": "after training, score the run under its corpus's own protocol",
        "validate_only": "build everything, print sizes, train nothing",
    },
    "plan": {
        "name": "the experiment",
        "stage": "encoder, codec, gan or diffusion",
        "seed": "without influence",
        "gpus": "numbers of GPUs to plan for",
        "utterance_s": "seconds of a typical utterance, for encoders",
        "corpus_images": "images of the corpus: what does not fit hardware.cache_gb is read again each epoch",
        "out": "folder to write; null: below paths.runs",
    },
    "embed": {
        "run": "folder of a trained encoder",
        "split": "train, val, test or all",
        "out": "file to write",
    },
    "generate": {
        "run": "folder of a trained generator",
        "speech": "a wav file of any rate and channel count, or a folder of them",
        "text": "a sentence: spoken first, or read by a generator that was trained on captions",
        "class_id": "class to paint, for a class-conditional generator",
        "voice": "voice for `text`; null: chosen by the text",
        "num_images": "images an utterance, each with its own noise",
        "condition": "gan: sample the augmented condition as published, or take its mean",
        "out": "folder to write; null: below the run",
        "split": "without speech and text: the utterances of this split",
        "seed": "root of the noise",
        "max_utterances": "at most this many utterances of the split; null: all",
        "strip": "diffusion: states on the way shown in strip.png, paler where not settled yet; 0: none",
    },
    "evaluate": {
        "run": "folder of a trained encoder, codec or generator",
        "images": "a folder of generated images with its manifest.jsonl",
        "split": "split that is scored",
        "seed": "root of bootstrap and control draws",
        "seeds": "seeds of generation, e.g. [0,1,2]: each painted into a folder of its own, mean and spread "
        "reported; null: the images that are there, and as many seeds as the protocol asks for",
        "bounds": "also bounds and controls: real halves, noise, shuffled speech, copies of training images",
        "judge": "speech encoder for R-precision and speech queries; auto: one that did not condition the "
        "generator, else its own, named apart; null: none",
        "classifier": "also an inception score by a classifier trained on the corpus's training classes",
        "clip_weights": "file with CLIP's weights: also CLIPScore of images and transcripts; null: not",
        "clip_network": "open_clip's name of that network",
    },
    "report": {
        "runs": "run folders, or all",
        "out": "folder to write; null: reports/<ids>",
        "title": "title of the page",
        "num_utterances": "utterances shown side by side",
        "attention": "draw where speech encoders listen",
    },
    "collect": {
        "sweep": "id of a sweep, the beginning of one, or latest; null: list all sweeps",
        "wait": "wait until all jobs have ended",
    },
    "import": {
        "system": "stackgan_v2, li_et_al, sen, speechclip, vqgan, s2ivq_d or vq_diffusion",
        "checkpoint": "released file: netG_*.pth, epoch_*.pth, best_audio_model.pth or epoch_*.ckpt",
        "discriminators": "released netD*.pth files (stackgan_v2)",
        "image_checkpoint": "released best_image_model.pth (sen)",
        "encoder_run": "encoder whose embeddings the generator expects (stackgan_v2, s2ivq_d, vq_diffusion)",
        "code_map": "released reduction table of a code book, taming_vqvae_974.pt (vqgan, s2ivq_d, vq_diffusion)",
        "codec_run": "imported codec of the network; null: the one inside its file (s2ivq_d, vq_diffusion)",
        "name": "first part of the run's name",
    },
}
