"""The terminal's side of a chat: lines in, streamed text out, a few commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console

from headrace.cli.conversation.partner import AnswerStyle, Message, Partner
from headrace.link.errors import HeadraceError

_HELP = """\
/reset         forget the conversation
/system TEXT   set the system message and start afresh; without TEXT, remove it
/exit          leave (so does Ctrl-D)
Ctrl-C stops an answer. End a line with \\ to go on in the next one."""


class TerminalChat:
    """One conversation with a partner.

    Args:
        system: The system message, if any.
        interactive: Show prompts and colours; otherwise only answers are printed, so that a
            pipe gets nothing else.
    """

    def __init__(
        self, partner: Partner, style: AnswerStyle, system: str | None, *, interactive: bool
    ) -> None:
        self._partner = partner
        self._style = style
        self._system = system
        self._interactive = interactive
        self._console = Console(highlight=False, soft_wrap=True)
        self._complaints = Console(stderr=True, highlight=False)
        self._messages: list[Message] = []
        self._reset()

    def run(self) -> int:
        """Talk until the input ends or ``/exit``.

        Returns:
            1 where an answer failed and nobody watches, else 0.
        """
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  line editing and history for input()
            self._say(f"[bold]{self._partner.name}[/bold]  (/help shows the commands)")
        failed = False
        for line in self._lines():
            if line.startswith("/"):
                if not self._obey(line):
                    break
            elif line.strip():
                failed |= not self._answer(line)
        return int(failed and not self._interactive)

    def _lines(self) -> Iterator[str]:
        if not self._interactive:
            yield from (line.rstrip("\r\n") for line in sys.stdin)
            return
        while True:
            try:
                # Not rich's input: readline must know the prompt to redraw a line around it.
                line = input("> ")
                while line.endswith("\\"):
                    line = f"{line[:-1]}\n{input('. ')}"
            except KeyboardInterrupt:
                self._say("\n[dim]/exit or Ctrl-D leaves[/dim]")
                continue
            except EOFError:
                self._console.print()
                return
            yield line

    def _obey(self, line: str) -> bool:
        """Carry out a command; false ends the chat."""
        command, _, rest = line.partition(" ")
        match command:
            case "/exit" | "/quit":
                return False
            case "/reset":
                self._reset()
                self._say("[dim]the conversation is forgotten[/dim]")
            case "/system":
                self._system = rest.strip() or None
                self._reset()
                self._say("[dim]the conversation starts afresh[/dim]")
            case "/help":
                self._say(_HELP)
            case _:
                self._complain(f"unknown command {command}; /help shows what there is")
        return True

    def _answer(self, line: str) -> bool:
        """Stream one answer; whether it came to its end or was stopped by the user."""
        asked = [*self._messages, Message("user", line)]
        said: list[str] = []
        pieces = self._partner.answer(asked, self._style)
        try:
            for piece in pieces:
                said.append(piece)
                self._console.out(piece, end="")
                self._console.file.flush()
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._say(" [dim](stopped)[/dim]", end="")
        except HeadraceError as error:
            self._complain(str(error))
            return False
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        self._console.print()
        self._messages = [*asked, Message("assistant", "".join(said))]
        return True

    def _reset(self) -> None:
        self._messages = [Message("system", self._system)] if self._system else []

    def _say(self, text: str, end: str = "\n") -> None:
        if self._interactive:
            self._console.print(text, end=end)

    def _complain(self, text: str) -> None:
        self._complaints.print(f"headrace: {text}", style="red", markup=False)
