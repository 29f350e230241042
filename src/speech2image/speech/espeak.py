"""The espeak-ng library through ctypes: found, opened, asked for samples and closed again.

Here is one life of the library, from loading to unloading, and the search for it.  Not here: voices,
levels and the choice who says what, see `synthesis.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np

from speech2image.errors import DataError, Speech2ImageError

__all__ = ["ACCENTS", "Espeak", "find_espeak"]

ACCENTS: dict[str, str] = {
    # language: name inside espeak-ng; plain British English answers only to its file name.
    "en-us": "gmw/en-US",
    "en-gb": "gmw/en",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-gb-x-rp": "gmw/en-GB-x-rp",
    "en-gb-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-gb-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-029": "gmw/en-029",
}
_MAX_DATA_PATH = 140  # espeak-ng 1.52 cuts longer paths at 160 bytes and then looks at its build machine's
_ESPEAK_LOCK = threading.Lock()
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h: samples go to the callback, before synth returns
_DO_NOT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
_RATE, _PITCH = 1, 3  # espeakRATE, espeakPITCH
_UTF8 = 1  # espeakCHARS_UTF8
_RANDOM_SEED = 7
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """One life of the library: loaded on entry, with all of its state fresh, and unloaded on exit.

    Lives follow each other: a second thread waits at `with` until the first has left.

    Args:
        library_path: the shared library.
        data_path: its folder `espeak-ng-data`.

    Raises: Speech2ImageError: the library or its data cannot be loaded.
    """

    def __init__(self, library_path: str, data_path: str) -> None:
        self._paths = (library_path, data_path)
        self._chunks: list[bytes] = []
        self._callback = _SynthCallback(self._take)

    def __enter__(self) -> Self:
        _ESPEAK_LOCK.acquire()
        try:
            self._library = self._load()
            try:
                self._open()
            except BaseException:
                self._unload()  # else every later life would go on with the state of the one before
                raise
        except BaseException:
            _ESPEAK_LOCK.release()
            raise
        return self

    def _load(self) -> ctypes.CDLL:
        library_path, _ = self._paths
        try:
            return ctypes.CDLL(library_path)
        except OSError as error:
            raise _no_espeak(f"{library_path} cannot be loaded: {error}") from error

    def _open(self) -> None:
        _, data_path = self._paths
        self.sample_rate_hz = int(
            self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data_path), _DO_NOT_EXIT)
        )
        if self.sample_rate_hz <= 0:
            raise _no_espeak(f"its voice data at {data_path} cannot be read")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_RANDOM_SEED))
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version = self._library.espeak_Info(None).decode("ascii", "replace").strip()

    def __exit__(self, *_: object) -> None:
        try:
            self._library.espeak_Terminate()
            self._unload()
        finally:
            _ESPEAK_LOCK.release()

    def _unload(self) -> None:
        handle = self._library._handle
        del self._library
        if os.name == "posix":
            import _ctypes

            _ctypes.dlclose(handle)

    def _take(self, samples: int | None, num_samples: int, _events: int | None) -> int:
        if samples and num_samples > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    def speak(self, words: str, language: str, variant: str, pitch: int, rate_wpm: int) -> np.ndarray:
        """Return `words` as samples `(S,)` float32 at `sample_rate_hz`; see `synthesis.Voice` for the rest.

        Raises: DataError: the language is unknown, or the library refuses the text.
        """
        name = ACCENTS.get(language, language) + (f"+{variant}" if variant else "")
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise DataError(
                f"espeak-ng {self.version} has no voice {name!r}",
                f"Choose a language among: {', '.join(ACCENTS)}.",
            )
        self._library.espeak_SetParameter(_RATE, rate_wpm, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        text = words.encode("utf-8")
        size = ctypes.c_size_t(len(text) + 1)
        status = self._library.espeak_Synth(ctypes.c_char_p(text), size, 0, 0, 0, _UTF8, None, None)
        if status != 0:
            raise DataError(
                f"espeak-ng could not speak {words!r}: status {status}", "Shorten or simplify the text."
            )
        self._library.espeak_Synchronize()
        return np.frombuffer(b"".join(self._chunks), dtype="<i2").astype(np.float32) / 32768


@lru_cache(maxsize=1)
def find_espeak() -> tuple[str, str]:
    """Return the paths of library and voice data, the latter short enough for the library."""
    try:
        import espeakng_loader

        library_path, data_path = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    except (ImportError, RuntimeError, OSError) as error:
        raise _no_espeak(str(error)) from error
    return library_path, _shorten(data_path)


def _shorten(data_path: str) -> str:
    """Return a path of the voice data that fits the library's buffer: itself, or a link in the temporary folder."""
    if len(os.fsencode(data_path)) <= _MAX_DATA_PATH:
        return data_path
    digest = hashlib.blake2b(data_path.encode(), digest_size=6).hexdigest()
    folder = (
        Path(tempfile.gettempdir())
        / f"speech2image-espeak-{os.getuid() if hasattr(os, 'getuid') else 0}-{digest}"
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    link = folder / "espeak-ng-data"
    if not (link.is_symlink() and os.readlink(link) == data_path):
        beside = folder / f"link-{os.getpid()}"
        beside.unlink(missing_ok=True)
        beside.symlink_to(data_path)
        beside.replace(link)
    return str(link)


def _no_espeak(reason: str) -> Speech2ImageError:
    return Speech2ImageError(
        f"speech cannot be synthesized: espeak-ng is not usable: {reason}",
        "Install it with: pip install --force-reinstall 'espeakng-loader>=0.2.4'",
    )
