"""The scores of many answers, whatever their verifier does: one that raises judges nothing, and its answer is told."""

import functools
from collections.abc import Callable, Sequence

from jaxllm.tasks.task import Generation, Row, Scores, Unscored


def score_all(
    task: Generation, rows: Sequence[Row], answers: Sequence[str], missing: Callable[[int, str], None] = lambda i, why: None
) -> list[Scores | None]:
    """The scores of answers, None where one cannot be judged; a task that judges many at once (by programs that run) is asked once.

    A verifier that raises, whatever it raises, judges nothing: its answer has no score, and never 0. Where many are judged at once
    each half of them is then asked for by itself, and so on, so that only the culprit is missing.

    Args:
      task: the rows' own.
      rows: normal ones.
      answers: one to each row.
      missing: is told the number of an answer without a score, and why.
    """
    if not hasattr(task, "score_all"):
        each = enumerate(zip(rows, answers, strict=True))
        return [_score(task, row, answer, functools.partial(missing, i)) for i, (row, answer) in each]
    try:
        found = _together(task, rows, answers)
    except Exception as error:
        if len(answers) == 1:
            missing(0, f"its verifier raised {error!r}")
            return [None]
        half = len(answers) // 2
        behind = lambda i, why: missing(half + i, why)  # noqa: E731
        return score_all(task, rows[:half], answers[:half], missing) + score_all(task, rows[half:], answers[half:], behind)
    for i, one in enumerate(found):
        if one is None:
            missing(i, "its verifier could not judge")
    return found


def _together(task: Generation, rows: Sequence[Row], answers: Sequence[str]) -> list[Scores | None]:
    """What the task's own `score_all` says, None where it has no score.

    Raises:
      ValueError: not as many scores as answers; and whatever the task raises.
    """
    found = [one or None for one in task.score_all(rows, answers)]  # type: ignore[attr-defined]
    if len(found) != len(answers):
        raise ValueError(f"score_all gave {len(found)} scores for {len(answers)} answers")
    return found


def _score(task: Generation, row: Row, answer: str, missing: Callable[[str], None]) -> Scores | None:
    try:
        return task.score(row, answer)
    except Unscored as error:
        missing(str(error).rstrip("."))
    except Exception as error:  # a fault of the verifier must not count against the model, nor end the evaluation
        missing(f"its verifier raised {error!r}")
    return None
