"""Chats to prompts: a model's chat template under Transformers' conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateSyntaxError, UndefinedError
from jinja2 import TemplateError as JinjaError

from headrace.checkpoint.template_sandbox import MAX_TEXT, TemplateSandbox, bounded
from headrace.link.errors import ErrorCode, HeadraceError, InvalidRequest

_DEFAULT = "default"
_TOOL_USE = "tool_use"


class TemplateError(HeadraceError):
    """The template refused the chat, is broken, or does not exist; the message says which."""

    code = ErrorCode.TEMPLATE


class MissingTemplateVariable(TemplateError):
    """The template used a variable or field that the request does not have."""

    code = ErrorCode.MISSING_TEMPLATE_VARIABLE


class _Refusal(JinjaError):
    """Raised by the template itself, through ``raise_exception``."""


class ChatTemplate:
    """A model's templates, compiled when first used.

    Args:
        sources: Template sources by name, as ``Checkpoint.chat_templates`` gives them.
        special_tokens: Variables such as ``bos_token`` that templates expect.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = sources
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, Template] = {}
        self._environment = TemplateSandbox()
        self._environment.filters["tojson"] = _to_json
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = _strftime_now

    @property
    def exists(self) -> bool:
        """Whether the model has any template, that is, is a chat model."""
        return bool(self._sources)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. Encode it with ``add_special_tokens=False``: templates frame it.

        Args:
            messages: Plain data, each with ``role`` and ``content``: a string, null, or a list of
                ``{"type": "text", "text": ...}`` parts, which are joined.
            name: Template to use; by default ``tool_use`` where there are tools and such a
                template, else ``default``.
            variables: Further variables for the template.

        Raises:
            TemplateError: No such template, a broken one, or one that refuses this chat.
            MissingTemplateVariable: The template needs something that is not there.
            InvalidRequest: A content part that is not text.
        """
        template = self._template(name or self._name_for(tools))
        chat = [_with_text_content(index, message) for index, message in enumerate(messages)]
        context = {
            **self._special_tokens,
            **(variables or {}),
            "messages": chat,
            "tools": None if tools is None else list(tools),
            "documents": None if documents is None else list(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with bounded():
                return _join(template, context)
        except _Refusal as error:
            raise TemplateError(str(error)) from None
        except UndefinedError as error:
            raise MissingTemplateVariable(f"chat template: {error}") from None
        except RecursionError:
            raise TemplateError("chat template: recursion too deep") from None
        except (JinjaError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(f"chat template: {error}") from None

    def _name_for(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        return _TOOL_USE if tools and _TOOL_USE in self._sources else _DEFAULT

    def _template(self, name: str) -> Template:
        compiled = self._compiled.get(name)
        if compiled is not None:
            return compiled
        source = self._sources.get(name)
        if source is None and not self._sources:
            raise TemplateError("the model has no chat template: send a prompt instead of a chat")
        if source is None:
            raise TemplateError(
                f"the model has no chat template named {name!r}; "
                f"it has {', '.join(sorted(self._sources))}"
            )
        try:
            compiled = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateError(
                f"the model's chat template is invalid (line {error.lineno}: {error.message})"
            ) from None
        except (JinjaError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
            raise TemplateError(f"the model's chat template is invalid ({error})") from None
        self._compiled[name] = compiled
        return compiled


def _join(template: Template, context: dict[str, Any]) -> str:
    parts = []
    length = 0
    for part in template.generate(context):
        length += len(part)
        if length > MAX_TEXT:
            raise JinjaError(f"the text exceeds {MAX_TEXT} characters")
        parts.append(part)
    return "".join(parts)


def _with_text_content(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if content is None:
        content = ""
    elif isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(
            _part_text(f"messages[{index}].content[{position}]", part)
            for position, part in enumerate(content)
        )
    return {**message, "content": content}


def _part_text(place: str, part: Any) -> str:
    if not isinstance(part, Mapping):
        raise InvalidRequest(place, part, "an object with `type` and `text`")
    if part.get("type") != "text":
        raise InvalidRequest(f"{place}.type", part.get("type"), "'text' (this model reads text)")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{place}.text", text, "a string")
    return text


def _raise_exception(message: object = "") -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's own escaping of HTML characters, which models have never seen."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
