"""Many processes that start, agree and stop as one; with a single process all of it costs nothing."""

import json
import sys
from typing import Any

import jax
from jax._src import distributed  # the key-value store of the coordinator has no public face; this is the one file that knows it

WAIT_SECONDS = 1200  # how long one process waits for the word of another; a lost one ends all of them long before


def is_first() -> bool:
    """True in the process that writes files and talks to the user."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """One line to the user, from the first process only."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def collect(key: str, value: Any) -> list[Any]:
    """Brings one small JSON value of every process to the first one, without touching a device: safe in a background thread.

    Args:
      key: a name that is used once in a run, the same in all processes.
      value: what this process has to say.

    Returns:
      In the first process the values in the order of the processes; elsewhere an empty list.
    """
    if jax.process_count() == 1:
        return [value]
    client = distributed.global_state.client
    if not is_first():
        client.key_value_set(f"jaxllm/{key}/{jax.process_index()}", json.dumps(value))
        return []
    names = [f"jaxllm/{key}/{p}" for p in range(1, jax.process_count())]
    values = [json.loads(client.blocking_key_value_get(name, WAIT_SECONDS * 1000)) for name in names]
    client.key_value_delete(f"jaxllm/{key}/")
    return [value, *values]


def tell(key: str, value: Any = None) -> Any:
    """The first process's small JSON value, in every process; as `collect`, it touches no device.

    Args:
      key: a name that is used once in a run, the same in all processes.
      value: read in the first process only.
    """
    if jax.process_count() == 1:
        return value
    client = distributed.global_state.client
    if is_first():
        client.key_value_set(f"jaxllm/{key}", json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(f"jaxllm/{key}", WAIT_SECONDS * 1000))
