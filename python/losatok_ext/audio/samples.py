"""The recordings that come with the package: 48 labelled clips of speech, music and environmental sound."""

from pathlib import Path

import losatok_ext


def sample_folder() -> Path:
    """The folder of the bundled clips, 2.4 minutes in all.

    16 kHz mono FLAC under ``speech/``, ``music/`` and ``environment/``, and their labels in ``manifest.jsonl``.
    """
    return Path(losatok_ext.__file__).parent / "data" / "audio"
