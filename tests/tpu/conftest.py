"""What was compiled for devices that are not there cannot be read back: nothing is kept."""

import jax

jax.config.update("jax_enable_compilation_cache", False)
