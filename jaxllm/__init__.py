"""jaxllm: the whole life of a language model as pure functions over one mesh."""

__version__ = "0.1.0"
