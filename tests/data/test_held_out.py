"""Three levels of held-out data share nothing with training, and which examples they hold depends on nothing else."""

import numpy as np
import pytest

from jaxllm.data.example_rows import ExampleReader
from jaxllm.data.held_out import LEVELS, hold_out
from tests.data.drawn_examples import Memory, drawn

TABLE = {"squad": "reading", "race": "reading", "sst": "sentiment", "imdb": "sentiment", "wmt": "translation"}
TASKS = {name: Memory(drawn(number, 400)) for number, name in enumerate(TABLE)}


def split(tasks=TASKS, **options):
    return hold_out(tasks, TABLE, **{"categories": ["translation"], "held_tasks": ["race"], "instances": 0.1} | options)


def keys(examples):
    return [examples.example(i).tokens.tobytes() for i in range(examples.num_examples)]


def test_the_levels_of_a_table():
    train, evals = split()
    assert list(evals) == list(LEVELS)
    assert {level: set(tasks) for level, tasks in evals.items()} == {
        "category": {"wmt"},
        "task": {"race"},
        "instance": {"squad", "sst", "imdb"},
    }
    assert set(train) == {"squad", "sst", "imdb"}
    for name in train:
        inside, outside = keys(train[name]), keys(evals["instance"][name])
        assert sorted(inside + outside) == sorted(keys(TASKS[name])) and not set(inside) & set(outside)
        assert 0.05 < len(outside) / 400 < 0.16
        np.testing.assert_array_equal(train[name].lengths, [len(key) // 4 for key in inside])
        np.testing.assert_array_equal(train[name].trained, [np.count_nonzero(train[name].example(i).weights) for i in range(len(inside))])
    ExampleReader(train, sequence_length=16, batch_size=2, seed=0).rows(3)  # what is left is read like any store


def test_an_instance_is_held_out_by_itself():
    backwards = {name: Memory(store.examples[::-1]) for name, store in TASKS.items() if name in ("squad", "wmt", "race")}
    for name in ("squad",):
        assert set(keys(split(backwards).evals["instance"][name])) == set(keys(split().evals["instance"][name]))
    larger = split(instances=0.3).evals["instance"]["squad"]
    assert set(keys(split().evals["instance"]["squad"])) < set(keys(larger))


def test_by_prompt_all_answers_to_a_question_are_on_one_side():
    questions = [example for example in drawn(9, 200) if example.weights[1] == 0]  # with a prompt of two tokens or more
    answers = [example._replace(tokens=np.where(example.weights > 0, 7, example.tokens)) for example in questions]
    both = {"squad": Memory([*questions, *answers])}
    evals = hold_out(both, TABLE, instances=0.3, by="prompt").evals["instance"]["squad"]
    held = set(evals.which.tolist())
    count = len(questions)
    assert {i for i in held if i < count} == {i - count for i in held if i >= count} and 0 < len(held) < 2 * count
    apart = set(hold_out(both, TABLE, instances=0.3).evals["instance"]["squad"].which.tolist())
    assert {i for i in apart if i < count} != {i - count for i in apart if i >= count}


def test_nothing_held_out_is_everything_trained_on():
    train, evals = hold_out(TASKS, TABLE)
    assert train == TASKS and not any(evals.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["reeding"]}, "Unknown category 'reeding'. Choose from: reading, sentiment, translation"),
        ({"held_tasks": ["sqad"]}, "Unknown task 'sqad'. Choose from: imdb, race"),
        ({"held_tasks": ["wmt"]}, "'wmt' is held out with its category 'translation' already"),
        ({"held_tasks": ["squad", "race"]}, "No task of 'reading' is left .* Hold out 'reading' instead"),
        ({"instances": 1.0}, "instances=1.0 is not a fraction"),
        ({"by": "id"}, "Unknown by='id'. Choose one of: example, prompt"),
        ({"categories": ["reading", "sentiment", "translation"], "held_tasks": []}, "no example is left to train on"),
        ({"tasks": TASKS | {"new": TASKS["wmt"]}}, "'new' has no category"),
    ],
)
def test_users_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        split(**options)
