"""Tokenization against Transformers on the same files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from headrace.checkpoint.gguf import GGUFFile
from headrace.checkpoint.gguf_tokenizer import gguf_tokenizer
from headrace.checkpoint.hf_checkpoint import HuggingFaceCheckpoint
from headrace.checkpoint.token_pieces import byte_alphabet
from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.errors import ConfigurationError, InvalidRequest

TEXTS = [
    "",
    " ",
    "The capital of France is Paris.",
    "it's we'll THEY'RE I'd you've",
    "  leading and trailing  ",
    "tabs\tand\r\nline\n\n\nends\n",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    "naïve café Ünïcödé ﬁ ligature",
    "日本語のテキスト 한국어 ไทย العربية עברית हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji 👍🏽",
    "3.14159 2024-01-31 1,000,000 x=42;",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b <|endoftext|> <|im_start|><|im_start|>",
    "\u0000\u0001\ufeff\u200b\u00a0",
    "supercalifragilisticexpialidocious" * 3,
    "https://example.org/a?b=c&d=%20#e",
    "\\begin{equation} \\sum_{i=0}^n x_i^2 \\end{equation}",
]
# Where SmolLM's own pre-tokenizer, which splits single digits, differs from the byte-level pattern
# that Transformers takes for every GGUF file it has no other pattern for.
DIGIT_TEXTS = ["a\n\n1. one", "x  12", "٣٤٥ １２３ ²³ Ⅻ", "v1.2.3 n°5"]


@pytest.fixture(scope="module")
def transformers_builtin(builtin):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(builtin.path.parent, gguf_file=builtin.path.name)


@pytest.fixture(scope="module")
def smollm_oracle(transformers_builtin) -> Backend:
    """Transformers' tokenizer with the pre-tokenizer of the model's own tokenizer.json."""
    backend = Backend.from_str(transformers_builtin.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


@pytest.mark.parametrize("text", TEXTS)
def test_builtin_equals_transformers(builtin_tokenizer, transformers_builtin, text):
    ids = builtin_tokenizer.encode(text)
    assert ids == transformers_builtin.encode(text)
    for skip in (True, False):
        expected = transformers_builtin.decode(ids, skip_special_tokens=skip)
        assert builtin_tokenizer.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("text", TEXTS + DIGIT_TEXTS)
def test_builtin_equals_the_models_own_tokenizer(builtin_tokenizer, smollm_oracle, text):
    assert builtin_tokenizer.encode(text) == smollm_oracle.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives(builtin_tokenizer, smollm_oracle, text):
    ids = builtin_tokenizer.encode(text)
    assert ids == smollm_oracle.encode(text).ids
    # The vocabulary lacks the bytes of unassigned planes; such characters are lost by all.
    decoded = builtin_tokenizer.decode(ids, skip_special_tokens=False)
    assert decoded == smollm_oracle.decode(ids, skip_special_tokens=False)


def test_special_ids_are_those_of_transformers(builtin_tokenizer, transformers_builtin):
    backend = transformers_builtin.backend_tokenizer
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    assert builtin_tokenizer.special_ids == special
    assert builtin_tokenizer.is_special(2)
    assert not builtin_tokenizer.is_special(100)
    assert (builtin_tokenizer.bos_id, builtin_tokenizer.eos_id) == (1, 2)
    assert builtin_tokenizer.vocab_size == 49152


def test_building_the_builtin_tokenizer_is_quick(builtin):
    start = time.process_time()
    gguf_tokenizer(GGUFFile(builtin.path))
    # 0.2 s alone; the bound leaves room for a busy machine.
    assert time.process_time() - start < 0.6


def test_offsets_cover_the_text(builtin_tokenizer):
    text = "Grüße  an 日本 😀!"
    spans = builtin_tokenizer.encode_with_offsets(text)
    assert [span.id for span in spans] == builtin_tokenizer.encode(text)
    assert all(span.text == text[span.start : span.stop] for span in spans)
    covered = {index for span in spans for index in range(span.start, span.stop)}
    assert covered == set(range(len(text)))


def test_token_text(builtin_tokenizer):
    (hello, world) = builtin_tokenizer.encode("Hello world")
    assert builtin_tokenizer.token_text(hello) == "Hello"
    assert builtin_tokenizer.token_text(world) == " world"
    assert builtin_tokenizer.token_text(2) == "<|im_end|>"
    assert builtin_tokenizer.token_text(10**6) == ""


def test_surrogates_are_refused(builtin_tokenizer):
    with pytest.raises(InvalidRequest, match="surrogates"):
        builtin_tokenizer.encode("\ud800")


def test_byte_alphabet_is_the_byte_level_one():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert byte_alphabet()["Ġ"] == ord(" ")


# Small vocabularies trained here, written as GGUF and read by Transformers.

CORPUS = [
    "the quick brown fox jumps over the lazy dog 0123456789 " * 3,
    "it's they're THE END, isn't it?  don't 12345 67 8\n\n  x = y + 1;\n\treturn x\r\n",
    "übergrößen naïve café 日本語 日本 한국어 😀 😀😀",
]


def _train_byte_level() -> Backend:
    backend = Backend(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _gguf_keys(backend: Backend, pre: str, **more) -> dict:
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    tokens = [token for token, _ in vocabulary]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **more,
    }


def _from_transformers(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "default", "tekken"])
def test_byte_level_files_equal_transformers(write_gguf, build_tokenizer, pre):
    keys = _gguf_keys(_train_byte_level(), pre)
    path = write_gguf({**keys, "tokenizer.ggml.add_bos_token": True})
    ours, theirs = build_tokenizer(path), _from_transformers(path)
    for text in [*CORPUS, *TEXTS[:9], "a<|end|>b"]:
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == expected
        assert ours.encode(text) == [0, *expected]
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


def test_qwen2_composes_characters(write_gguf, build_tokenizer):
    tokenizer = build_tokenizer(write_gguf(_gguf_keys(_train_byte_level(), "qwen2")))
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")


def test_a_text_with_bos_gets_no_second(write_gguf, build_tokenizer):
    keys = _gguf_keys(_train_byte_level(), "llama-bpe")
    tokenizer = build_tokenizer(write_gguf({**keys, "tokenizer.ggml.add_bos_token": True}))
    assert tokenizer.encode("<|begin|>the").count(0) == 1
    assert tokenizer.encode("<|begin|>the") == tokenizer.encode("the")
    spans = tokenizer.encode_with_offsets("<|begin|>the")
    assert [span.id for span in spans] == tokenizer.encode("the")
    assert tokenizer.encode("the", add_special_tokens=False) == tokenizer.encode("the")[1:]


def _sentencepiece_keys() -> dict:
    """A sentencepiece-like vocabulary: scores fall with the rank of the merge."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>", *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=specials, show_progress=False)
    backend.train_from_iterator([text.replace("日本語", "") for text in CORPUS], trainer)
    tokens = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="module")
