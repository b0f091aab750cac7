"""``docs/settings.md`` from the declarations: ``python -m headrace.cli.settings.reference``."""

from __future__ import annotations

from headrace.cli.settings.declaration import ForeignSetting, Section, Setting
from headrace.cli.settings.declared import SECTIONS
from headrace.cli.settings.defaults import shown_default
from headrace.cli.settings.foreign import NOT_BUILT, WITHOUT_MEANING
from headrace.cli.settings.kinds import Switch
from headrace.cli.settings.sources import CONFIG_VARIABLE

_INTRODUCTION = f"""\
# Settings

<!-- Written by `python -m headrace.cli.settings.reference > docs/settings.md`; do not edit. -->

Every setting of `headrace serve` is a flag, an environment variable and a key in a settings file.
A flag wins over the environment, the environment over the file, the file over the default. The
names are those of TGI's launcher where it has one, and such a setting's environment variable is
its name in capitals; headrace's own begin with `HEADRACE_`.

The settings file is TOML, named by `--config FILE` or `{CONFIG_VARIABLE}`; a key is the flag's
name with underscores:

```toml
model_id = "/models/SmolLM2-135M-Instruct"
port = 3001
max_batch_size = 32
kv_cache_bytes = "512MiB"
cors_allow_origin = ["http://localhost:8080"]
```

A value out of bounds, an unknown flag and an unknown key end the program with one line and exit
status 2. `HOSTNAME` is ignored where it is the machine's own name, as shells and containers set it.
"""


def render() -> str:
    """The whole document."""
    parts = [_INTRODUCTION, *(_section(section) for section in SECTIONS)]
    parts.append(
        _foreign(
            "Flags of TGI accepted without effect",
            "Each is answered with one warning, unless its value asks for nothing.",
            WITHOUT_MEANING,
        )
    )
    parts.append(
        _foreign(
            "Flags of TGI refused until they are built",
            "Each ends the program, unless its value asks for nothing.",
            NOT_BUILT,
        )
    )
    return "\n".join(parts)


def _section(section: Section) -> str:
    rows = (_row(setting) for setting in section.settings)
    head = "| flag | environment | value | default | meaning |\n|---|---|---|---|---|"
    return f"## {section.title}\n\n{head}\n" + "\n".join(rows) + "\n"


def _row(setting: Setting) -> str:
    flags = [setting.flag, *(f"--{alias}" for alias in setting.aliases)]
    if isinstance(setting.kind, Switch):
        flags.append(f"--no-{setting.name}")
    if setting.letter:
        flags.append(f"-{setting.letter}")
    cells = (
        ", ".join(f"`{flag}`" for flag in flags),
        ", ".join(f"`{variable}`" for variable in setting.variables),
        setting.kind.bound,
        shown_default(setting),
        setting.help,
    )
    return f"| {' | '.join(cells)} |"


def _foreign(title: str, introduction: str, settings: tuple[ForeignSetting, ...]) -> str:
    rows = "\n".join(
        f"| `{s.flag}` | {s.why} | {', '.join(f'`{value}`' for value in s.harmless) or '–'} |"
        for s in settings
    )
    head = "| flag | why | value without effect |\n|---|---|---|"
    return f"## {title}\n\n{introduction}\n\n{head}\n{rows}\n"


if __name__ == "__main__":
    print(render(), end="")
