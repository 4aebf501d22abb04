"""The recordings that ship with the package: 48 labelled clips of speech, music and environmental sound, 2.4 minutes."""

from pathlib import Path

import losatok_ext


def sample_folder() -> Path:
    """The folder of the bundled clips: 16 kHz mono FLAC under ``speech/``, ``music/`` and ``environment/``, and ``manifest.jsonl``."""
    return Path(losatok_ext.__file__).parent / "data" / "audio"
