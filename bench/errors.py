"""Errors that a user can mend. The command line prints them as one line and exits with 2."""


class BenchError(Exception):
    """A mistake outside the code: the message is one line that names what to change."""


class DataError(BenchError):
    """A dataset that is missing, damaged or not what it claims to be."""


class ConfigError(BenchError):
    """An unknown name, a bad setting, or a pair that does not fit together."""


class RunError(BenchError):
    """A run folder or checkpoint that cannot be used."""


class OutOfMemory(BenchError):
    """Training needs more memory than there is."""
