"""The tokenizer that a GGUF file describes: byte-level BPE or sentencepiece-style BPE.

The pre-tokenizers are those of the models' own tokenizer.json files, which llama.cpp names in
``tokenizer.ggml.pre``.
"""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from headrace.checkpoint.gguf import GGUFFile
from headrace.checkpoint.token_pieces import byte_alphabet
from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.errors import ConfigurationError

_CONTROL = 3
_USER_DEFINED = 4
_SPACE = "\u2581"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _PUNCTUATION_AND_SPACE))
_QWEN2 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _PUNCTUATION_AND_SPACE))
_TEKKEN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
_SPLITS = {
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "dbrx": _LLAMA3,
    "tekken": _TEKKEN,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
}
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "codeshell", "minerva-7b")
_PLAIN = ("default", "gpt-2", "mpt", "olmo", "jais")
# Words of the vocabulary are taken whole even where the merges do not lead to them.
_IGNORE_MERGES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")


def gguf_tokenizer(file: GGUFFile) -> Tokenizer:
    """Build the tokenizer.

    Raises:
        ConfigurationError: A vocabulary of another kind, an unknown pre-tokenizer, or vocabulary,
            merges and ids that do not fit together.
    """
    model = file.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ConfigurationError(
            f"{file.path}: tokenizer model {model!r} is not supported; gpt2 and llama are"
        )
    tokens = file.array("tokenizer.ggml.tokens")
    kinds = file.array("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not tokens or len(kinds) != len(tokens) or not all(isinstance(t, str) for t in tokens):
        raise ConfigurationError(f"{file.path}: tokenizer.ggml.tokens and token_type do not match")
    try:
        backend = (_byte_level if model == "gpt2" else _sentencepiece)(file, tokens, kinds)
    except ConfigurationError:
        raise
    except Exception as error:  # the library raises plain Exception for merges of unknown tokens
        raise ConfigurationError(f"{file.path}: unusable tokenizer ({error})") from None
    backend.add_special_tokens(_added(tokens, kinds, _CONTROL, special=True))
    backend.add_tokens(_added(tokens, kinds, _USER_DEFINED, special=False))
    bos, eos = _token_id(file, "bos", tokens), _token_id(file, "eos", tokens)
    _frame(file, backend, tokens, bos, eos, adds_bos_by_default=model == "llama")
    special = [bos, eos, _token_id(file, "padding", tokens)]
    return Tokenizer(
        backend, bos_id=bos, eos_id=eos, special_ids=[i for i in special if i is not None]
    )


def _byte_level(file: GGUFFile, tokens: list[str], kinds: list[int]) -> Backend:
    alphabet = byte_alphabet()
    spelling = {byte: character for character, byte in alphabet.items()}
    known = frozenset(alphabet).issuperset
    vocabulary = {
        token
        if kind in (_CONTROL, _USER_DEFINED) or known(token)
        else "".join(spelling[byte] for byte in token.encode()): index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    }
    pre = file.get("tokenizer.ggml.pre", "default")
    merges = _merges(file)
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pre in _IGNORE_MERGES))
    backend.decoder = decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif pre in _PLAIN:
        backend.pre_tokenizer = byte_level
    else:
        known_names = sorted((*_SPLITS, *_SINGLE_DIGITS, *_PLAIN))
        raise ConfigurationError(
            f"{file.path}: pre-tokenizer {pre!r} is not supported; {', '.join(known_names)} are"
        )
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _merges(file: GGUFFile) -> list[tuple[str, str]]:
    # One without a space stays a tuple of one, which the library refuses.
    return [tuple(merge.split(" ", 1)) for merge in file.array("tokenizer.ggml.merges")]


def _sentencepiece(file: GGUFFile, tokens: list[str], kinds: list[int]) -> Backend:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(file)
    if not merges:
        scores = file.array("tokenizer.ggml.scores")
        if len(scores) != len(tokens):
            raise ConfigurationError(f"{file.path}: tokenizer.ggml.scores do not match the tokens")
        merges = _merges_from_scores(vocabulary, scores)
    unknown = _token_id(file, "unknown", tokens)
    backend = Backend(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if prefixed else "never", split=False
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a sentencepiece BPE vocabulary implies: any two pieces that make a third.

    Sentencepiece joins the pair whose joint piece scores highest; rank is thus the score of the
    joint piece, and among the pairs that make the same piece longer left parts come first.
    """
    ranked = []
    for piece, index in vocabulary.items():
        score = scores[index]
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, -len(left), -len(right), left, right))
    ranked.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in ranked]


def _added(tokens: list[str], kinds: list[int], wanted: int, special: bool) -> list[AddedToken]:
    return [
        AddedToken(token, normalized=False, special=special)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == wanted and token
    ]


def _token_id(file: GGUFFile, name: str, tokens: list[str]) -> int | None:
    token_id = file.get(f"tokenizer.ggml.{name}_token_id")
    if token_id is None:
        return None
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise ConfigurationError(
            f"{file.path}: tokenizer.ggml.{name}_token_id {token_id!r} is not in the vocabulary"
        )
    return token_id


def _frame(
    file: GGUFFile,
    backend: Backend,
    tokens: list[str],
    bos: int | None,
    eos: int | None,
    adds_bos_by_default: bool,
) -> None:
    pieces = ["$A"]
    framing = []
    if bos is not None and file.get("tokenizer.ggml.add_bos_token", adds_bos_by_default):
        pieces.insert(0, tokens[bos])
        framing.append((tokens[bos], bos))
    if eos is not None and file.get("tokenizer.ggml.add_eos_token", False):
        pieces.append(tokens[eos])
        framing.append((tokens[eos], eos))
    if framing:
        backend.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=framing
        )
