"""Whether vLLM loads the adapters of runs, as they were trained and beside each other. Its source, 0.33.0, says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftkit.errors import Problem, RecipeError
from ftkit.export.adapter import AdapterFiles, read_adapter
from ftkit.files import sha256_file
from ftkit.merging import stored_dtype
from ftkit.rundir import RunDir
from ftkit.trained import Trained, base_address

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
_READ = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")  # ends of tensors' names
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # init_lora_weights that leave the base as it is


def max_rank(trained: Sequence[Trained]) -> int:
    """The --max-lora-rank that holds the adapters of the runs, each on its base.

    Raises RecipeError for an adapter that vLLM would not load, or not as it was trained, DataError for a base that is
    not the one that it was trained on.
    """
    ranks = [_rank(each, alone=len(trained) == 1) for each in trained]
    return next(rank for rank in _RANKS if rank >= max(ranks))


def check_together(trained: Mapping[str, Trained]) -> None:
    """Raises RecipeError for adapters, by name, of several bases or templates: a server of vLLM's has one of each."""
    (first, one), *others = trained.items()
    for name, other in others:
        what = None
        if base_address(other.plan["base"]) != base_address(one.plan["base"]):
            what = "bases"
        elif _template_of(other) != _template_of(one):
            what = "chat templates or tokenizers"
        if what:
            fix = f"A server of vLLM's has one. Start one for each: {_own_server(other.run)}"
            raise RecipeError(f"{first} and {name} have different {what}", [Problem("", "--engine", fix)])


def _template_of(trained: Trained) -> tuple[str | None, str]:
    template = trained.plan["data"].get("template") or {}
    return template.get("sha256"), sha256_file(trained.folder / "tokenizer.json")


def _own_server(run: RunDir) -> str:
    return f"ftkit serve {run.folder} --engine vllm --port PORT"


def _rank(trained: Trained, *, alone: bool) -> int:
    run = trained.run
    if not run.adapter.is_dir():
        fix = f"It is a model of its own. Start a server for it: {_own_server(run)}"
        raise RecipeError(f"{run.folder} has no adapter", [Problem("", "--engine", fix)])
    adapter = read_adapter(run.adapter)
    ranks = (adapter.config.get("r") or 0, *(adapter.config.get("rank_pattern") or {}).values())
    rank = max(map(int, ranks))
    why = _unloadable(adapter, rank)
    if why is None and trained.adapter is not None and trained.adapter.quantize is not None:
        why = "was trained on a base in 4 bits, and vLLM does not load one"
    if why is None and "float32" in str(stored_dtype(trained.base())):
        why = "belongs to a base in float32, and vLLM computes adapters in 16 bits"
    if why is None:
        return rank
    fix = f"Merge it first: ftkit merge {run.folder}"
    if run.merged.is_dir():
        fix = f"Serve its merged model alone: {_own_server(run)}"
    elif not alone:
        fix = f"Merge it (ftkit merge {run.folder}) and serve it alone: {_own_server(run)}"
    raise RecipeError(f"vLLM cannot load {run.adapter}", [Problem("", "--engine", f"It {why}. {fix}")])


def _unloadable(adapter: AdapterFiles, rank: int) -> str | None:
    """What vLLM's own check of an adapter refuses, and what it would find out as it reads the tensors."""
    config = adapter.config
    if adapter.type != "lora":
        return f"is of type {adapter.type}, and vLLM loads LoRA only"
    if config.get("use_dora"):
        return "is DoRA, which vLLM does not compute"
    if config.get("modules_to_save"):
        return f"holds whole modules ({', '.join(config['modules_to_save'])}), which vLLM does not load"
    if config.get("trainable_token_indices"):
        return "holds the embeddings of new tokens, which vLLM does not load"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return "holds biases, which vLLM does not load"
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower() not in _PLAIN_STARTS:
        return f"was started with {begun}, which changed the base"
    if rank > _RANKS[-1]:
        return f"has rank {rank}, and vLLM takes {_RANKS[-1]} at most"
    unread = [name for name in adapter.tensors if not name.endswith(_READ)]
    return f"holds {unread[0]}, which vLLM does not read" if unread else None
