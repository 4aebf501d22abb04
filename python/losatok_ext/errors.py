"""Errors that a user can make. Each message is one sentence that names the argument or file, and the cure.

The command line prints the message of any :class:`UserError` and exits with code 2, without a traceback unless
``--debug`` was given.
"""


class UserError(ValueError):
    """Something the user can put right; the message says what and how."""


class InputError(UserError):
    """What was named as input cannot be used: an empty name, a broken manifest, a folder without files."""


class AudioFileError(UserError):
    """An audio file is missing, empty, damaged, too long, not audio, or holds non-finite samples."""


class DamagedAudioWarning(UserWarning):
    """An audio file holds less than it promises, and what is left of it is used."""


class LatentFileError(UserError):
    """A latent file cannot be read, or was written for another model."""


class ShardError(UserError):
    """A shard, or what it holds of a clip, is missing, truncated or damaged."""


class CheckpointError(UserError):
    """A checkpoint or model folder cannot be read, or does not fit the model."""


class ConfigError(UserError):
    """A configuration file or ``--set`` names an unknown key, or a value of the wrong kind."""


class TrainingError(UserError):
    """Training cannot start or go on: data, losses or state are not usable."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was not enough: Python's and NumPy's, and torch's on a GPU and on the CPU."""
    if isinstance(error, RuntimeError):  # torch has a class of its own for GPUs only
        return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError)
