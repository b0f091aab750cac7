"""What a row means: a chat, a prompt with its completion, or plain text; checked field by field."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.finetuning.data.rows import RowError, shortened
from headrace.link.errors import ConfigurationError

ROLES = ("system", "user", "assistant", "tool")
_EXPECTED = "`messages`, or `prompt` and `completion`, or `text`"
_COLUMNS = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the chat template.

    Attributes:
        trained: Whether each message is learnt from where the loss is on completions only.
    """

    messages: tuple[Mapping[str, Any], ...]
    trained: tuple[bool, ...]
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """Text to go on from, and how it goes on."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text to learn as a whole."""

    text: str


Example = Chat | PromptCompletion | PlainText


class RowFormat:
    """Reads examples of one kind out of rows.

    Args:
        kind: ``messages``, ``prompt-completion`` or ``text``.
        renamed: Wanted column to the column that holds it.
    """

    def __init__(self, kind: str, renamed: Mapping[str, str]) -> None:
        self.kind = kind
        self._renamed = renamed

    def read(self, values: Mapping[str, Any]) -> Example:
        """The example in a row.

        Raises:
            RowError: a column is missing or holds something else than it must.
        """
        if self.kind == "messages":
            return self._chat(values)
        if self.kind == "text":
            return PlainText(self._text(values, "text"))
        return self._prompt_completion(values)

    def _column(self, name: str) -> str:
        return self._renamed.get(name, name)

    def _value(self, values: Mapping[str, Any], name: str) -> Any:
        column = self._column(name)
        if column not in values:
            found = ", ".join(f"`{key}`" for key in values) or "none"
            raise RowError(column, f"is missing; the row has {found}")
        return values[column]

    def _text(self, values: Mapping[str, Any], name: str) -> str:
        return _checked_text(self._value(values, name), self._column(name))

    def _chat(self, values: Mapping[str, Any]) -> Chat:
        messages = _checked_messages(self._value(values, "messages"), self._column("messages"))
        trained = tuple(message["role"] == "assistant" for message in messages)
        if not any(trained):
            raise RowError(self._column("messages"), "has no message of the role 'assistant'")
        return Chat(messages, trained, _checked_tools(values))

    def _prompt_completion(self, values: Mapping[str, Any]) -> Example:
        prompt, completion = self._value(values, "prompt"), self._value(values, "completion")
        if isinstance(prompt, str) or isinstance(completion, str):
            return PromptCompletion(
                _checked_text(prompt, self._column("prompt"), may_be_empty=True),
                _checked_text(completion, self._column("completion")),
            )
        asked = _checked_messages(prompt, self._column("prompt"))
        answered = _checked_messages(completion, self._column("completion"))
        for index, message in enumerate(answered):
            if message["role"] != "assistant":
                raise RowError(
                    f"{self._column('completion')}[{index}].role",
                    f"must be 'assistant', is {message['role']!r}",
                )
        trained = (False,) * len(asked) + (True,) * len(answered)
        return Chat(asked + answered, trained, _checked_tools(values))


def choose_format(
    asked: str, columns: Collection[str], renamings: Sequence[str], source: str
) -> RowFormat:
    """The format of a data set, from its first row's columns where it was not asked for.

    Args:
        asked: ``auto`` or a kind.
        columns: Of the first row.
        renamings: ``wanted=present`` each.
        source: The data set, for messages.

    Raises:
        ConfigurationError: wrong column names: says which there are and which were expected.
    """
    renamed = _read_renamings(renamings, columns, source)
    present = {*columns, *renamed}
    if asked != "auto":
        missing = [name for name in _COLUMNS[asked] if name not in present]
        if missing:
            raise ConfigurationError(
                f"{source}: the format {asked} needs the column `{missing[0]}`; "
                f"{_listed(columns)}; --columns {missing[0]}=NAME names another"
            )
        return RowFormat(asked, renamed)
    kinds = [kind for kind, needed in _COLUMNS.items() if present.issuperset(needed)]
    if not kinds:
        raise ConfigurationError(
            f"{source}: expected the columns {_EXPECTED}; {_listed(columns)}; "
            "--columns prompt=NAME,completion=NAME names others"
        )
    if len(kinds) > 1:
        raise ConfigurationError(
            f"{source}: the columns allow the formats {' and '.join(kinds)}; --format says which"
        )
    return RowFormat(kinds[0], renamed)


def _listed(columns: Collection[str]) -> str:
    return f"there are {', '.join(f'`{name}`' for name in columns) or 'none'}"


def _read_renamings(
    renamings: Sequence[str], columns: Collection[str], source: str
) -> dict[str, str]:
    known = {name for names in _COLUMNS.values() for name in names}
    renamed = {}
    for renaming in renamings:
        wanted, _, present = renaming.partition("=")
        if wanted not in known or not present:
            raise ConfigurationError(
                f"`--columns` must be WANTED=PRESENT with WANTED one of "
                f"{', '.join(sorted(known))}, got {renaming!r}"
            )
        if present not in columns:
            raise ConfigurationError(f"{source}: no column `{present}`; {_listed(columns)}")
        renamed[wanted] = present
    return renamed


def _checked_text(value: object, field: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(field, f"must be a text, is {shortened(value)}")
    if not value and not may_be_empty:
        raise RowError(field, "is empty")
    return value


def _checked_messages(value: object, field: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(field, f"must be a list of messages, is {shortened(value)}")
    if not value:
        raise RowError(field, "is empty")
    for index, message in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(message, Mapping):
            raise RowError(
                place, f"must be an object with `role` and `content`, is {shortened(message)}"
            )
        for key in ("role", "content"):
            if key not in message and not (key == "content" and message.get("tool_calls")):
                raise RowError(f"{place}.{key}", "is missing")
        if message["role"] not in ROLES:
            raise RowError(
                f"{place}.role",
                f"must be one of {', '.join(ROLES)}, is {shortened(message['role'])}",
            )
        _check_content(message, place)
    # Columns of Arrow tables hold every key of every row; absent ones are null.
    return tuple(
        {key: item for key, item in message.items() if item is not None} for message in value
    )


def _check_content(message: Mapping[str, Any], place: str) -> None:
    content = message.get("content")
    if message.get("tool_calls") and content is None:
        return
    if isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise RowError(
                    f"{place}.content[{index}]",
                    f"must be an object with `type` 'text' and `text`, is {shortened(part)}",
                )
    elif not isinstance(content, str):
        raise RowError(f"{place}.content", f"must be a text, is {shortened(content)}")
    if not content and message["role"] == "assistant":
        raise RowError(f"{place}.content", "is empty")


def _checked_tools(values: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    tools = values.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools", f"must be a list of objects, is {shortened(tools)}")
    return tools or None
