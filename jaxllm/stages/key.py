"""What is known of a config key."""

from typing import Any, NamedTuple


class Key(NamedTuple):
    """One config key; `kind` is the Python type a value must have (None is allowed where the default is None)."""

    default: Any
    kind: type
    help: str
    resume: bool = False  # True: may differ when a work directory is started again
