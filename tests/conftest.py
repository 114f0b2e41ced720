"""Every test runs on eight faked CPU devices, with compiled programs kept between runs."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "64")  # threads of XLA's pool; see `setup.FAKED_THREADS`
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600 "
    "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")  # compiles in half the time; what tests start as
    # processes of their own is compiled as for users
)

import jax

CACHE = Path(__file__).resolve().parents[1] / ".cache" / f"jax-{jax.__version__}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_sessionfinish(session, exitstatus):
    """In CI a skipped test is a failed one: it shows nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        print(f"\n{len(reporter.stats['skipped'])} skipped, which counts as failed in CI")
        session.exitstatus = 1
