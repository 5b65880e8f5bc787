"""Scores of EleutherAI's lm-evaluation-harness on the plain model, and over the server with documents cached and without.

python -m benchmarks lm_eval [--documents 2] [--questions 4] [--concurrent 4]

lm_eval runs in an environment of its own, build/peers/lm_eval, which is made the first time. Two small tasks are made up:
choices are scored by their log-likelihood after a document and a question, answers are generated. Fails where scores or
answers differ.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.server import served
from benchmarks.peers import environments

NAME = "lm_eval"
INNS = 8
"""Facts of one document."""

ANIMALS = ["bear", "crane", "deer", "eagle", "fox", "goat", "hare", "kite", "lynx", "otter", "raven", "seal"]
COLOURS = ["black", "blue", "brown", "golden", "green", "grey", "red", "silver", "white", "yellow"]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{document}}}}\\n\\n{{{{question}}}}"
"""
CHOICE = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"
ANSWER = """output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list: [{name: number, filter: [{function: regex, regex_pattern: '([0-9]+) crowns'}, {function: take_first}]}]
"""
TASKS = {"inns_choice": CHOICE, "inns_answer": ANSWER}


@dataclass(frozen=True)
class Scores:
    """What lm_eval made of one backend: each task's score, and all that the model answered to each question."""

    scores: Mapping[str, float]
    answers: Mapping[str, Sequence[Any]]

    @property
    def loglikelihoods(self) -> list[float]:
        return [float(score) for answers in self.answers["inns_choice"] for ((score, _),) in answers]


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--questions", type=int, default=4, help="of each document")
    parser.add_argument("--concurrent", type=int, default=4, help="requests at a time")
    arguments = parser.parse_args(argv)
    print(machine(), flush=True)
    environments.make(NAME, Path(__file__).parent)
    model = kvtool.load_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = _prepared(folder, model, arguments.documents, arguments.questions)
        plain = _scored(folder, "hf", pretrained=str(model.directory), dtype="float32")
        rows, problems = [_row("plain model", plain, plain, None)], list[str]()
        for title, options in (("server, documents cached", ()), ("server, --no-caches", ("--no-caches",))):
            with served("--store", str(store), "--variant", "raw", *options) as (_, url):
                scored = _scored(
                    folder,
                    "local-completions",
                    model=model.name,
                    base_url=f"{url}/completions",
                    tokenizer=str(model.directory),
                    tokenizer_backend="huggingface",
                    num_concurrent=str(arguments.concurrent),
                    max_length=str(model.context),
                )
                tokens = httpx.get(f"{url}/stats").json()["tokens"]
            rows.append(_row(title, scored, plain, tokens))
            if scored.scores != plain.scores or scored.answers["inns_answer"] != plain.answers["inns_answer"]:
                problems.append(f"{title}: other scores or answers than those of the plain model")
    print_table(
        ["", "choices right", "answers right", "equal", "largest log-likelihood difference", "cached tokens"],
        rows,
    )
    if problems:
        raise SystemExit("\n".join(problems))


def _row(title: str, scored: Scores, plain: Scores, tokens: Mapping[str, int] | None) -> list[object]:
    pairs = zip(scored.loglikelihoods, plain.loglikelihoods, strict=True)
    difference = max(abs(one - other) for one, other in pairs)
    same = scored.scores == plain.scores and scored.answers["inns_answer"] == plain.answers["inns_answer"]
    cached = f"{tokens['cached']:,} of {tokens['prompt']:,}" if tokens else "-"
    shares = [f"{scored.scores[task]:.3f}" for task in TASKS]
    return [title, *shares, "yes" if same else "NO", f"{difference:.1e}", cached]


def _prepared(folder: Path, model: kvtool.Model, documents: int, questions: int) -> Path:
    """A store of made-up documents, and beside it lm_eval's tasks about them."""
    chosen, items = random.Random(1), []
    for number in range(documents):
        text, facts = _document(chosen)
        (folder / f"{number:02}.txt").write_text(text)
        for inn, price in chosen.sample(facts, questions):
            others = chosen.sample([other for _, other in facts if other != price], 3)
            choices = sorted([price, *others])
            items.append(
                {
                    "document": text,
                    "question": f"How many crowns does a night at the {inn} cost?",
                    "choices": [str(choice) for choice in choices],
                    "label": choices.index(price),
                    "answer": str(price),
                }
            )
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, task in TASKS.items():
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + task)
    report = kvtool.prefill(sorted(folder.glob("*.txt")), model=model, store=kvtool.Store(folder / "store"))
    if report.problems:
        raise report.problems[0]
    return folder / "store"


def _document(chosen: random.Random) -> tuple[str, list[tuple[str, int]]]:
    """A text, and the inns in it with the price of a night at each."""
    names = [f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS]
    prices = chosen.sample(range(20, 99), INNS)
    facts = list(zip(chosen.sample(names, INNS), prices, strict=True))
    lines = [
        f"The {inn} has {chosen.randint(5, 60)} rooms. A night costs {price} crowns." for inn, price in facts
    ]
    return "Inns of the valley\n\n" + "\n".join(lines), facts


def _scored(folder: Path, backend: str, **arguments: str) -> Scores:
    """The scores of lm_eval's ``backend``. The chat template comes first, as it does in the store."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [str(environments.python(NAME)), "-m", "lm_eval", "run", "--model", backend]
        command += ["--model_args", *(f"{name}={value}" for name, value in arguments.items())]
        command += ["--tasks", *TASKS, "--include_path", str(folder / "tasks"), "--apply_chat_template"]
        command += ["--batch_size", "1", "--log_samples", "--output_path", out]
        # Its data sets are files here, and are not kept. Threads that spin while they wait slow down all others.
        settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{folder}/huggingface", "CUDA_VISIBLE_DEVICES": ""}
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **settings}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stderr[-5000:]}\nlm_eval failed with exit code {done.returncode}")
        (results,) = Path(out).rglob("results_*.json")
        scores = json.loads(results.read_text())["results"]
        samples = {task: next(Path(out).rglob(f"samples_{task}_*.jsonl")) for task in TASKS}
        answers = {
            task: [json.loads(line) for line in path.read_text().splitlines()]
            for task, path in samples.items()
        }
    return Scores(
        {
            "inns_choice": scores["inns_choice"]["acc,none"],
            "inns_answer": scores["inns_answer"]["exact_match,number"],
        },
        {
            task: [item["resps"] for item in sorted(items, key=lambda item: item["doc_id"])]
            for task, items in answers.items()
        },
    )
