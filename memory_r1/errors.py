"""Everything this package raises on purpose.

MemoryR1Error
├── ConfigError          a setting is unknown or out of range
├── DataError            a file is missing, is not what it was said to be, or holds nothing usable
├── MissingExtra         an optional dependency is not installed
├── MalformedReply       a model's reply does not follow the grammar it was asked for
│   └── MalformedOps     ... of the Memory Manager
├── UnknownEntry         no such entry in the bank
├── StoreError           a store cannot be opened, read or written
│   ├── UnknownRow       no such journal row or message
│   └── Conflict         what was asked no longer fits what is there
└── ModelUnavailable     a language model could not be reached or loaded
    └── ModelUnreachable ... but may be later: its server is away, or too busy
"""


class MemoryR1Error(Exception):
    """The root of all errors raised on purpose; its text is a sentence for the user."""


class ConfigError(MemoryR1Error):
    """A setting is unknown or out of range."""


class DataError(MemoryR1Error):
    """A file is missing, is not what it was said to be, or holds nothing usable."""


class MissingExtra(MemoryR1Error):
    """An optional dependency is not installed.

    feature: what the user asked for, e.g. "GRPO training"
    package: what is missing, e.g. "torch"
    extra:   the extra of memory-r1 that brings it, e.g. "train"
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}. Install it with:  pip install 'memory-r1[{extra}]'"
        )


class MalformedReply(MemoryR1Error):
    """A model's reply does not follow the grammar it was asked for."""


class MalformedOps(MalformedReply):
    """The Memory Manager's reply is not a list of operations on the entries it was shown."""


class UnknownEntry(MemoryR1Error):
    """No such entry in the bank."""


class StoreError(MemoryR1Error):
    """A store cannot be opened, read or written."""


class UnknownRow(StoreError):
    """No such journal row or message."""


class Conflict(StoreError):
    """What was asked no longer fits what is there, e.g. the undo of what has been changed since."""


class ModelUnavailable(MemoryR1Error):
    """A language model could not be reached or loaded; never a wrong answer."""


class ModelUnreachable(ModelUnavailable):
    """A model's server was away or too busy, however often it was asked; later it may reply."""
