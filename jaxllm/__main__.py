"""The front door: `jaxllm STAGE --config FILE --workdir DIR`; answers --help at once, turns mistakes into one line and exit code 2."""

import argparse
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from jaxllm.stages.keys import LABEL, SAMPLE, SHARED, STAGES, TASKS, TRAINS
from jaxllm.stages.rl_keys import RL, ROLLOUT

DONE, FAILED, MISTAKE, STOPPED = 0, 1, 2, 75  # DESIGN: exit codes

EPILOG = (
    "Any config key can be overridden: --config.optimizer.learning_rate=1e-3. Starting a stage again in the same --workdir resumes it. "
    "Exit codes: 0 done, 75 stopped early and saved (run again), 2 your mistake, 1 anything else."
)


def _keys_help(keys) -> str:
    rows = [f"  {name:28} {'none' if spec.default is None else repr(spec.default):24} {spec.help}" for name, spec in keys.items()]
    return "config keys (name, default, meaning):\n" + "\n".join(rows)


def _configured(parser: argparse.ArgumentParser, workdir: bool = True) -> None:
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file with get_config(); see configs/")
    parser.add_argument("--workdir", required=workdir, metavar="DIR", help="where the run lives; starting again there resumes")


def _prepare(parser: argparse.ArgumentParser) -> None:
    _configured(parser, workdir=False)
    parser.epilog = _keys_help({k: v for k, v in SHARED.items() if k.startswith("data.") or k in ("seed", "sequence_length")})


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show",), help="show: one row, as coloured tokens")
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="the config that trains on it; see configs/")
    parser.add_argument("--row", type=int, default=0, metavar="N", help="which row, counted from the first of step 0 (default: 0)")
    parser.add_argument("--html", metavar="FILE", help="also write a page here; each token says everything of itself")


def _pretrain(parser: argparse.ArgumentParser) -> None:
    _configured(parser, workdir=False)
    parser.add_argument("--check", action="store_true", help="check the config by shapes alone; nothing runs")
    parser.add_argument("--devices", type=int, metavar="N", help="of --check: what the mesh must cover (default: what its sizes come to)")
    parser.add_argument("--canary", type=int, metavar="N", help="compare N updates with fast compiler flags and with none; nothing is kept")
    parser.add_argument("--presets", action=_Presets, nargs=0, help="list the model presets and exit")
    parser.add_argument("--methods", action=_Methods, nargs=0, help="list the methods of peft.name and exit")
    parser.epilog = _keys_help(SHARED)


def _rl(parser: argparse.ArgumentParser) -> None:
    _pretrain(parser)
    parser.epilog = _keys_help(ROLLOUT | RL | SHARED)


def _label(parser: argparse.ArgumentParser) -> None:
    _configured(parser)
    parser.epilog = _keys_help(LABEL | ROLLOUT | {name: key for name, key in RL.items() if name.startswith("rl.reward")})


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", help="a trained model's work directory; with --init-from: where the records go")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the last whole one)")
    parser.add_argument(
        "--tasks", metavar="NAME,NAME=FILE", help="tasks to ask (jaxllm tasks lists them), or all: those whose files are under tasks.path"
    )
    parser.add_argument("--init-from", metavar="DIR", help="the model to ask: another work directory, or a Hugging Face folder")
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a config whose tasks.* are used (default: that of the run)")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two files of answers to the same prompts: how often A's win")
    parser.add_argument("--labels", metavar="FILE", help="pairs of answers that people judged: how often the judge says the same")
    parser.add_argument("--judge", metavar="JUDGE", help="of --compare and --labels: 'cmd:PROGRAM ARGUMENTS', or the folder of a model")
    parser.add_argument("--rubric", metavar="FILE", help="what a model is asked as a judge: {prompt}, {first}, {second} (default: our own)")
    parser.epilog = _keys_help(TASKS)


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a trained model's work directory")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the last whole one)")
    parser.add_argument("--prompt", action="append", help="a prompt; may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="a file with one prompt a line, or - for standard input")
    parser.add_argument("--output", metavar="FILE", help="also write JSON lines here (default: WORKDIR/samples.jsonl)")
    parser.add_argument("--resume", action="store_true", help="go on where the lines of --output end")
    parser.add_argument(
        "--adapters", metavar="DIR,DIR", help='LoRA runs over the model of --workdir; a line of --prompts names its own as "adapter"'
    )
    parser.add_argument("--best-of", type=int, metavar="N", help="draw N samples of each prompt and keep the best")
    parser.add_argument(
        "--rank-by",
        default="mean_log_prob",
        metavar="SCORE",
        help="what the best is: mean_log_prob (default), or a reward model's work directory",
    )
    parser.add_argument("--draft", metavar="DIR", help="a smaller model's work directory: it proposes, the distribution stays")
    parser.epilog = _keys_help(SAMPLE)


def _chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a trained model's work directory")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the last whole one)")
    parser.add_argument("--draft", metavar="DIR", help="a smaller model's work directory that proposes tokens")
    parser.add_argument("--plain", action="store_true", help="plain turns, even where the model has a chat template")
    parser.epilog = _keys_help(SAMPLE)


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", required=True, metavar="DIR", help="a Hugging Face folder, or a work directory")
    parser.add_argument("--to", required=True, metavar="DIR", help="a new folder: a work directory, or a Hugging Face folder")
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or (of a Hugging Face folder) float16; default: that of the source"
    )
    parser.add_argument("--step", type=int, metavar="N", help="of a work directory: which checkpoint (default: the last whole one)")
    parser.add_argument(
        "--adapters",
        action="store_true",
        help="of a work directory: its adapters alone, as PEFT lays them out (default: merged into the base)",
    )
    parser.add_argument(
        "--family", metavar="NAME", help="of a work directory: the model_type to write (default: where it came from, or what fits)"
    )


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file with get_config(); see configs/")
    parser.add_argument("--topology", required=True, metavar="NAME", help="v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:8x8, tpu7x:4x4x4, ...")
    parser.add_argument("--num-slices", type=int, default=1, metavar="N", help="slices of that shape, joined by DCN (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="also write everything here")
    parser.add_argument("--html", metavar="FILE", help="also write a page with pictures here")
    parser.add_argument(
        "--search",
        type=int,
        nargs="?",
        const=12,
        metavar="N",
        help="compile at most N (default: 12) choices of remat, microbatches and parallel.tensor for the fastest that fits",
    )


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="work directories to put on one page, or folders of sweeps")
    parser.add_argument("--output", metavar="FILE", help="the page (default: report.html in the first work directory)")


