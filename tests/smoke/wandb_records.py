"""Read the `.wandb` file of an offline run: blocks of a LevelDB log, each record a message of wandb's own protocol.

wandb 0.31 ships no Python reader (its core is a Go program); this one checks every checksum and leaves the decoding of
the records to `wandb.proto`.  Tests load this file with `runpy.run_path`.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> list[Any]:
    """Return the `wandb.proto` records of a file, all of them, in order."""
    from wandb.proto import wandb_internal_pb2 as pb

    content, records, open_record = path.read_bytes(), [], b""
    assert content[:4] == b":W&B" and struct.unpack("<HB", content[4:7]) == (0xBEE1, 0)
    place = HEADER
    while place < len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", content[place : place + HEADER])
        chunk = content[place + HEADER : place + HEADER + length]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum, f"damaged at byte {place}"
        place += HEADER + length
        open_record = chunk if kind in (FULL, FIRST) else open_record + chunk
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(open_record)
            records.append(record)
    return records


def _value(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class WandbRun:
    """What an offline run holds.

    Attributes:
        run: the record of the run: run_id, project, run_group, job_type, tags.
        config: configuration.
        history: one dictionary a logged step.
        summary: last word on each key.
        artifacts: name to the entries of its manifest, path to local file.
    """

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        found = list(folder.glob("run-*.wandb"))
        assert len(found) == 1
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: dict[str, dict[str, str]] = {}
        self.exit_code: int | None = None
        for record in read_records(found[0]):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _value(record.run.config.update)
            elif kind == "config":
                self.config |= _value(record.config.update)
            elif kind == "summary":
                self.summary |= _value(record.summary.update)
            elif kind == "history":
                self.history.append(_value(record.history.item))
            elif kind == "artifact":
                entries = record.artifact.manifest.contents
                self.artifacts[record.artifact.name] = {entry.path: entry.local_path for entry in entries}
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                artifact = record.request.log_artifact.artifact
                self.artifacts[artifact.name] = {e.path: e.local_path for e in artifact.manifest.contents}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a table with their media, from its artifact."""
        entries = next(found for key, found in self.artifacts.items() if key.endswith(f"-{name}"))
        content = json.loads(Path(entries[f"{name}.table.json"]).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def table_file(self, name: str, cell: dict[str, Any]) -> Path:
        """Return the file behind a media cell of a table."""
        entries = next(found for key, found in self.artifacts.items() if key.endswith(f"-{name}"))
        return Path(entries[cell["path"]])
