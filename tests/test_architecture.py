"""The order of the layers, what is imported when, and that every recipe key is read by what does the work."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import ftkit

PACKAGE = Path(ftkit.__file__).parent
# From the ground up. A module imports from lines above its own, or from its own package.
LAYERS = (
    ("errors", "files", "console", "section", "interruption", "stopwatch"),
    ("reference", "records", "provenance"),
    ("data",),
    ("models",),
    ("export",),
    ("evals",),
    ("tasks",),
    ("recipe",),
    ("plan",),
    ("rundir",),
    ("report", "train_watch", "train_arguments", "train_loss", "checkpoints", "merging", "proof"),
    ("train", "merge_language"),
    ("card", "hub_card", "classify", "pretrain", "sft"),
    ("trained",),
    ("predict", "generate", "answer"),
    ("serve",),
    ("measured_texts", "measured_answers"),
    ("measured",),
    ("ladder",),
    ("combined", "pipeline", "starter"),
    ("remerge",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = frozenset(
    "torch transformers trl peft datasets evaluate accelerate bitsandbytes numpy sklearn scipy pandas pyarrow matplotlib sacrebleu rouge_score gguf onnx onnxruntime uvicorn starlette openai huggingface_hub".split()
)
MODULES = sorted(PACKAGE.rglob("*.py"))
FROM_SCRATCH = """\
name: pico
base: {init: llama, layers: 1, hidden: 64, vocab: 512, positions: 64}
task: {type: pretrain}
data: {train: {docstrings: [json]}, valid: 20%, test: 20%}
train: {epochs: 0.5, batch_size: 4}
"""
ANSWERS = """\
name: answers
base: ftkit/tiny-lm
task: {type: sft, max_untrained: 50%}
data: {train: answers.jsonl, valid: 20%, test: 20%}
adapter: {type: lora, r: 4}
train: {epochs: 1, batch_size: 8}
eval: {metrics: [exact_match, perplexity], max_new_tokens: 4}
merge: false
"""


def part(module: str) -> str:
    """The layer's name of a module: ftkit.data.rows belongs to data, ftkit itself (the version) to nothing."""
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [alias.name for alias in node.names]
            yield from [f"ftkit.{name}" for name in names] if node.module == "ftkit" else [str(node.module)]


def outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The import statements that run when the module is imported."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_from_below_only(path):
    place = path.relative_to(PACKAGE).parts
    own = place[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no layer: add it to LAYERS"
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        other = part(module)
        if module.split(".")[0] == "ftkit" and other in RANK and other != own:
            assert RANK[other] < RANK[own], f"{own} imports {module}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_heavy_libraries_are_imported_inside_functions(path):
    if path.parent.name == "metrics":  # loaded by path, never imported
        return
    for statement in outside_functions(ast.parse(path.read_text(encoding="utf-8"))):
        heavy = {module.split(".")[0] for module in imported(ast.Module([statement], []))} & HEAVY
        assert not heavy, f"line {statement.lineno} imports {', '.join(heavy)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["run", "--help"], ["ls"], ["adapters"], ["schema"], ["schema", "--markdown"]),
        *(["check", "recipe.yaml"], ["check", "scratch.yaml"]),
    ],
    ids=" ".join,
)
def test_what_answers_at_once_imports_nothing_heavy(words, recipe):
    recipe().with_name("scratch.yaml").write_text(FROM_SCRATCH, encoding="utf-8")
    assert heavy_imports(words) <= {"numpy", "pyarrow"}


def test_a_check_of_conversations_loads_a_tokenizer_and_no_trainer(recipe):
    """AutoTokenizer, which alone is sure to make the tokenizer of the run, imports torch and accelerate."""
    path = recipe().with_name("answers.yaml")
    path.write_text(ANSWERS, encoding="utf-8")
    write_answers(path.with_name("answers.jsonl"))
    found = heavy_imports(["check", "answers.yaml"])
    assert found <= {"numpy", "pyarrow", "transformers", "torch", "accelerate", "huggingface_hub"}


def heavy_imports(words: list[str]) -> set[str]:
    """The heavy libraries that a command has imported when it ends well."""
    code = (
        "import sys; from ftkit.cli import main; sys.argv = ['ftkit', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY.intersection(done.stdout.splitlines()[-1].split())


def write_answers(path: Path) -> None:
    """Conversations; a few have an answer that is not to be learned."""
    lines = []
    for number in range(40):
        asked = {"role": "user", "content": f"What comes after {number}?"}
        answer = {"role": "assistant", "content": f"{number + 1}.", "weight": int(number % 8 > 0)}
        lines.append(json.dumps({"messages": [asked, answer]}))
    path.write_text("\n".join(lines), encoding="utf-8")


def test_importing_ftkit_changes_no_environment():
    code = "import os; before = dict(os.environ); import ftkit.cli, ftkit.pipeline; assert dict(os.environ) == before"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def reads_for_the_work(frame: FrameType) -> bool:
    """Whether a key is read to do something with it: not to check the recipe, to show a source, or to list defaults."""
    code = frame.f_code
    if PACKAGE not in Path(code.co_filename).parents or code.co_name in ("_left_out", "__str__"):
        return False
    above: FrameType | None = frame
    while above is not None:
        if above.f_code.co_filename == str(PACKAGE / "recipe" / "load.py"):
            return False
        above = above.f_back
    return True


def test_every_recipe_key_is_read_by_what_does_the_work(recipe, tmp_path, monkeypatch):
    """Reads are recorded in whole runs of each task and objective."""
    import warnings

    from ftkit.console import Console
    from ftkit.pipeline import Request, run
    from ftkit.recipe.schema import Recipe
    from ftkit.section import Section

    read: set[tuple[type, str]] = set()

    def recording(self: Section, name: str) -> object:
        if name in type(self).model_fields and reads_for_the_work(sys._getframe(1)):
            read.add((type(self), name))
        return object.__getattribute__(self, name)

    short = {"gate": "{f1: {min: 0.0, max: 1.0}}", "train": "{epochs: 0.2}"}
    masked = FROM_SCRATCH.replace("init: llama", "init: bert").replace("pretrain", "pretrain, objective: masked")
    adapters = ("{type: lora, r: 4}", "{type: ia3}")
    texts = [recipe(adapter=adapter, **short).read_text(encoding="utf-8") for adapter in adapters]
    words = ANSWERS.replace("{type: sft, max_untrained: 50%}", "{type: classify, words: {}}")
    words = words.replace("train: answers.jsonl, valid: 20%", "train: test.csv, valid: 10%")
    words = words.replace("exact_match, perplexity], max_new_tokens: 4", "out_of_label]")
    texts += [FROM_SCRATCH, masked, ANSWERS, words]
    write_answers(tmp_path / "answers.jsonl")
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))  # what is found there needs no key to be read
    monkeypatch.setattr(Section, "__getattribute__", recording, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, text in enumerate(texts):
            path = tmp_path / f"recipe{number}.yaml"
            path.write_text(text, encoding="utf-8")
            run(Request(path, out=tmp_path / f"run{number}"), Console(quiet=True, results=False))
    sections = [kind for kind in Section.__subclasses__() if kind.__module__.startswith("ftkit.")]
    assert Recipe in sections
    unread = {
        f"{kind.__name__}.{name}"
        for kind in sections
        for name in kind.model_fields
        if (kind, name) not in read and name != "type"
    }
    assert unread == set()
