"""What is read out of a data set, what is refused and why, and what becomes a row of a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import END, sums, write_rows

from headrace.checkpoint.resolve import resolve
from headrace.finetuning.data.encode import IGNORED, EncodedRow, Encoder
from headrace.finetuning.data.formats import Chat, PlainText, PromptCompletion
from headrace.finetuning.data.layout import lay_out
from headrace.finetuning.data.prepare import BadRows, prepare_data
from headrace.finetuning.data.store import load_rows
from headrace.finetuning.data.summary import histogram
from headrace.finetuning.settings import FinetuneSettings
from headrace.link.errors import ConfigurationError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def prepare(model: Path, data: Path, **changes):
    settings = FinetuneSettings(data=str(data), **changes)
    return prepare_data(settings, resolve(str(model)), lambda line: None)


@pytest.fixture(scope="module")
def encoder(tiny_model):
    checkpoint = resolve(str(tiny_model))
    tokenizer = checkpoint.load_tokenizer()

    def make(train_on="completions"):
        return Encoder(tokenizer, checkpoint.load_chat_template(), tokenizer.eos_id, train_on)

    make.text = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    return make


def learnt(encoder, row):
    return encoder.text([label for label in row.labels if label != IGNORED])


def test_loss_is_on_assistant_turns_only(encoder):
    turns = (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))
    messages = tuple({"role": role, "content": text} for role, text in turns)
    chat = Chat(messages, (False, True, False, True))
    row = encoder().encode(chat)
    whole = "<turn>user:one</s><turn>assistant:two</s><turn>user:three</s><turn>assistant:four</s>"
    assert encoder.text(row.input_ids) == whole
    assert learnt(encoder, row) == "two</s>four</s>"
    assert all(
        label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True)
    )
    assert learnt(encoder, encoder("all").encode(chat)) == whole


def test_loss_is_on_completions_only_and_their_end(encoder):
    row = encoder().encode(PromptCompletion("2+2=", "4 é"))
    assert encoder.text(row.input_ids) == "2+2=4 é</s>"
    assert learnt(encoder, row) == "4 é</s>"
    assert row.input_ids[-1] == END


def test_plain_text_is_learnt_as_a_whole(encoder):
    row = encoder().encode(PlainText("hello"))
    assert learnt(encoder, row) == "hello</s>"
    assert row.trained_tokens == len("hello</s>") - 4 + 1 - 1


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ("not json", "", "is not JSON"),
        ([1], "", "must be a JSON object, is a list"),
        ({"text": "a"}, "messages", "is missing; the row has `text`"),
        ({"messages": "hello"}, "messages", "must be a list of messages, is 'hello'"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": [3]}, "messages[0]", "must be an object"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        (
            {"messages": [{"role": "bot", "content": "a"}]},
            "messages[0].role",
            "must be one of system, user, assistant, tool, is 'bot'",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "messages[0].content",
            "must be a text, is 3",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "messages",
            "has no message of the role 'assistant'",
        ),
        (
            {"messages": [GOOD["messages"][0], {"role": "assistant", "content": ""}]},
            "messages[1].content",
            "is empty",
        ),
        (
            {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "x" * 200}]},
            "",
            "has 220 tokens, the model allows 128",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_line_field_and_reason(
    tiny_model, tmp_path, row, field, reason
):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(GOOD), row if isinstance(row, str) else json.dumps(row), json.dumps(GOOD)]
    path.write_text("\n".join(lines))
    with pytest.raises(BadRows, match="1 of 3 rows cannot be used"):
        prepare(tiny_model, path)
    data = prepare(tiny_model, path, skip_bad_rows=True)
    (bad,) = data.bad
    assert (bad.file, bad.line, bad.field) == (str(path), 2, field)
    assert reason in bad.reason
    assert str(bad).startswith(f"{path}:2: ")
    assert len(data.train.rows) == 2
    assert "2 rows (messages), 1 skipped" in data.summaries[0].lines()[0]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([], {}, "is empty; expected at least one row"),
        (
            [{"instruction": "a", "output": "b"}],
            {},
            "expected the columns `messages`, or `prompt` and `completion`, or `text`; there are "
            "`instruction`, `output`",
        ),
        ([{"text": "a"}], {"format": "messages"}, "needs the column `messages`"),
        ([{"text": "a"}], {"columns": ("text=body",)}, "no column `body`; there are `text`"),
        ([{"text": "a"}], {"columns": ("label=text",)}, "WANTED one of"),
        ([{"text": "a", "prompt": "b", "completion": "c"}], {}, "--format says which"),
        ([{"text": "a" * 200}], {"skip_bad_rows": True}, "none of its 1 rows can be used"),
        ([{"text": "a"}], {"max_length": 129}, "must be at most 128"),
        ([{"text": "a"}], {"layout": "packed"}, "needs `--max-length`"),
        ([{"text": "a"}], {"layout": "fixed", "max_length": 64}, "do not fill one row"),
        ([{"text": "a"}], {"eval_fraction": 0.5}, "leaves none of the 1 rows"),
    ],
)
def test_data_that_cannot_be_used_is_refused(tiny_model, tmp_path, rows, changes, message):
    with pytest.raises(ConfigurationError) as refusal:
        prepare(tiny_model, write_rows(tmp_path / "data.jsonl", rows), **changes)
    assert message in str(refusal.value)


def test_columns_under_other_names(tiny_model, tmp_path):
    rows = [{"question": "a", "answer": "b"}]
    path = write_rows(tmp_path / "data.jsonl", rows)
    data = prepare(tiny_model, path, columns=("prompt=question", "completion=answer"))
    assert data.summaries[0].kind == "prompt-completion"


def test_every_source_gives_the_same_rows(tiny_model, tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = [{**GOOD, "id": number} for number in range(6)]
    lines = write_rows(tmp_path / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "train-0.jsonl", rows[:3])
    write_rows(folder / "train-1.jsonl", rows[3:])
    write_rows(folder / "validation.jsonl", rows[:2])
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])}).save_to_disk(
        tmp_path / "splits"
    )
    expected = prepare(tiny_model, lines)
    assert expected.evaluation is None
    for name in ("rows.parquet", "folder", "saved", "splits"):
        found = prepare(tiny_model, tmp_path / name)
        assert found.train == expected.train, name
        held_out = 0 if found.evaluation is None else len(found.evaluation.rows)
        assert held_out == (2 if name in ("folder", "splits") else 0)


def test_a_directory_names_what_it_does_not_read(tiny_model, tmp_path):
    for name in ("train", "validation", "test", "notes"):
        write_rows(tmp_path / f"{name}.jsonl", [GOOD] * (1 if name == "train" else 3))
    told = []
    settings = FinetuneSettings(data=str(tmp_path))
    data = prepare_data(settings, resolve(str(tiny_model)), told.append)
    assert [summary.rows for summary in data.summaries] == [1, 3]
    unread = [line.partition(":")[0] for line in told]
    assert unread == [str(tmp_path / "notes.jsonl"), str(tmp_path / "test.jsonl")]
    assert all("not read" in line for line in told)


def test_held_out_rows_are_drawn_by_the_seed(tiny_model, rows_file):
    def drawn(seed):
        data = prepare(tiny_model, rows_file, eval_fraction=0.25, seed=seed)
        assert (len(data.train.rows), len(data.evaluation.rows)) == (30, 10)
        texts = [tuple(row.input_ids) for row in data.evaluation.rows]
        assert not set(texts) & {tuple(row.input_ids) for row in data.train.rows}
        return texts

    assert drawn(1) == drawn(1) != drawn(2)


def encoded(*lengths):
    return [EncodedRow([index] * n, [index] * n) for index, n in enumerate(lengths)]


def test_packing_fills_rows_and_loses_nothing():
    packed = lay_out(encoded(3, 7, 5, 2, 3), "packed", 10).rows
    assert sorted(len(row.input_ids) for row in packed) == [10, 10]
    for row in packed:
        start = 0
        for length in row.lengths:
            part = row.input_ids[start : start + length]
            assert len(set(part)) == 1
            # No sequence is asked to predict the first token of the next.
            assert row.labels[start : start + length] == [IGNORED, *part[1:]]
            start += length
    assert sorted(token for row in packed for token in row.input_ids) == sorted(
        token for row in encoded(3, 7, 5, 2, 3) for token in row.input_ids
    )


def test_fixed_rows_say_what_they_leave_out():
    laid_out = lay_out(encoded(5, 5, 5), "fixed", 4)
    assert [row.input_ids for row in laid_out.rows] == [[0] * 4, [0, 1, 1, 1], [1, 1, 2, 2]]
    assert laid_out.left_over_tokens == 3
    silent = [EncodedRow([1] * 4, [IGNORED] * 4), EncodedRow([2] * 4, [2] * 4)]
    assert lay_out(silent, "fixed", 4).rows_without_labels == 1


def test_histogram_counts_every_row():
    lines = histogram([1, 5, 6, 7, 40])
    assert [int(line.split("tokens")[1].split()[0]) for line in lines] == [1, 0, 3, 0, 0, 1]


def test_histogram_of_like_lengths_has_bins_of_one_width():
    lengths = [40, 41, 46, 46, 50, 57, 58]
    lines = histogram(lengths)
    counts = [int(line.split("tokens")[1].split()[0]) for line in lines]
    assert counts == [2, 0, 0, 2, 0, 1, 0, 0, 1, 1]
    assert lines[0].split()[:3] == ["40", "–", "41"]
    assert sum(int(line.split("tokens")[1].split()[0]) for line in histogram([448] * 9)) == 9
    for shortest in (1, 3, 10, 99, 448, 8191):
        for longest in (shortest, shortest + 1, 7 * shortest, 9 * shortest, 50 * shortest):
            found = histogram([shortest, longest])
            assert sum(int(line.split("tokens")[1].split()[0]) for line in found) == 2
            assert len(found) <= 12


def test_rows_come_back_from_disk(tiny_model, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", sums(5))
    data = prepare(tiny_model, path, layout="packed", max_length=40)
    digest = data.write(tmp_path / "arrow")
    rows = load_rows(tmp_path / "arrow" / "train.arrow")
    assert [row["input_ids"] for row in rows] == [row.input_ids for row in data.train.rows]
    assert [row["lengths"] for row in rows] == [row.lengths for row in data.train.rows]
    assert data.write(tmp_path / "again") == digest
    other = prepare(tiny_model, write_rows(path, sums(6)), layout="packed", max_length=40)
    assert other.write(tmp_path / "other") != digest
