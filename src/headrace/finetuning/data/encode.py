"""Examples to token ids and labels, with the tokenizer and the chat template that serving uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.checkpoint.chat_template import ChatTemplate, TemplateError
from headrace.checkpoint.tokenizer import Tokenizer
from headrace.finetuning.data.formats import Chat, Example, PlainText, PromptCompletion
from headrace.finetuning.data.rows import RowError
from headrace.link.errors import InvalidRequest

IGNORED = -100
"""Label of a token that the loss leaves out, as torch's and Transformers' losses have it."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of one row, and for each the id to learn or ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss; the first of a row has nothing to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


class Encoder:
    """Encodes examples for one model.

    Args:
        tokenizer: The model's.
        template: The model's chat templates.
        eos_id: Ends completions and texts; ``None``: the model has no such token.
        train_on: ``completions`` or ``all``.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, eos_id: int | None, train_on: str
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._eos_id = eos_id
        self._completions_only = train_on == "completions"

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be encoded."""
        return self._template.exists

    def encode(self, example: Example) -> EncodedRow:
        """Token ids and labels of an example.

        Raises:
            RowError: the template refuses the chat, or nothing is left to learn.
        """
        try:
            if isinstance(example, Chat):
                row = self._chat(example)
            elif isinstance(example, PromptCompletion):
                row = self._prompt_completion(example)
            else:
                row = self._plain(example)
        except InvalidRequest as error:
            raise RowError("", f"holds {error}") from None
        if not row.trained_tokens:
            raise RowError("", "leaves nothing to learn: no token counts in the loss")
        return row

    def _plain(self, example: PlainText) -> EncodedRow:
        ids = self._ended(self._tokenizer.encode(example.text))
        return EncodedRow(ids, list(ids))

    def _prompt_completion(self, example: PromptCompletion) -> EncodedRow:
        text = example.prompt + example.completion
        if not self._completions_only:
            ids = self._ended(self._tokenizer.encode(text))
            return EncodedRow(ids, list(ids))
        ids, labels = self._labelled(text, [(len(example.prompt), len(text))], framed=True)
        if self._eos_id is not None and ids[-1] != self._eos_id:
            ids.append(self._eos_id)
            labels.append(self._eos_id)
        return EncodedRow(ids, labels)

    def _chat(self, example: Chat) -> EncodedRow:
        text, spans = self._rendered(example)
        if not self._completions_only:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            return EncodedRow(ids, list(ids))
        return EncodedRow(*self._labelled(text, spans, framed=False))

    def _rendered(self, example: Chat) -> tuple[str, list[tuple[int, int]]]:
        """The whole chat as the template writes it, and where its trained messages stand in it."""
        messages = example.messages
        try:
            whole = self._template.render(
                messages, add_generation_prompt=False, tools=example.tools
            )
            if not self._completions_only:
                return whole, []
            spans = []
            for index, trained in enumerate(example.trained):
                if not trained:
                    continue
                # What the model is given when it has to write this message, and what it then is.
                before = self._template.render(
                    messages[:index], add_generation_prompt=True, tools=example.tools
                )
                through = (
                    whole
                    if index == len(messages) - 1
                    else self._template.render(
                        messages[: index + 1], add_generation_prompt=False, tools=example.tools
                    )
                )
                if not through.startswith(before) or not whole.startswith(through):
                    raise RowError(
                        f"messages[{index}]",
                        "is written differently by the chat template within the whole chat than "
                        "after its own prompt; --train-on all trains on every token instead",
                    )
                spans.append((len(before), len(through)))
        except TemplateError as error:
            raise RowError("messages", f"is refused by the chat template: {error}") from None
        return whole, spans

    def _labelled(
        self, text: str, spans: Sequence[tuple[int, int]], framed: bool
    ) -> tuple[list[int], list[int]]:
        """Ids of ``text``, and labels where a token reaches into one of the ascending ``spans``."""
        ids, labels = [], []
        remaining = iter(spans)
        start, stop = next(remaining, (len(text), len(text)))
        for token in self._tokenizer.encode_with_offsets(text, add_special_tokens=framed):
            while token.start >= stop and stop < len(text):
                start, stop = next(remaining, (len(text), len(text)))
            ids.append(token.id)
            labels.append(token.id if token.stop > start and token.stop > token.start else IGNORED)
        return ids, labels

    def _ended(self, ids: list[int]) -> list[int]:
        if self._eos_id is not None and (not ids or ids[-1] != self._eos_id):
            ids.append(self._eos_id)
        return ids