def _run(parser: argparse.ArgumentParser) -> None:
    _configured(parser)
    parser.add_argument("--check", action="store_true", help="check every stage's config and print the commands; nothing runs")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="demo", metavar="DIR", help="default: ./demo")
    parser.add_argument("--keep", action="store_true", help="go on with an earlier demo instead of starting afresh")
    parser.add_argument("--tiny", action="store_true", help="a few steps of every stage")


def _checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its checksum")
    parser.add_argument("--prune", type=int, metavar="K", help="keep only the last K whole checkpoints")


FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "prepare": _prepare,
    "data": _data,
    "pretrain": _pretrain,
    "sft": _pretrain,
    "label": _label,
    "reward": _pretrain,
    "preference": _pretrain,
    "rl": _rl,
    "evaluate": _evaluate,
    "tasks": lambda parser: None,
    "sample": _sample,
    "chat": _chat,
    "convert": _convert,
    "plan": _plan,
    "report": _report,
    "run": _run,
    "demo": _demo,
    "checkpoints": _checkpoints,
}


class _Presets(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from jaxllm.models.presets import PRESETS

        print("\n".join(PRESETS))
        parser.exit()


class _Methods(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import dataclasses

        from jaxllm.models.peft import METHODS

        for name, method in METHODS.items():
            options = [field.name for field in dataclasses.fields(method) if field.name != "model"]
            print(f"{name:12} {(method.__doc__ or '').splitlines()[0]} Options: {', '.join(options) or 'none'}.")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without importing JAX."""
    parser = argparse.ArgumentParser(prog="jaxllm", description="Train, evaluate and sample language models.", epilog=EPILOG)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, what in STAGES.items():
        child = stages.add_parser(name, help=what, description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        FLAGS[name](child)
    return parser


def quiet_environment() -> None:
    """Keeps the C++ log of JAX and gRPC to errors; it must be said before they start."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


REMOTE = {"gs": ("gcsfs", "jaxllm[gcs]"), "s3": ("s3fs", "s3fs")}  # scheme -> package it needs, what pip installs


def check_place(workdir: str) -> None:
    """Refuses a work directory that cannot be a folder, here or remote.

    Raises:
      ValueError: it is a file or lies below one, or an address that nothing here can open.
    """
    scheme, address, _ = workdir.partition("://")
    if address:
        if scheme not in REMOTE:
            raise ValueError(f"--workdir {workdir}: unknown scheme {scheme}://. Choose gs:// or s3://, or a folder of this machine.")
        if importlib.util.find_spec(REMOTE[scheme][0]) is None:
            raise ValueError(f"--workdir {workdir}: {scheme}:// needs {REMOTE[scheme][0]}. Run: pip install '{REMOTE[scheme][1]}'")
        return
    file = next((path for path in (Path(workdir), *Path(workdir).parents) if path.is_file()), None)
    if file is not None:
        raise ValueError(f"--workdir {workdir}: {file} is a file. Name a folder: a new one, or that of a run.")


def is_mistake(error: BaseException) -> bool:
    """A ValueError raised by jaxllm's own code is the user's to mend; one from a library is ours."""
    if not isinstance(error, ValueError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def unknown_stage(argv: Sequence[str]) -> str | None:
    """What to say of a first word that is no stage; None where it is one, or a flag."""
    if not argv or argv[0].startswith("-") or argv[0] in STAGES:
        return None
    near = difflib.get_close_matches(argv[0], STAGES, 1)
    return f"Unknown stage {argv[0]!r}. " + (f"Did you mean {near[0]!r}?" if near else f"Choose one of: {', '.join(STAGES)}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage; returns its exit code."""
    if unknown := unknown_stage(sys.argv[1:] if argv is None else argv):
        print(f"jaxllm: {unknown}", file=sys.stderr)
        return MISTAKE
    parser = build_parser()
    args, overrides = parser.parse_known_args(argv)
    if args.stage in TRAINS and not (args.workdir or args.check or args.canary is not None):
        parser.error("--workdir is needed (or --check or --canary, which keep nothing)")
    quiet_environment()
    try:
        for place in [getattr(args, "workdir", None) or ".", *getattr(args, "workdirs", [])]:
            check_place(place)
        return import_module(f"jaxllm.stages.{args.stage}").main(args, overrides)
    except KeyboardInterrupt:  # training has its own way to stop, with a save
        print("jaxllm: interrupted; run the same command again.", file=sys.stderr)
        return FAILED
    except Exception as error:
        if os.environ.get("JAXLLM_TRACEBACK") or not is_mistake(error):
            traceback.print_exc()
            print(f"jaxllm: {type(error).__name__}: {error}", file=sys.stderr)
            return MISTAKE if is_mistake(error) else FAILED
        print(f"jaxllm: {error}", file=sys.stderr)
        return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
