"""EleutherAI's lm-evaluation-harness with a jaxllm model: its own command line and its own tasks.

    pip install 'jaxllm[evals]'
    python -m jaxllm.stages.harness --model jaxllm --model_args workdir=DIR --tasks hellaswag,gsm8k

takes every word that `lm_eval` takes; `lm_eval` itself loads no models from outside (its `--include_path` is for tasks), which is why
the command is ours. DIR is a work directory or a Hugging Face folder; the other words of `--model_args` are the arguments of `Jaxllm`.
In Python:

    import lm_eval
    from jaxllm.stages import harness

    harness.register()
    lm_eval.simple_evaluate(model="jaxllm", model_args={"workdir": "DIR"}, tasks=["hellaswag"])
"""

import os
import sys
import traceback
from typing import Any

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    MISSING = "jaxllm.stages.harness needs lm-evaluation-harness. Run: pip install 'jaxllm[evals]'"
    if __name__ == "__main__":
        print(f"jaxllm: {MISSING}", file=sys.stderr)
        sys.exit(2)
    raise ValueError(MISSING) from None

from jaxllm.evaluation.harness import Answers
from jaxllm.interop import folders
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import setup, tasks
from jaxllm.stages.config import parse_overrides, resolve
from jaxllm.stages.workdir import read

AUTO = (None, 1, "1", "auto")  # what lm-eval says of the batch where the user has said nothing


class Jaxllm(LM):
    """A trained model as lm-evaluation-harness sees one: one process, all of its devices."""

    def __init__(
        self,
        workdir: str | None = None,
        step: int | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        """Reads the model.

        Args:
          workdir: a work directory, or a Hugging Face folder.
          step: which checkpoint of a work directory; None: the newest.
          dtype: of the computation; None: `model.dtype` of the run, and "auto" for a Hugging Face folder.
          max_length: the most tokens the model reads; None: its context.
          seed: of what is drawn.
          batch_size: rows that are scored or written together; None, 1 (lm-eval's default) or "auto": 32 and 8.
          max_batch_size: lm-eval's; batches here are of one size.
          device: lm-eval's; JAX takes all devices of its platform (the environment variable JAX_PLATFORMS).
          unknown: nothing.

        Raises:
          ValueError: no such model, or an argument that cannot be used.
        """
        super().__init__()
        if unknown or workdir is None:
            wrong = f"Unknown --model_args {', '.join(unknown)}." if unknown else "Which model?"
            raise ValueError(f"{wrong} Give workdir=DIR, and if need be: step, dtype, max_length, seed, batch_size.")
        sizes = {} if batch_size in AUTO else dict.fromkeys(("rows", "slots"), int(batch_size or 1))
        changed = [] if dtype is None else [f"--config.model.dtype={dtype}"]
        config = resolve({} if folders.is_one(workdir) else read(workdir)["config"], parse_overrides(changed))
        setup.backend_flags(config, trains=False)
        setup.keep_compiled_programs()
        mesh = make_mesh()  # rows are independent: every device gets its own
        model, params, tokenizer, self.step = tasks.open_source(workdir, mesh, step, config)
        self.source = workdir
        self.answers = Answers(model, params, tokenizer, mesh, length=max_length, seed=seed, **sizes)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `LM.loglikelihood`."""
        return self._kept("loglikelihood", requests, self.answers.loglikelihood([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """See `LM.loglikelihood_rolling`."""
        return self._kept("loglikelihood_rolling", requests, self.answers.rolling([request.args[0] for request in requests]))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """See `LM.generate_until`."""
        return self._kept("generate_until", requests, self.answers.written([request.args for request in requests]))

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        model = self.answers.model
        return {
            "model_num_parameters": model.num_params(),
            "model_dtype": model.dtype,
            "model_source": self.source,
            "model_step": self.step,
        }

    def _kept(self, kind: str, requests: list[Any], found: list[Any]) -> list[Any]:
        """The answers, which lm-eval's `--use_cache` keeps too."""
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return found


def register() -> None:
    """Makes "jaxllm" a name of a model that lm-evaluation-harness knows."""
    import lm_eval.models  # noqa: F401  # its own names first: a table that is not empty is not filled any more
    from lm_eval.api.registry import model_registry

    model_registry.register("jaxllm", target=Jaxllm)


def main() -> int:
    """lm-eval's command line; returns the exit code."""
    register()
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        if os.environ.get("JAXLLM_TRACEBACK"):
            traceback.print_exc()
        print(f"jaxllm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from jaxllm.stages import harness  # the class by its own name, not that of this script

    sys.exit(harness.main())
