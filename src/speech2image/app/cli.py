"""The command line: `speech2image <verb> [hydra overrides]`.

Verbs are found by name and imported only when they run; `--help`, `--version` and `--cfg job`
never import torch.  A `Speech2ImageError` is printed as one message and exits with code 2.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from speech2image import __version__
from speech2image.errors import ConfigError, Preempted, Speech2ImageError, nearest_names

#: Verb: (module, one line).
VERBS: dict[str, tuple[str, str]] = {
    "prepare": ("prepare", "check or make a corpus, speak its captions, cache mel features and images"),
    "train": ("train", "train a speech encoder, a codec or a generator; -m sweeps"),
    "plan": ("plan", "what an experiment costs on 1 to 256 GPUs, counted without running it"),
    "embed": ("embed", "run a trained encoder over a corpus"),
    "generate": ("generate", "paint images from speech, a folder of speech, or a text spoken first"),
    "evaluate": ("evaluate", "score a run or a folder of images under a named protocol"),
    "report": ("report", "lay runs side by side in one self-contained page"),
    "collect": ("collect", "say how far the jobs of a sweep are, wait for them, make their report"),
    "import": ("import_released", "turn a released checkpoint into a run folder"),
}

EXAMPLES = """\
examples:
  speech2image prepare data=spoken_birds
  speech2image train experiment=sen_birds
  speech2image train experiment=stackgan_v2_birds
  speech2image train experiment=codec_birds
  speech2image train experiment=s2ivq_d_birds
  speech2image generate run=runs/<id> text="this bird has a red crown and a white belly"
  speech2image evaluate run=runs/<id>
  speech2image report runs=all
  speech2image train -m experiment=sen_birds seed=0,1,2
  speech2image train -m experiment=sen_birds seed=0,1,2 hydra/launcher=slurm hydra.launcher.detach=true
  speech2image collect sweep=latest
"""


#: What a disk answers that is full, read-only, locked or broken, wherever nobody closer has said it better.
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)
_DISK_REMEDY = "Free space or choose another folder (paths.runs=DIR paths.cache=DIR out=DIR); the same command continues."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except Speech2ImageError as error:
        print(f"speech2image: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nspeech2image: interrupted; what was finished is kept, the same command continues",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"speech2image: {where}{error.strerror}\n  {_DISK_REMEDY}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"speech2image {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        near = nearest_names(verb, VERBS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"verbs: {', '.join(VERBS)}"
        raise ConfigError(f"unknown verb {verb!r}; {hint}", "See: speech2image --help")
    if "-h" in rest or "--help" in rest:
        from speech2image.app.help import verb_help

        print(verb_help(verb, VERBS[verb][1]))
        return 0
    from speech2image.config.compose import is_sweep

    if not is_sweep(rest) and not any(word.startswith("hydra/launcher=") for word in rest):
        perform(verb, rest)
        return 0
    from speech2image.app.collect import finish
    from speech2image.app.launch import register

    launched = register()
    perform(verb, rest)
    for sweep, is_detached in launched():
        if not is_detached:
            finish(sweep)
    return 0


def perform(verb: str, words: Sequence[str]) -> Any:
    """Compose and run one command; return what it made.  Jobs of sweeps come here too, wherever they run.

    Raises: Speech2ImageError: a mistake, or a stop on a signal.
    """
    from speech2image.config.compose import run_hydra

    made: list[Any] = []

    def task(config: dict[str, Any]) -> Any:
        from speech2image.config.root import ROOT_FIELDS
        from speech2image.config.validate import check_config

        check_config(config, ROOT_FIELDS[verb])
        module = importlib.import_module(f"speech2image.app.{VERBS[verb][0]}")
        made.append(module.run(config))
        return made[-1]

    run_hydra(verb, words, task)
    return made[-1] if made else None


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return (
        f"speech2image {__version__}: a person speaks a sentence, the machine paints it.\n\n"
        "usage: speech2image <verb> [key=value ...]\n\nverbs:\n" + "\n".join(lines) + "\n\n"
        "  <verb> --help    every key with its default and meaning\n"
        "  <verb> --cfg job the composed configuration\n\n" + EXAMPLES
    )


def script() -> None:
    """Entry point of the console script."""
    code = main()
    if code == Preempted.exit_code:  # a scheduler may ask twice; all is saved, and the code must come through
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)
