"""The command line: one verb for each thing that can be done. Imports its work when a verb is called, not before."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ftkit import __version__

app = typer.Typer(
    name="ftkit",
    help="Fine-tune with adapters, measure against the base, merge only what is proved.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Recipe = Annotated[Path, typer.Argument(help="A recipe file (YAML).", show_default=False)]
Run = Annotated[str, typer.Argument(help="A run's folder, a recipe's name (its latest run), or name/run-id.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set train.epochs=5. Repeatable.")]
Engine = Literal["transformers", "vllm"]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to stdout.")]


# A full or protected disk is the machine's doing, wherever it shows.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def main() -> None:
    """The entry point: runs a verb, and turns a refusal into its message and exit code."""
    from ftkit.errors import FtkitError

    try:
        app()
    except FtkitError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone; Python would complain while flushing
        sys.exit(141)
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        sys.stderr.write(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}\n")
        sys.exit(4)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ftkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: ftkit run recipes/sentiment.yaml --set train.epochs=5")
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder. Default: runs/NAME/RUN-ID.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Short for --set train.seed=N.")] = None,
    json: Json = False,
) -> None:
    """Check, train, evaluate, gate, merge, prove, report."""
    from ftkit.cli.run import run_recipe

    seeds = [] if seed is None else [f"train.seed={seed}"]
    run_recipe(recipe, [*(overrides or []), *seeds], out, resume=resume, json=json)


@app.command(epilog="Example: ftkit check recipes/sentiment.yaml")
def check(recipe: Recipe, overrides: Overrides = None, json: Json = False) -> None:
    """Everything that can be known before a weight is loaded."""
    from ftkit.cli.check import check_recipe

    check_recipe(recipe, overrides or [], json=json)


@app.command(epilog="Example: ftkit init reviews.csv")
def init(
    data: Annotated[str, typer.Argument(help="The rows: a file or a folder.", show_default=False)],
    text: Annotated[str | None, typer.Option("--text", help="The column with the text.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="The column with the label.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The base model: a hub id or a folder.")] = None,
) -> None:
    """Write a recipe for a data file; asks for columns and base."""
    from ftkit.cli.init import write_recipe

    write_recipe(data, text, label, base)


@app.command(epilog="Example: ftkit predict sentiment --text 'Worth every cent.'")
def predict(
    run: Run,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text to label, go on with or answer. Repeatable.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--in", help="CSV, TSV, JSONL or Parquet with texts or prompts.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write: .jsonl or .csv. Default: stdout.")] = None,
    column: Annotated[str | None, typer.Option("--column", help="The column of --in with the text or prompt.")] = None,
    json: Json = False,
) -> None:
    """Label texts, go on with them, or answer them: --text, a file, or lines from stdin."""
    from ftkit.cli.predict import predict_texts

    predict_texts(run, text or [], file, out, column, json=json)


@app.command(epilog="Example: ftkit chat answers --system 'Answer in one sentence.'")
def chat(
    run: Run,
    system: Annotated[str | None, typer.Option("--system", help="What the system message says.")] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="0: always the likeliest token.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Default: as in the run's evaluation.")
    ] = None,
) -> None:
    """Talk with a model in the terminal."""
    from ftkit.cli.chat import chat_with

    chat_with(run, system, temperature, max_new_tokens)


@app.command(epilog="Example: ftkit serve answers --port 8000")
def serve(
    runs: Annotated[list[str], typer.Argument(help="Runs; each is a model, by its name.", metavar="RUN...")],
    host: Annotated[str, typer.Option("--host", help="Another than 127.0.0.1 needs FTKIT_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    engine: Annotated[Engine, typer.Option("--engine", help="vllm: its own server, where it is installed.")] = (
        "transformers"
    ),
) -> None:
    """Serve models over HTTP, as OpenAI's clients ask for them."""
    from ftkit.cli.serve import serve_by_vllm, serve_runs

    if engine == "vllm":
        serve_by_vllm(runs, host, port)
    serve_runs(runs, host, port)


