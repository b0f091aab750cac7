"""The incremental detokenizer against the full decode and a naive search for stop strings."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from headrace.checkpoint.stop_strings import StopMatcher
from headrace.checkpoint.text_stream import TextStream
from headrace.checkpoint.token_pieces import byte_alphabet
from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.errors import ConfigurationError, InvalidRequest

MIXED = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"), st.sampled_from("ab \n😀👩‍👧é日本<|im_end|>STOP")
    ),
    max_size=60,
)


def _chunks(data, ids):
    """Cut ids into random parts."""
    position = 0
    while position < len(ids):
        size = data.draw(st.integers(1, 4))
        yield ids[position : position + size]
        position += size


def _run(stream: TextStream, chunks) -> tuple[str, list[str]]:
    text, pieces = "", []
    for chunk in chunks:
        delta = stream.push(chunk)
        text += delta.text
        pieces += delta.pieces
    return text + stream.finish().text, pieces


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=MIXED)
def test_deltas_join_to_the_full_decode(builtin_tokenizer, data, text):
    ids = builtin_tokenizer.encode(text)
    for skip in (True, False):
        stream = TextStream(builtin_tokenizer, skip_special_tokens=skip)
        joined, pieces = _run(stream, _chunks(data, ids))
        assert joined == stream.text == builtin_tokenizer.decode(ids, skip_special_tokens=skip)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == builtin_tokenizer.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30))
def test_random_tokens_never_show_half_a_character(builtin_tokenizer, ids):
    """Random ids are full of partial characters: what was emitted is never taken back."""
    full = builtin_tokenizer.decode(ids)
    stream = TextStream(builtin_tokenizer)
    text = ""
    for token_id in ids:
        text += stream.push([token_id]).text
        assert full.startswith(text)
    assert text + stream.finish().text == full


def test_a_character_in_parts_comes_whole(builtin_tokenizer):
    ids = builtin_tokenizer.encode("x👩y")
    stream = TextStream(builtin_tokenizer)
    deltas = [stream.push([token_id]) for token_id in ids]
    assert len(ids) > 3
    assert [delta.text for delta in deltas if delta.text] == ["x", "👩", "y"]
    assert [delta.pieces[0] for delta in deltas] == [delta.text for delta in deltas]


def test_half_a_character_at_the_end(builtin_tokenizer):
    ids = builtin_tokenizer.encode("a👩")[:-1]
    stream = TextStream(builtin_tokenizer)
    assert "".join(stream.push([i]).text for i in ids) == "a"
    assert stream.finish().text == "\ufffd"
    assert stream.text == builtin_tokenizer.decode(ids)


def _naive_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read character by character until some stop string is complete; the longest wins."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    text=st.text("aab \n😀é", max_size=40),
    stops=st.lists(st.text("aab \n😀é", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_stops_equal_a_naive_search(builtin_tokenizer, data, text, stops):
    stream = TextStream(builtin_tokenizer, stops)
    joined, _ = _run(stream, _chunks(data, builtin_tokenizer.encode(text)))
    expected, stop = _naive_stop(text, stops)
    assert (joined, stream.stop) == (expected, stop)
    assert stream.text == expected
    assert stream.text_with_stop == expected + (stop or "")


def test_what_may_become_a_stop_string_is_held_back(builtin_tokenizer):
    stream = TextStream(builtin_tokenizer, ["\n\nUser:"])
    texts = [stream.push([i]).text for i in builtin_tokenizer.encode("Hi\n\nUse")]
    assert "".join(texts) == "Hi"
    (letter,) = builtin_tokenizer.encode("d")
    delta = stream.push([letter])
    assert delta.text == "\n\nUsed"
    assert delta.pieces == ["d"]


def test_the_completing_token_is_told_and_later_ones_are_unused(builtin_tokenizer):
    ids = builtin_tokenizer.encode("one two three four")
    stream = TextStream(builtin_tokenizer, ["two"])
    delta = stream.push(ids)
    assert (delta.text, delta.stop, delta.used) == ("one ", "two", 2)
    assert delta.pieces == ["one", " two"]
    assert stream.push(ids).used == 0
    assert stream.finish().text == ""
    assert (stream.text, stream.text_with_stop) == ("one ", "one two")


def test_a_special_token_may_be_a_stop_string(builtin_tokenizer):
    stream = TextStream(builtin_tokenizer, ["<|im_start|>", "xyz"])
    delta = stream.push(builtin_tokenizer.encode("done x<|im_start|>more"))
    assert (delta.text, delta.stop) == ("done x", "<|im_start|>")
    assert delta.pieces[-1] == "<|im_start|>"
    assert stream.text_with_stop == "done x"


def test_special_tokens_are_skipped_in_the_text_only(builtin_tokenizer):
    stream = TextStream(builtin_tokenizer)
    delta = stream.push([*builtin_tokenizer.encode("a"), 2])
    assert (delta.text, delta.pieces) == ("a", ["a", "<|im_end|>"])


def test_an_empty_stop_string_is_refused(builtin_tokenizer):
    with pytest.raises(InvalidRequest, match="non-empty"):
        TextStream(builtin_tokenizer, [""])


def test_matcher_state_is_the_longest_possible_beginning():
    matcher = StopMatcher(["abac", "bab"])
    assert matcher.feed("xaba") is None
    assert matcher.held == 3
    assert matcher.feed("b") == ("bab", 1)


def test_cost_does_not_grow_with_the_text(builtin_tokenizer):
    ids = builtin_tokenizer.encode("The quick brown fox, 12 jumps. Übergrößen 😀\n" * 400)
    stream = TextStream(builtin_tokenizer, ["\n\nUser:", "###"])
    cost = []
    for part in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
        best = []
        for start in range(0, len(part) - 500, 500):
            begin = time.process_time()
            for token_id in part[start : start + 500]:
                stream.push((token_id,))
            best.append(time.process_time() - begin)
        cost.append(min(best) / 500)
    assert cost[1] < 3 * cost[0]
    assert min(cost) < 20e-6  # about 1.5 microseconds alone; the bound is for a busy machine


# A sentencepiece-like vocabulary.


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    words = ["\u2581the", "\u2581", "cat", "\u2581cat", "é", "\u2581\u2581"]
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>"])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return Tokenizer(backend, bos_id=1)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    parts=st.lists(st.sampled_from(["W0", "W1", "W2", "W3", "W4", "W5", "😀", "é", "S"])),
)
def test_byte_fallback_joins_to_the_full_decode(sentencepiece, data, parts):
    ids = []
    for part in parts:
        if part[0] == "W":
            ids.append(258 + int(part[1]))
        elif part == "S":
            ids.append(1)
        else:
            ids += [2 + byte for byte in part.encode()]
    at_start = TextStream(sentencepiece, continues=False)
    assert _run(at_start, _chunks(data, ids))[0] == sentencepiece.decode(ids)
    prompt = [260]
    after_prompt = TextStream(sentencepiece, continues=True)
    expected = sentencepiece.decode(prompt + ids).removeprefix("cat")
    assert _run(after_prompt, _chunks(data, ids))[0] == expected


def test_bytes_cut_short_by_a_word(sentencepiece):
    ids = [2 + 0xF0, 2 + 0x9F, 260]
    stream = TextStream(sentencepiece)
    assert [stream.push([i]).text for i in ids] == ["", "", "\ufffd\ufffdcat"]
    assert sentencepiece.decode(ids) == stream.text


def test_words_without_a_decoder_are_joined_as_they_are():
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    stream = TextStream(Tokenizer(backend))
    assert stream.push([0, 1]).text == "ab"


def test_a_foreign_decoder_is_refused():
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ConfigurationError, match="WordPiece"):
        Tokenizer(backend)


def test_byte_level_tokens_outside_the_alphabet_stand_for_themselves():
    vocabulary = {character: index for index, character in enumerate(byte_alphabet())}
    backend = Backend(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["<two words>"])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("<two words>")
    assert ids == [256]
    assert TextStream(tokenizer).push(ids).text == tokenizer.decode(ids) == "<two words>"