def sentencepiece(write_gguf) -> Path:
    return write_gguf(_sentencepiece_keys())


def test_sentencepiece_files_equal_transformers(sentencepiece, build_tokenizer):
    ours, theirs = build_tokenizer(sentencepiece), _from_transformers(sentencepiece)
    for text in [*CORPUS, *TEXTS[1:], "a</s>b", "ж"]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.encode(text)[0] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported; gpt2 and llama"),
        ({"tokenizer.ggml.pre": "martian"}, "pre-tokenizer 'martian'"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "do not match"),
        ({"tokenizer.ggml.merges": ["un known"]}, "unusable tokenizer"),
        ({"tokenizer.ggml.bos_token_id": 70000}, "70000 is not in the vocabulary"),
    ],
)
def test_unusable_vocabularies(write_gguf, build_tokenizer, change, reason):
    path = write_gguf(_gguf_keys(_train_byte_level(), "default") | change)
    with pytest.raises(ConfigurationError, match=reason):
        build_tokenizer(path)


# Directories with tokenizer.json.


@pytest.fixture
def directory(tmp_path) -> Path:
    backend = _train_byte_level()
    backend.decoder = decoders.ByteLevel()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}})
    )
    return tmp_path


def test_tokenizer_json(directory):
    tokenizer: Tokenizer = HuggingFaceCheckpoint("m", directory).load_tokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    ids = tokenizer.encode(CORPUS[1])
    assert len(ids) > 16  # neither truncated nor padded
    assert tokenizer.decode(ids) == CORPUS[1]


def test_broken_and_missing_tokenizer_json(directory):
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json: unusable"):
        HuggingFaceCheckpoint("m", directory).load_tokenizer()
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json: missing"):
        HuggingFaceCheckpoint("m", directory).load_tokenizer()
