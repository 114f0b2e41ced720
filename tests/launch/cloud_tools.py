"""Stand-ins for gcloud and kubectl on the PATH, for tests: they record every call, and play the next scene of a script."""

import json
from pathlib import Path

TOOL = """#!/usr/bin/env python3
import fcntl, json, os, sys
folder = {folder!r}
name = os.path.basename(sys.argv[0])
words = sys.argv[1:]
lock = open(folder + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends: several nodes are called at once
with open(folder + "/calls.jsonl", "a") as file:
    given = "" if sys.stdin.isatty() or "--filename=-" not in words else sys.stdin.read()
    file.write(json.dumps({{"tool": name, "words": words, "stdin": given}}) + "\\n")
scenes = json.load(open(folder + "/scenes.json"))
for scene in scenes:
    if all(any(word in said for said in words) for word in scene["when"]):
        answers = scene["answers"]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        with open(folder + "/scenes.json", "w") as file:
            json.dump(scenes, file)
        sys.stdout.write(answer.get("out", ""))
        sys.stderr.write(answer.get("err", ""))
        sys.exit(answer.get("code", 0))
"""


class Tools:
    """The stand-ins of one test.

    A scene is (words that the call contains, answers): each call takes the next answer, {"out", "err", "code"}, and the last stays. A call
    that is in no scene succeeds, and says nothing.
    """

    def __init__(self, folder: Path, *names: str):
        self.folder = folder
        folder.mkdir()
        for name in names:
            (folder / name).write_text(TOOL.format(folder=str(folder)))
            (folder / name).chmod(0o755)
        self.play()

    def play(self, *scenes):
        """Sets the scenes; the first that fits a call answers it."""
        found = [{"when": list(when), "answers": answers if isinstance(answers, list) else [answers]} for when, answers in scenes]
        (self.folder / "scenes.json").write_text(json.dumps(found))

    def calls(self):
        """What was called: lists of words, without the tool's own name."""
        return [call["words"] for call in self.records()]

    def records(self):
        """What was called, with what was handed in."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
