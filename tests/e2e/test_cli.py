"""The command line as a user meets it: answers, refusals and exit codes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill import cli
from potstill.recipes import METHODS
from tests import tiny
from tests.e2e.conftest import SMALL, as_arguments

Run = Callable[..., tuple[int, str, str]]
TRAIN = ("train", "kd", *as_arguments(SMALL))


@pytest.fixture
def call(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potstill", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['potstill', '--help']\nfrom potstill.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch','transformers','pydantic_core','matplotlib'} & set(sys.modules), 'heavy import'"
    took = []
    for _ in range(3):  # in seconds of the processor, for a machine with other work
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    for command in ("train", "resume", "evaluate", "report", "recipes", "doctor", "plan"):
        assert command in done.stdout
    assert min(took) < 0.7


@pytest.mark.parametrize("command", ["train", "resume", "evaluate", "report", "doctor", "plan"])
def test_every_commands_help_has_an_example(call: Run, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"potstill {command}" in out.split("Example", 1)[1]


def test_a_run_and_all_that_can_be_asked_of_it(call: Run, workspace: Path) -> None:
    code, out, _ = call(*TRAIN, "run=first")
    assert code == 0
    assert "student after" in out
    assert "runs/first/report.html" in out

    code, out, _ = call("report", "first", "--format", "json")
    table = json.loads(out)
    assert code == 0
    assert set(table) >= {"teacher", "student_before", "student_after"}

    against_teacher = ("--data", "rows.jsonl", "--teacher", "teacher", "--format", "json")
    code, out, _ = call("evaluate", "first", *against_teacher, "--generate-examples", "2")
    figures = json.loads(out)
    assert code == 0
    assert figures["num_examples"] == 40
    assert figures["forward_kl_nats"] > 0
    assert "rouge_l" in figures

    code, out, _ = call("evaluate", "teacher", *against_teacher, "--generate-examples", "0")
    assert json.loads(out)["forward_kl_nats"] == 0

    code, out, _ = call("resume", "latest", "--format", "json")
    assert code == 0
    assert json.loads(out)["run"] == "first"


def test_recipes_are_listed_shown_copied_and_run(call: Run, workspace: Path) -> None:
    code, out, _ = call("recipes", "ls")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == METHODS.keys()
    code, out, _ = call("recipes", "show", "kd")
    assert "ce_weight=0.0" in out  # its parameters
    assert "arXiv:1503.02531" in out
    assert "learning_rate" in out
    assert call("recipes", "cp", "kd", "mine.yaml")[0] == 0
    code, _, err = call("recipes", "cp", "kd", "mine.yaml")
    assert (code, "exists already" in err) == (2, True)
    assert call("train", "mine.yaml", *as_arguments(SMALL))[0] == 0


def test_doctor_tells_before_anything_is_trained(call: Run, workspace: Path) -> None:
    code, out, _ = call("doctor")
    assert code == 0
    assert "torch" in out
    code, out, _ = call("doctor", "kd", *as_arguments(SMALL))
    assert code == 0
    assert "the same; 300 logits compared" in out
    assert "Write a story about a" in out
    tiny.save(tiny.llama(3), workspace / "other")
    other = tiny.tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<x>"]})
    other.save_pretrained(workspace / "other")
    code, out, _ = call("doctor", "kd", "teacher=teacher", "student=other", "data=rows.jsonl", "--format", "json")
    assert code == 2
    bad = [finding for finding in json.loads(out) if finding["status"] == "bad"]
    assert len(bad) == 1
    assert "tokenizer" in bad[0]["detail"]


DOCTORED = {
    "a rollout the model has no positions for": (["gkd", "rollout.max_new_tokens=250"], "256 positions"),
    "an empty plain text": (["distillm", "plain_text=empty.txt"], "empty.txt has no text in it"),
    "a plain text that is not there": (["minillm", "plain_text=gone.txt"], "set plain_text, or source.path"),
}


@pytest.mark.parametrize(("arguments", "what"), DOCTORED.values(), ids=DOCTORED.keys())
def test_doctor_refuses_what_train_would(call: Run, workspace: Path, arguments: list[str], what: str) -> None:
    (workspace / "empty.txt").write_text("\n\n")
    for command in ("doctor", "train"):
        code, out, err = call(command, *arguments, *as_arguments(SMALL))
        assert code == 2
        assert what in out + err
        assert command == "train" or "the student writes its own text" in out  # it was just cut


def test_a_run_that_was_refused_leaves_nothing_behind(call: Run, workspace: Path) -> None:
    assert call(*TRAIN, "run=good")[0] == 0
    assert call("train", "kd", *as_arguments(SMALL | {"data": "gone.jsonl"}))[0] == 2
    assert call(*TRAIN, "evaluation.max_new_tokens=250")[0] == 2
    assert sorted(path.name for path in (workspace / "runs").iterdir()) == ["good", "latest"]
    assert (workspace / "runs" / "latest").resolve().name == "good"
    _, _, err = call("resume", "nowhere")
    assert "runs here: good\n" in err


BROKEN_RECIPES = {
    "unknown key": ("method: kd\noptimizer:\n  learning_rte: 1e-4\n", "3:3", "Did you mean 'learning_rate'"),
    "not a number": ("method: kd\nbudget:\n  steps: ten\n", "3:10", "'ten'"),
    "out of range": ("method: kd\noptimizer:\n  learning_rate: -1\n", "3:18", "learning_rate"),
    "unknown choice": ("method: kd\noptimizer:\n  schedule: cosin\n", "3:13", "Did you mean 'cosine'"),
    "unknown method": ("method: kdd\nseed: 1\n", "1:9", "Did you mean 'kd'"),
    "two budgets": ("method: kd\nbudget:\n  steps: 3\n  epochs: 1\n", "2:", "exactly one of steps"),
    "duplicate key": ("method: kd\nseed: 1\nseed: 2\n", "3:1", "seed"),
    "tab": ("method: kd\nbudget:\n\tsteps: 3\n", "3:1", ""),
    "python tag": ("method: kd\nrun: !!python/object/apply:os.system [touch pwned]\n", "2:6", ""),
    "bad run name": ("method: kd\nrun: ../../elsewhere\n", "2:6", "run"),
    "no signal": (
        "stages:\n  - budget: {steps: 1}\n    teacher: teacher\n    streams:\n      - terms: [forward_kl]\n",
        "5:9",
        "signal",
    ),
    "missing terms": ("stages:\n  - budget: {steps: 1}\n    streams:\n      - signal: none\n", "4:", "terms"),
    "no method": ("seed: 1\n", "", "method"),
    "empty": ("", "", ""),
}


@pytest.mark.parametrize(("text", "where", "what"), BROKEN_RECIPES.values(), ids=BROKEN_RECIPES.keys())
def test_a_broken_recipe_is_refused_with_line_and_fix(
    call: Run, workspace: Path, text: str, where: str, what: str
) -> None:
    (workspace / "mine.yaml").write_text(text)
    code, out, err = call("train", "mine.yaml")
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "mine.yaml" in err
    assert f":{where}" in err
    assert what in err
    assert "Traceback" not in err
    assert not (workspace / "runs").exists()
    assert not (workspace / "pwned").exists()


GOOD = "".join(json.dumps(row) + "\n" for row in tiny.rows(10))
BROKEN_DATA: dict[str, tuple[str, bytes, str]] = {
    "not json": ("rows.jsonl", (GOOD + "{oops\n").encode(), "rows.jsonl:11"),
    "a list": ("rows.jsonl", (GOOD + "[1, 2]\n").encode(), "rows.jsonl:11"),
    "missing field": ("rows.jsonl", (GOOD + '{"prompt": "p"}\n').encode(), "response"),
    "wrong type": ("rows.jsonl", (GOOD + '{"prompt": 3, "response": "r"}\n').encode(), "prompt"),
    "empty response": ("rows.jsonl", (GOOD + '{"prompt": "p", "response": ""}\n').encode(), "response"),
    "nul": ("rows.jsonl", (GOOD + '{"prompt": "p\\u0000", "response": "r"}\n').encode(), "NUL"),
    "latin-1": ("rows.jsonl", GOOD.encode() + '{"prompt": "p", "response": "café"}\n'.encode("latin-1"), "UTF-8"),
    "lone surrogate": ("rows.jsonl", (GOOD + '{"prompt": "p", "response": "\\ud800"}\n').encode(), "surrogate"),
    "duplicate id": (
        "rows.jsonl",
        (GOOD + '{"prompt": "p", "response": "r", "id": "x"}\n' * 2).encode(),
        "duplicate id",
    ),
    "over-long": (
        "rows.jsonl",
        (GOOD + json.dumps({"prompt": "p", "response": "r" * 2_000_000}) + "\n").encode(),
        "rows.jsonl:11",
    ),
    "empty file": ("rows.jsonl", b"", "rows.jsonl"),
    "not parquet": ("rows.parquet", b"PAR1 not really", "rows.parquet"),
    "csv without the columns": ("rows.csv", b"a,b\n1,2\n3,4\n", "prompt"),
    "unknown kind": ("rows.txt", b"hello", "rows.txt"),
    "too few rows": ("rows.jsonl", GOOD.splitlines()[0].encode(), "too few"),
}


@pytest.mark.parametrize(("name", "content", "what"), BROKEN_DATA.values(), ids=BROKEN_DATA.keys())
def test_broken_data_is_refused_with_line_and_fix(
    call: Run, workspace: Path, name: str, content: bytes, what: str
) -> None:
    (workspace / name).unlink(missing_ok=True)
    (workspace / name).write_bytes(content)
    code, out, err = call(*TRAIN[:2], *as_arguments(SMALL | {"data": name, "run": "broken"}))
    assert code == 2
    assert out == ""
    assert what in err
    assert "fix: " in err
    assert "Traceback" not in err
    assert not (workspace / "runs" / "broken" / "checkpoints").exists()


def test_a_few_bad_rows_are_quarantined_and_counted(call: Run, workspace: Path) -> None:
    with open("rows.jsonl", "a") as file:
        file.write("{oops\n")
    code, _, _ = call(*TRAIN, "run=some-bad", "data.max_bad_rows=0.05")
    assert code == 0
    (line,) = Path("runs/some-bad/quarantine.jsonl").read_text().splitlines()
    assert "rows.jsonl:41" in json.loads(line)["where"]
    assert json.loads(Path("runs/some-bad/data.json").read_text())["quarantined"] == 1


MISTAKES = {
    "unknown command": (["trane", "kd"], "trane"),
    "no such run": (["resume", "nowhere"], "nowhere is not a run"),
    "no such report": (["report", "nowhere"], "nowhere is not a run"),
    "no such method": (["train", "kdd"], "Did you mean 'kd'"),
    "no equals sign": (["train", "kd", "budget.steps"], "budget.steps"),
    "unknown override": (["train", "kd", "budget.stops=3"], "budget.stops: unknown key. Did you mean 'steps'"),
    "no such teacher": (["train", "kd", "teacher=./absent"], "./absent: there is no such folder"),
    "not a model": (["train", "kd", "teacher=."], "no config.json"),
    "no such data": ([*TRAIN[:2], *as_arguments(SMALL | {"data": "rowz.jsonl"})], "rowz.jsonl"),
    "too many layers": ([*TRAIN, "student.keep_layers=9"], "student.keep_layers"),
    "no such device": ([*TRAIN[:2], *as_arguments(SMALL | {"device": "cuda"})], "no CUDA device"),
    "run called latest": ([*TRAIN, "run=latest"], "latest"),
    "an answer longer than the model sees": (
        [*TRAIN, "evaluation.max_new_tokens=250"],
        "an answer of 250 has 2",
    ),
    "the same of a model by itself": (
        ["evaluate", "teacher", "--data", "rows.jsonl", "--max-new-tokens", "250"],
        "the model has 256 positions, and the prompt of row",
    ),
    "no data": (["evaluate", "teacher"], "--data"),
}


def test_a_student_that_cannot_be_made_is_refused_before_anything_is_measured(call: Run) -> None:
    _, _, err = call(*TRAIN, "student.keep_layers=9")
    assert "measuring" not in err


@pytest.mark.parametrize(("arguments", "what"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_users_mistake_is_one_clear_message(call: Run, arguments: list[str], what: str) -> None:
    import torch

    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, _, err = call(*arguments)
    assert code == 2
    assert what in err
    assert "Traceback" not in err


def test_weights_that_can_run_code_are_not_read(call: Run, workspace: Path) -> None:
    import torch

    folder = tiny.save(tiny.llama(), workspace / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    code, _, err = call("train", "kd", "teacher=pickled", "student.keep_layers=2", "data=rows.jsonl")
    assert (code, "no .safetensors weights" in err) == (2, True)


def test_code_that_comes_with_a_model_is_not_run(call: Run, workspace: Path) -> None:
    folder = tiny.save(tiny.llama(), workspace / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("open('pwned', 'w').write('x')\n")
    code, _, err = call("train", "kd", "teacher=remote", "data=rows.jsonl")
    assert code == 2
    assert "--allow-remote-code" in err
    assert not (workspace / "pwned").exists()


def test_a_row_longer_than_the_model_sees_is_refused_by_its_name(call: Run, workspace: Path) -> None:
    row = {"prompt": "Write a story about a goat. " * 12, "response": "The goat ate the hat. " * 30}
    with open("rows.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    code, _, err = call(*TRAIN, "data.max_prompt_tokens=500", "data.max_response_tokens=500")
    assert code == 2
    assert "256 positions, and row rows.jsonl:41 has" in err
    assert "fix: lower data.max_prompt_tokens" in err
    assert "measuring" not in err


def test_models_are_asked_about_suites_and_answers_are_kept(call: Run, workspace: Path) -> None:
    code, out, _ = call("suites", "--format", "json")
    assert code == 0
    assert {"dolly", "minillm", "anli", "plain_text"} <= json.loads(out).keys()
    asked = ("evaluate", "teacher", "--suite", "plain_text", "--data", "text.txt", "--limit", "2")
    (workspace / "text.txt").write_text("The sky is blue.\nA goat ate the hat.\nOne more.\n")
    code, out, _ = call(*asked, "--format", "json")
    assert code == 0
    (told,) = json.loads(out)
    assert told["num_items"] == 2
    assert told["scores"]["perplexity"] > 1
    assert len((workspace / told["folder"] / "rows.jsonl").read_text().splitlines()) == 2
    code, out, _ = call(*asked)
    assert code == 0
    assert "| teacher |" in out
    assert sorted(path.name for path in (workspace / "evaluations").iterdir()) == [Path(told["folder"]).name]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--suite", "dollie"], "there is no suite 'dollie'"),
        (["--suite", "plain_text"], "add --data FILE"),
        (["--suite", "dolly", "--data", "rows.jsonl"], "has its own data set"),
        (["--suite", "gsm8k"], "download it from"),
        (["--suite", "plain_text", "--data", "rows.jsonl", "--teacher", "teacher"], "--teacher is not for suites"),
        (["--data", "rows.jsonl", "--limit", "3"], "--limit is for suites, and none is named"),
        (["--data", "rows.jsonl", "--seed", "3"], "--seed is for suites, and none is named"),
        (["--data", "rows.jsonl", "--device", "gpu"], "there is no device 'gpu'"),
    ],
)
def test_a_suite_that_cannot_be_asked_is_one_clear_message(
    call: Run, workspace: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], what: str
) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(workspace / "nothing-here"))
    code, _, err = call("evaluate", "teacher", *arguments)
    assert code == 2
    assert what in err
    assert "Traceback" not in err
    assert not (workspace / "evaluations").exists()


def test_data_can_be_looked_at_before_it_is_trained_on(
    call: Run, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call("data", "inspect", "rows.jsonl", "--model", "teacher", "--rows", "1", "--format", "json")
    assert code == 0
    (row,) = json.loads(out)
    assert [piece["scored"] for piece in row["pieces"]] == [False, True, True]
    code, out, _ = call("data", "inspect", "rows.jsonl", "--model", "teacher", "--rows", "2")
    assert (code, out.count("scored")) == (0, 2)
    assert call("data", "inspect", "gone.jsonl", "--model", "teacher")[0] == 2
    code, out, _ = call("data", "ls", "--format", "json")
    assert "r1_dev" in json.loads(out)["anli"]["splits"]
    folder = workspace / "sets" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text('{"question": "Two and two?", "answer": "2 + 2 = 4\\n#### 4"}\n')
    monkeypatch.setenv("POTSTILL_DATA", str(workspace / "sets"))
    code, out, _ = call("data", "card", "gsm8k", "test")
    assert code == 0
    assert "published with 1,319 rows, so this is not the whole split" in out
    assert call("data", "card", "gsm8k:test")[:2] == (0, out)
    for asked, said in (
        (["gsm9k", "test"], "Did you mean 'gsm8k'?"),
        (["gsm8k"], "no split of gsm8k is named\n  fix: name one, as gsm8k:train: it has train, test"),
        (["gsm8k:test", "train"], "two splits of gsm8k are named, test and train"),
    ):
        code, _, err = call("data", "card", *asked)
        assert code == 2
        assert said in err
    assert json.loads(call("data", "audit", "gsm8k:test", "rows.jsonl", "--format", "json")[1])["train_rows"] == 1


def test_settings_say_how_rows_are_read_before_they_are_looked_at(call: Run, workspace: Path) -> None:
    (workspace / "other.csv").write_text("question,answer\nWhy is it?,Because it is.\n")
    names = ("data.fields.prompt=question", "data.fields.response=answer")
    code, _, err = call("data", "audit", "other.csv", "other.csv")
    assert (code, "data.fields.prompt=question" in err) == (2, True)
    code, out, _ = call("data", "audit", "other.csv", "other.csv", *names, "--format", "json")
    assert (code, json.loads(out)["duplicate_rows"]) == (0, 1)
    code, out, _ = call("data", "inspect", "other.csv", *names, "--model", "teacher", "--format", "json")
    assert (code, len(json.loads(out))) == (0, 1)
    for setting in ("data.path=rows.jsonl", "data.heldout=rows.jsonl", "budget.steps=3", "rows.jsonl"):
        code, _, err = call("data", "audit", "other.csv", "other.csv", *names, setting)
        assert (code, "does not say how rows are read" in err) == (2, True)


def test_documents_become_a_corpus_that_opens(call: Run, workspace: Path) -> None:
    from potstill.data.indexed import IndexedTokens

    (workspace / "text.txt").write_text("The sky is blue.\nA goat ate the hat.\n" * 40)
    asked = ("data", "prepare", "text.txt", "--model", "teacher", "--block-size", "16", "--valid-blocks", "2")
    code, out, _ = call(*asked, "--out", "corpus", "--format", "json")
    assert code == 0
    made = json.loads(out)
    train, valid = (IndexedTokens(workspace / "corpus", split) for split in ("train", "valid"))
    assert (len(valid), len(train[0])) == (2, 16)
    assert tiny.tokenizer().decode(valid[0].tolist()).startswith("The sky is blue.<end>A goat")
    assert str(len(train)) in json.dumps(made)
    code, _, err = call(*asked, "--out", "corpus")
    assert code == 2
    assert "Traceback" not in err
