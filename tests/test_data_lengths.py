"""Token lengths and positions from a base's own files."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ftkit.data.lengths import choose_max_length, max_positions, summary, token_lengths, too_long
from ftkit.errors import MachineError


@pytest.fixture
def base(tmp_path):
    """A base whose tokenizer cuts and fills to 4 tokens, as MiniLM's does to 128."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_lengths_are_uncut_unfilled_and_count_special_tokens(base):
    assert token_lengths(base, ["a", "a " * 10, ""]) == [3, 12, 2]
    assert token_lengths(base, ("a" for _ in range(3_000))) == [3] * 3_000


def test_without_a_fast_tokenizer_nothing_is_counted(tmp_path):
    assert token_lengths(tmp_path, ["a"]) is None


def test_a_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MachineError, match=r"tokenizer\.json cannot be read as a tokenizer: .* Fetch the base again\."):
        token_lengths(tmp_path, ["a"])


def test_summary():
    lengths = summary([*range(1, 201)])
    assert lengths.percentiles == {"50": 100, "90": 180, "95": 190, "99": 198, "99.5": 199}
    assert (lengths.rows, lengths.longest, lengths.mean) == (200, 200, 100.5)
    assert lengths.histogram[0] == (16, 16)
    assert sum(rows for _, rows in lengths.histogram) == 200
    assert summary([0]).histogram == ((8, 1),)


@pytest.mark.parametrize(
    ("config", "tokenizer", "positions"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, None, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, None, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, None, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, None, 512),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "relative_attention": True}, None, 512),
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, None, 1024),
        ({"model_type": "t5", "n_positions": 512}, None, None),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 256}, 256),
        ({"model_type": "llama", "max_position_embeddings": 2048}, {"model_max_length": 1e30}, 2048),
        ({"model_type": "x", "text_config": {"max_position_embeddings": 99}}, {"model_max_length": None}, 99),
        ({"model_type": "x", "max_position_embeddings": -1}, {}, None),
        (None, None, None),
    ],
)
def test_positions(tmp_path, config, tokenizer, positions):
    for name, value in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value))
    assert max_positions(tmp_path) == positions


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MachineError, match=r"config\.json (is no JSON|holds no JSON object).*Fetch the base again\."):
        max_positions(tmp_path)


@pytest.mark.parametrize(
    ("lengths", "positions", "value"),
    [([*range(1, 201)], 512, 200), ([10] * 995 + [99] * 5, None, 16), ([600] * 10, 512, 512), ([600] * 10, None, 600)],
)
def test_the_max_length_chosen(lengths, positions, value):
    decision = choose_max_length(lengths, positions)
    assert (decision.key, decision.value) == ("train.max_length", value)


def test_a_max_length_above_the_positions():
    assert too_long(512, 512) is None
    assert too_long(9_999, None) is None
    assert too_long(513, 512) == "got 513, but the base takes 512 tokens. Write 512 or less."
