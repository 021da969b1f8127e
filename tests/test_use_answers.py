"""What was taught to answer is used, measured again, compared and begun anew: through the command line's own entry."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from ftkit.data.conversations import to_prompts
from ftkit.data.rows import Place, RawRow
from ftkit.data.section import Columns
from ftkit.errors import DataError
from tests.conftest import sentences, write_csv
from tests.conversations import asked, carried_out, lines, read, write_recipe, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")
EVAL = "{metrics: [exact_match, chrf, perplexity, bits_per_byte, ended]}"
TRAIN = "{epochs: 1, batch_size: 8, learning_rate: 1e-2, seed: 7}"
SYSTEM = "Be short."


def ftkit(*words: str, folder: Path, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line in ``folder``."""
    from ftkit.cli import main

    before, standard = Path.cwd(), (sys.argv, sys.stdin)
    out, errors, code = io.StringIO(), io.StringIO(), 0
    os.chdir(folder)
    sys.argv, sys.stdin = ["ftkit", *words], io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os.chdir(before)
        sys.argv, sys.stdin = standard
    return code, out.getvalue(), errors.getvalue()


def talks(rows: list[dict]) -> list[dict]:
    """The rows, shortened, as conversations; every other one begins with a turn and an answer before."""
    before = [{"role": "user", "content": "cow"}, {"role": "assistant", "content": "moo"}]
    return [
        {
            "messages": [
                *(before if number % 2 else []),
                {"role": "user", "content": re.sub(" in the .*?[.]", ".", row["prompt"])},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def place(decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs on the same rows: "merged", and "bare", an adapter with tokens of its own."""
    folder = tmp_path_factory.mktemp("place")
    for name, count, seed in (("train", 48, 1), ("valid", 8, 2), ("test", 12, 3)):
        write_rows(folder / f"{name}.jsonl", talks(asked(count, seed)))
    task = f"{{type: sft, system: {SYSTEM}}}"
    with contextlib.chdir(folder):
        train = TRAIN.replace("epochs: 1", "epochs: 4")
        for base, name, merge in (("ftkit/tiny-lm", "merged", "true"), (decoder("gpt2"), "bare", "false")):
            path = write_recipe(folder, base, task=task, train=train, eval=EVAL, merge=merge)
            carried_out(path, folder / name)
    return folder


@pytest.mark.parametrize("run", ["merged", "bare"])
def test_predict_answers_as_the_evaluation_did(place, tmp_path, run):
    """Whole conversations, and these without their last answer, give the answers that predictions.jsonl has."""
    reported = [(row["input"], row["prediction"], row["ended"]) for row in lines(place / run, "predictions.jsonl")]
    assert len({row[1] for row in reported}) > (run == "merged")
    without = [{"messages": row["messages"][:-1]} for row in lines(place, "test.jsonl")]
    write_rows(tmp_path / "asked.jsonl", without)
    for source in ("test.jsonl", str(tmp_path / "asked.jsonl")):
        out = tmp_path / "out.jsonl"
        code, _, errors = ftkit("predict", run, "--in", source, "--out", str(out), folder=place)
        assert code == 0, errors
        assert [tuple(row.values()) for row in lines(tmp_path, "out.jsonl")] == reported


def test_a_text_is_what_the_user_says(place, tmp_path):
    """--text, stdin and a column of a file are answered alike, behind the recipe's system turn."""
    rows = [row for row in lines(place / "merged", "predictions.jsonl") if not row["input"].startswith("user:")]
    texts, answers = [row["input"] for row in rows], [row["prediction"] for row in rows]
    words = [word for text in texts for word in ("--text", text)]
    code, printed, _ = ftkit("predict", "merged", *words, "--json", folder=place)
    assert code == 0
    assert [json.loads(line)["prediction"] for line in printed.splitlines()] == answers
    piped = ftkit("predict", "merged", "--json", folder=place, stdin="\n\n".join(texts) + "\n")
    assert piped[1] == printed
    with (tmp_path / "in.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("said", "label"), *((text, "1") for text in texts)])
    source, out = str(tmp_path / "in.csv"), tmp_path / "out.csv"
    code, _, errors = ftkit("predict", "merged", "--in", source, "--column", "said", "--out", str(out), folder=place)
    assert (code, errors) == (0, "")
    with out.open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["input"], row["prediction"]) for row in written] == list(zip(texts, answers, strict=True))
    assert {row["ended"] for row in written} <= {"true", "false"}


def test_prompts_that_cannot_be_answered_are_refused_with_their_place(place, tmp_path):
    long = "A cat meets a dog. " * 200
    code, _, errors = ftkit("predict", "merged", "--text", "What?", "--text", long, folder=place)
    tokens, limit = errors.split("   ")[-1].split(" ")[0], read(place / "merged", "plan.json")["data"]["lengths"]
    assert (code, errors) == (
        3,
        "error: a prompt is too long\n"
        f"  --text 2   {tokens} tokens, and the model holds {limit['positions']} with the answer. Shorten it.\n",
    )
    assert ftkit("predict", "merged", folder=place, stdin="fine\n<|im_end|>\n")[2] == (
        "error: a prompt cannot be answered\n"
        "  standard input line 2   turn 2 (user) holds <|im_end|>, which the model reads as a mark. Remove it.\n"
    )
    bad = [{"messages": [{"role": "user", "content": "What?"}]}, {"messages": [{"role": "user", "content": " "}]}]
    source, out = str(write_rows(tmp_path / "bad.jsonl", bad)), tmp_path / "half.jsonl"
    assert ftkit("predict", "merged", "--in", source, "--out", str(out), folder=place)[::2] == (
        3,
        f"error: {source} has 1 problem\n"
        "  line 2   messages   there is nothing to answer. Write a prompt, or remove the row.\n",
    )
    assert list(tmp_path.glob("*half*")) == []
    code, _, errors = ftkit("predict", "merged", "--in", source, "--column", "message", folder=place)
    assert code == 3
    assert errors == (
        f"error: {source} has 1 problem\n"
        "  data.columns.prompt   no column is named message. Did you mean messages? Columns here: messages.\n"
    )


def test_few_prompts_are_read_ahead_of_an_answer(place):
    """Memory does not grow with the input."""
    from ftkit.answer import load_answerer
    from ftkit.models.hardware import settle_machine
    from ftkit.records import Prompt, Turn
    from ftkit.rundir import RunDir
    from ftkit.trained import trained_by

    read_ahead = 0

    def endless():
        nonlocal read_ahead
        while True:
            read_ahead += 1
            yield Prompt("", "What?", (Turn("user", f"What says {read_ahead}?"),))

    answers = load_answerer(trained_by(RunDir(place / "bare")), settle_machine()).predict(endless())
    for answered in range(1, 150):
        next(answers)
        assert read_ahead < answered + 64


def test_texts_are_said_to_be_whole_prompts_where_the_recipe_has_a_template(place, tmp_path):
    """A template is put around rows of a file, and not around a text: that is said, on stderr."""
    shutil.copytree(place / "merged", tmp_path / "run")
    plan = read(tmp_path / "run", "plan.json")
    plan["recipe"]["task"]["prompt"] = "What does a {animal} say?"
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    code, printed, errors = ftkit("predict", "run", "--text", "What does a cow say?", "--json", folder=tmp_path)
    assert code == 0
    assert errors == (
        "Each text is all that the user says: task.prompt ('What does a {animal} say?') is not put around it.\n"
    )
    write_rows(tmp_path / "animals.jsonl", [{"animal": "cow"}])
    filled = ftkit("predict", "run", "--in", "animals.jsonl", "--json", folder=tmp_path)
    assert filled == (0, printed, "")


@pytest.mark.parametrize(("run", "model"), [("merged", "merged"), ("bare", "adapter")])
def test_a_run_measured_again_gives_its_own_figures(place, run, model):
    """On its own rows, read again, and on the same rows given as other data: base and trained model."""
    stored = read(place / run, "eval.json")
    for words in ((), ("--data", "test.jsonl")):
        code, printed, errors = ftkit("eval", run, *words, "--json", folder=place)
        assert code == 0, errors
        again = json.loads(printed)
        assert (again["data_sha256"], again["n"]) == (stored["data_sha256"], stored["n"])
        assert again["split"] == (words[1] if words else "test")
        for name in ("baseline", model):
            assert again["models"][name]["metrics"] == pytest.approx(stored["models"][name]["metrics"], rel=1e-4)
        assert list(again["comparison"]) == [f"{model}_vs_baseline"]
        assert again.get("answers_changed") == (None if words else 0)
        # The merged weights are rounded to the base's format; what is reported of a row is the adapter's.
        most = 0.1 if model == "merged" else 1e-4
        assert again["largest_difference"] is None if words else again["largest_difference"] < most


def test_eval_says_how_far_it_is_and_when_its_rows_are_gone(place, tmp_path):
    code, printed, _ = ftkit("eval", "bare", folder=place)
    assert code == 0
    assert printed.splitlines()[-1] == "Answers that differ: 0 of 12."
    shutil.copytree(place, tmp_path / "moved")
    moved = tmp_path / "moved"
    plan = read(moved / "bare", "plan.json")
    assert plan["command"] == f"ftkit run {place / 'recipe.yaml'}"
    plan["command"] = "ftkit run recipe.yaml"
    (moved / "bare" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    write_rows(moved / "test.jsonl", talks(asked(12, 4)))
    fix = "Name rows to measure on: --data FILE. The run's own figures: ftkit show.\n"
    assert ftkit("eval", "bare", folder=moved)[::2] == (
        2,
        f"error: nothing to measure on\n  --data   The run's own rows have changed since. {fix}",
    )
    (moved / "test.jsonl").unlink()
    why = "The run's own rows cannot be read again: test.jsonl has 1 problem."
    assert ftkit("eval", "bare", folder=moved)[::2] == (2, f"error: nothing to measure on\n  --data   {why} {fix}")


def test_runs_are_compared_on_the_same_rows_alone(place, tmp_path):
    """Where tokenizers cut the answers differently, perplexity is not compared; runs of other rows are refused."""
    code, printed, errors = ftkit("compare", "merged", "bare", "--json", folder=place)
    assert code == 0, errors
    found = json.loads(printed)
    first, other = f"{place.name}/merged", f"{place.name}/bare"
    for name, run in ((first, "merged"), (other, "bare")):
        stored = read(place / run, "eval.json")["models"]["adapter"]
        assert found["models"][name]["metrics"] == pytest.approx(stored["metrics"])
        assert found["models"][name]["ci95"].keys() == stored["ci95"].keys()
    (pairs,) = found["comparison"].values()
    cut = [[row["tokens"] for row in lines(place / run, "predictions.jsonl")] for run in ("merged", "bare")]
    compared = {"exact_match", "chrf", "bits_per_byte", "ended"} | ({"perplexity"} if cut[0] == cut[1] else set())
    assert {item["metric"] for item in pairs} == compared
    chrf = next(item for item in pairs if item["metric"] == "chrf")
    scores = [found["models"][name]["metrics"]["chrf"] for name in (other, first)]
    assert chrf["difference"] == pytest.approx(scores[0] - scores[1])
    shutil.copytree(place / "bare", tmp_path / "cut")
    rows = (tmp_path / "cut" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "cut" / "predictions.jsonl").write_text("\n".join(rows[1:]) + "\n", encoding="utf-8")
    name = f"{tmp_path.name}/cut"
    assert ftkit("compare", "merged", str(tmp_path / "cut"), folder=place)[::2] == (
        3,
        "error: the runs cannot be compared\n"
        f"  {name}   {name} was measured on other rows or prompts than {first}. Measure both on one file: "
        "ftkit eval RUN.\n",
    )


INIT = {
    "messages": (talks(asked(40, 1)), ""),
    "pairs": (asked(40, 1), ""),
    "two answers": (
        [{"question": row["prompt"], "output": row["completion"], "answer": "?"} for row in asked(40, 1)],
        "  columns: {completion: output}\n",
    ),
    "dolly": (
        [
            {"instruction": row["prompt"], "context": "", "response": row["completion"], "category": "x"}
            for row in asked(40, 1)
        ],
        "",
    ),
}


@pytest.mark.parametrize("form", INIT)
def test_init_on_answers_writes_a_recipe_that_holds(tmp_path, decoder, form):
    rows, columns = INIT[form]
    write_rows(tmp_path / "my rows.jsonl", rows)
    done = ftkit("init", "my rows.jsonl", "--base", str(decoder("long")), folder=tmp_path)
    assert done[:2] == (0, "my-rows.yaml is written. Next: ftkit check my-rows.yaml\n")
    written = (tmp_path / "my-rows.yaml").read_text(encoding="utf-8")
    assert "task: {type: sft}\n" in written
    assert "".join(line for line in written.splitlines(keepends=True) if "columns" in line) == columns
    code, _, errors = ftkit("check", "my-rows.yaml", folder=tmp_path)
    assert code == 0, errors


def test_init_takes_labels_where_both_are_there(tmp_path):
    rows = [
        {"question": row["prompt"], "answer": row["completion"], "label": row["completion"]} for row in asked(40, 1)
    ]
    write_rows(tmp_path / "both.jsonl", rows)
    assert ftkit("init", "both.jsonl", folder=tmp_path)[0] == 0
    assert "task: {type: classify" in (tmp_path / "both.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def worded(decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose labels are words, not merged."""
    folder = tmp_path_factory.mktemp("worded")
    for name, count, seed in (("train", 48, 1), ("valid", 8, 2), ("test", 20, 3)):
        write_csv(folder / f"{name}.csv", sentences(count, seed))
    keys = {
        "task": "{type: classify, labels: [bad, good], words: {prompt: 'Review: {text}', say: {bad: no, good: fine}}}",
        "data": "{train: train.csv, valid: valid.csv, test: test.csv}",
        "train": TRAIN,
        "merge": "false",
    }
    path = write_recipe(folder, decoder("gpt2"), **keys)
    carried_out(path, folder / "run")
    return folder


def test_label_words_are_checked_as_answers_are(worded):
    """The terminal shows what is learned; --json holds what the run's own plan.json says of it."""
    code, printed, errors = ftkit("check", "recipe.yaml", folder=worded)
    assert code == 0, errors
    assert "▸no<|im_end|>◂" in printed
    assert "  answers:  'no' for bad, 'fine' for good\n" in printed
    assert "  answers that end with a stop token: 48 of 48\n" in printed
    assert "task.words.template = chatml" in errors
    found = json.loads(ftkit("check", "recipe.yaml", "--json", folder=worded)[1])
    planned = read(worded / "run", "plan.json")
    for part in ("mask", "template", "words"):
        assert found["data"][part] == planned["data"][part]
    assert found["decisions"] == planned["decisions"]


def test_label_words_are_measured_again_with_what_is_no_label(worded):
    stored = read(worded / "run", "eval.json")
    code, printed, errors = ftkit("eval", "run", "--json", folder=worded)
    assert code == 0, errors
    again = json.loads(printed)
    assert "out_of_label" in again["models"]["adapter"]["metrics"]
    assert again["models"]["adapter"]["metrics"] == pytest.approx(stored["models"]["adapter"]["metrics"], abs=1e-4)
    assert again["largest_difference"] < 1e-4
    code, printed, _ = ftkit("predict", "run", "--in", "test.csv", "--json", folder=worded)
    reported = lines(worded / "run", "predictions.jsonl")
    assert [json.loads(line)["prediction"] for line in printed.splitlines()] == [row["prediction"] for row in reported]


@pytest.mark.parametrize(
    ("adapter", "begun"),
    [
        ("{type: lora, r: 8, alpha: 8, quantize: nf4}", ("default", "loftq")),
        ("{type: lora, r: 8, dora: true, quantize: nf4}", ("default",)),
    ],
)
def test_an_adapter_on_4_bits_is_used_on_the_4_bits_that_it_was_measured_on(adapter, begun, tmp_path, pico):
    """In full precision the base is another, which nothing was measured on, and may not fit where it was trained."""
    from ftkit.models.hardware import settle_machine
    from ftkit.predict import load_predictor
    from ftkit.rundir import RunDir

    for name, count, seed in (("train", 48, 1), ("test", 20, 3)):
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed))
    path = write_recipe(
        tmp_path,
        pico("bert"),
        task="{type: classify, labels: [bad, good]}",
        data="{train: train.csv, valid: 0%, test: test.csv}",
        adapter=adapter,
        train="{epochs: 1, batch_size: 8, learning_rate: 5e-3, precision: float32, seed: 7}",
        merge="false",
    )
    folder = carried_out(path, tmp_path / "run")
    reported = lines(folder, "predictions.jsonl")
    plan = read(folder, "plan.json")
    for init in begun:  # LoftQ needs a GPU to begin; QLoRA's adapter stands in for its own
        plan["recipe"]["adapter"]["init"] = init
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        predictor = load_predictor(RunDir(folder), settle_machine())
        assert predictor.model.get_base_model().is_loaded_in_4bit
        for answer, row in zip(predictor.predict(row["input"] for row in reported), reported, strict=True):
            assert answer["scores"]["good"] == pytest.approx(row["scores"]["good"], abs=1e-6)


def test_answers_on_4_bits_are_those_that_were_measured(decoder, tmp_path):
    """Predicted, and measured again with the base beside it; both as eval.json has them."""
    path = write_recipe(
        tmp_path,
        decoder("llama"),
        adapter="{type: lora, r: 8, alpha: 16, quantize: nf4}",
        eval="{metrics: [perplexity, exact_match], max_new_tokens: 24}",
        merge="false",
    )
    folder = carried_out(path, tmp_path / "run")
    stored = read(folder, "eval.json")["models"]
    code, printed, errors = ftkit("eval", "run", "--json", folder=tmp_path)
    assert code == 0, errors
    again = json.loads(printed)
    for name in ("baseline", "adapter"):
        assert again["models"][name]["metrics"] == pytest.approx(stored[name]["metrics"], rel=1e-4)
    assert again["largest_difference"] < 1e-3
    assert again["answers_changed"] == 0
    code, printed, _ = ftkit("predict", "run", "--in", "test.jsonl", "--json", folder=tmp_path)
    said = [json.loads(line)["prediction"] for line in printed.splitlines()]
    assert said == [row["prediction"] for row in lines(folder, "predictions.jsonl")]


def prompts(rows: list[dict], *, prompt: str | None = None, system: str | None = None, **columns: str):
    raw = [RawRow(Place("rows.jsonl", "line", number), values) for number, values in enumerate(rows, 1)]
    return list(to_prompts(raw, "rows.jsonl", Columns(**columns), prompt=prompt, system=system))


USER, TOOL = {"role": "user", "content": "u"}, {"role": "tool", "content": "t"}
CALL = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "settings", "turns"),
    [
        ({"prompt": "u"}, {}, ["user u"]),
        ({"prompt": "u", "answer": 5}, {}, ["user u"]),
        ({"prompt": "u", "answer": "a", "output": "b"}, {}, ["user u"]),
        ({"prompt": "u", "answer": "a"}, {"completion": "answer"}, ["user u"]),
        ({"prompt": "u"}, {"completion": "answer"}, ["user u"]),
        ({"prompt": "u"}, {"system": "s"}, ["system s", "user u"]),
        ({"prompt": "u", "system": "own"}, {"system": "s"}, ["system own", "user u"]),
        ({"question": "u", "context": "c"}, {}, ["user c\n\nu"]),
        ({"prompt": "u", "history": [["q", "a"]]}, {}, ["user q", "assistant a", "user u"]),
        ({"a": "1", "b": 2}, {"prompt": "{a} and {b}"}, ["user 1 and 2"]),
        ({"messages": [USER, CALL]}, {}, ["user u"]),
        ({"messages": [USER, CALL, TOOL]}, {}, ["user u", "assistant a", "tool t"]),
        ({"prompt": [USER], "completion": [CALL, TOOL, CALL]}, {}, ["user u", "assistant a", "tool t"]),
    ],
)
def test_what_is_to_be_answered_in_a_row(row, settings, turns):
    """All that stands before the last answer, whether or not that is there."""
    (found,) = prompts([row], **settings)
    assert [f"{turn.role} {turn.content}" for turn in found.turns] == turns
    assert found.where == "rows.jsonl line 1"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "  line 1   prompt   there is nothing to answer. Write a prompt, or remove the row."),
        ({"messages": None}, "  line 1   messages   there is nothing to answer. Write a prompt, or remove the row."),
        (
            {"messages": [{"role": "system", "content": "s"}]},
            "  line 1   messages   the last turn is the system's. End with the user's turn, or remove the row.",
        ),
        (
            {"messages": [USER, {"role": "system", "content": "s"}]},
            "  line 1   messages   turn 2 is a system turn, which only the first can be. Move it to the start.",
        ),
        (
            {"text": "u"},
            "  no column is named prompt, question, instruction or query. Columns here: text. Name one with --column.",
        ),
    ],
)
def test_rows_that_ask_nothing_are_refused(row, message):
    with pytest.raises(DataError) as caught:
        prompts([row])
    assert str(caught.value) == f"error: rows.jsonl has 1 problem\n{message}"
