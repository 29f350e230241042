"""`speech2image evaluate`: score a run, or a folder of images, under a named protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech2image.errors import ConfigError, ProtocolError

_CORPUS_OF = {"_cub": "cub200", "_flickr8k": "flickr8k", "spoken_birds": "spoken_birds",
              "spoken_digits": "spoken_digits"}  # fmt: skip


def run(config: dict[str, Any]) -> None:
    """Score, print a table, write `metrics.json` (or a file that `metrics_name` names) and `items.jsonl`."""
    from speech2image.app.score_bounds import text_bounds
    from speech2image.app.score_writing import items_name, metrics_name, table, write_items, write_metrics
    from speech2image.training.painting import sampler_label

    check_request(config)
    scored = scored_run(config)
    protocol, usual = protocol_of(config, scored.info["corpus"])
    label = sampler_label(scored, config["sampler"])
    if label and config["images"] is not None:
        raise ConfigError(
            f"images={config['images']} are painted already, sampler={config['sampler']['name']} paints others",
            "Leave out one of them.",
        )
    metrics, details, items = evaluate(scored, protocol, config)
    file = metrics_name("" if protocol.name == usual else protocol.name, config["split"], label)
    folder = scored.path if config["images"] is None else Path(config["images"])
    path = folder / (file if config["images"] is None else "metrics.json")
    if config["bounds"] and scored.stage in ("gan", "diffusion"):
        names = {metric.name for metric in metrics}
        metrics += text_bounds(scored, Path(config["paths"]["runs"]), file, names)
    details["is_default_sampler"] = not label
    if items:
        write_items(path.with_name(items_name(path.name)), items)
    write_metrics(path, protocol, config["split"], metrics, details, scored)
    print(f"{protocol.title} ({protocol.name}, {config['split']} split)")
    print("\n".join(table(metrics)))
    print(path)


def check_request(config: dict[str, Any]) -> None:
    """Refuse seeds that are no different whole numbers.

    Raises:  ConfigError: says what was found.
    """
    seeds = config["seeds"] or []
    numbers = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not numbers or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"seeds: found {seeds}, expected different whole numbers from 0", "Type: seeds=[0,1,2]"
        )


def scored_run(config: dict[str, Any]) -> Any:
    """Return the run that is scored: the one named, or the one whose folder holds `images`."""
    from speech2image.training.runs import check_run, open_run, read_run

    if config["images"] is None or config["run"] is not None:
        return check_run(open_run(config["run"], Path(config["paths"]["runs"])))
    folder = Path(config["images"])
    owner = next((parent for parent in folder.resolve().parents if (parent / "run.json").is_file()), None)
    if owner is None:
        raise ConfigError(
            f"images={folder} lies in no run folder, so its corpus is unknown", "Also type: run=<the run>"
        )
    return check_run(read_run(owner))


def protocol_of(config: dict[str, Any], corpus: str) -> tuple[Any, str]:
    """Return the protocol that was asked for, and the name of the corpus's usual one.

    Raises:  ProtocolError: unknown, or the protocol of another corpus.
    """
    from speech2image.metrics.protocol import get_protocol
    from speech2image.training.probes import usual_protocol

    asked, usual = config["protocol"], usual_protocol(corpus)
    protocol = get_protocol(usual if asked["name"] == "auto" else asked["name"], asked["legacy"])
    base = protocol.name.removesuffix("-corrected")
    made_for = next((name for ending, name in _CORPUS_OF.items() if base.endswith(ending)), corpus)
    if made_for != corpus:
        raise ProtocolError(
            f"protocol '{protocol.name}' is the procedure of {made_for}, but this run is of {corpus}",
            f"Use protocol={usual}, protocol=offline or protocol=clean.",
        )
    return protocol, usual


def evaluate(
    scored: Any, protocol: Any, config: dict[str, Any]
) -> tuple[list[Any], dict[str, Any], list[dict[str, Any]]]:
    """Return metrics, details and, for generators, one line for each image."""
    if scored.stage in ("encoder", "codec") and config["images"] is not None:
        raise ConfigError(
            f"images={config['images']}: {scored.path} is a run of stage {scored.stage!r}, it paints nothing",
            "Also type: run=<the generator>",
        )
    if scored.stage == "encoder":
        from speech2image.app.score_encoder import evaluate_encoder

        return *evaluate_encoder(scored, protocol, config), []
    if scored.stage == "codec":
        from speech2image.app.score_codec import evaluate_codec

        return *evaluate_codec(scored, protocol, config), []
    from speech2image.app.score_generator import evaluate_generator

    return evaluate_generator(scored, protocol, config)