@app.command(epilog="Example: ftkit merge some/adapter --base some/base --out merged")
def merge(
    sources: Annotated[list[str], typer.Argument(help="A run, or folders of PEFT adapters.", metavar="RUN|ADAPTER...")],
    base: Annotated[str | None, typer.Option("--base", help="The base of an adapter: a folder or a hub id.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write. Of a run: its merged/.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="How several are combined: docs/merging.md.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="One for each of several: 0.7,0.3")] = None,
    density: Annotated[float | None, typer.Option("--density", help="Of ties, dare, magnitude: share kept.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Of svd: the rank of the new adapter.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of dare: what is dropped.")] = 0,
    prove: Annotated[bool, typer.Option("--prove", help="Also compare logits in a fresh process.")] = False,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, or several, tensor by tensor, and prove the result."""
    from ftkit.cli.merge import merge_adapters

    merge_adapters(sources, base, out, method, weights, prove=prove, json=json, density=density, rank=rank, seed=seed)


@app.command(epilog="Example: ftkit export sentiment --to onnx:int8")
def export(
    source: Annotated[str, typer.Argument(help="A run, or a model's folder.", metavar="RUN|MODEL")],
    to: Annotated[str | None, typer.Option("--to", help="FORMAT[:TYPE]: safetensors, gguf, ollama, onnx, …")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write. Of a run: its export/.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the model card for the hub instead.")] = False,
    json: Json = False,
) -> None:
    """Write a merged model in another format, read it back, and measure it."""
    from ftkit.errors import Problem, RecipeError

    if card == (to is not None):
        raise RecipeError("nothing to export", [Problem("", "--to", "Give --to FORMAT, or --card.")])
    if card:
        from ftkit.cli.push import write_card

        write_card(source, out)
        return
    from ftkit.cli.export import export_model

    export_model(source, str(to), out, json=json)


@app.command(epilog="Example: ftkit push sentiment someone/sentiment")
def push(
    run: Run,
    repository: Annotated[str, typer.Argument(help="Where to on the hub: owner/name.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="For all to see. Left out: private.")] = False,
    json: Json = False,
) -> None:
    """Put a run's model and its card on the hub."""
    from ftkit.cli.push import push_run

    push_run(run, repository, public=public, json=json)


@app.command("eval", epilog="Example: ftkit eval sentiment --data more.csv")
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option("--data", help="Other rows: a file, a folder or a hub id.")] = None,
    json: Json = False,
) -> None:
    """Measure a run's model again: on its own test rows, or on other data."""
    from ftkit.cli.measured import evaluate_run_again

    evaluate_run_again(run, data, json=json)


@app.command(epilog="Example: ftkit compare mine/20261125-101500-3f2a mine/20261125-113000-91bc")
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more, measured on the same rows.", metavar="RUN...")],
    json: Json = False,
) -> None:
    """Runs side by side on the same rows, each tested against the first."""
    from ftkit.cli.measured import compare_runs

    compare_runs(runs, json=json)


@app.command(epilog="Example: ftkit schema > recipe.schema.json")
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="A page for people: every key, in tables.")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from ftkit.cli.lists import print_schema

    print_schema(markdown=markdown)


@app.command("ls", epilog="Example: ftkit ls --json")
def list_runs(json: Json = False) -> None:
    """List the runs under runs/."""
    from ftkit.cli.lists import print_runs

    print_runs(json=json)


@app.command(epilog="Example: ftkit show sentiment")
def show(run: Run, json: Json = False) -> None:
    """Show one run: scores, verdict, proof, files."""
    from ftkit.cli.lists import print_run

    print_run(run, json=json)


@app.command(epilog="Example: ftkit adapters")
def adapters(json: Json = False) -> None:
    """List the adapter presets that recipes can name."""
    from ftkit.cli.lists import print_presets

    print_presets(json=json)


@app.command(epilog="Example: ftkit doctor")
def doctor(json: Json = False) -> None:
    """What this machine can do, and the fix for what it cannot."""
    from ftkit.cli.doctor import examine

    examine(json=json)
