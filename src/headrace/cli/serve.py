"""``headrace serve``: the HTTP server in this process, the engine in another."""

from __future__ import annotations

import click

from headrace.cli.settings.assemble import Assembled
from headrace.cli.settings.declared import SECTIONS
from headrace.cli.settings.options import SettingsCommand

_EPILOG = (
    "Every flag can also be an environment variable: TGI's flags under their names in capitals "
    "(--max-batch-size is MAX_BATCH_SIZE), headrace's own with HEADRACE_ in front "
    "(--device is HEADRACE_DEVICE); or a key in the --config file (max_batch_size = 8). "
    "A flag wins over the environment, the environment over the file."
)


@click.command("serve", cls=SettingsCommand, sections=SECTIONS, epilog=_EPILOG)
def command(settings: Assembled) -> int:
    """Serve MODEL over HTTP, with the routes of TGI and of OpenAI.

    MODEL is a directory in Hugging Face's format (safetensors), a GGUF file or a hub id; without
    one the small built-in model is served.
    """
    import asyncio

    import uvloop

    from headrace.checkpoint.resolve import resolve
    from headrace.cli.serving.processes import run_server
    from headrace.cli.serving.ready_line import ready_line
    from headrace.engine.log_setup import configure_logging
    from headrace.link.adapters import check_names
    from headrace.transport.listening import bind

    configure_logging(settings.transport.json_output)
    listener = bind(settings.transport)
    checkpoint = resolve(settings.engine.model, settings.engine.revision)
    is_chat = "default" in checkpoint.chat_templates
    name = settings.transport.served_model_name or checkpoint.model_id
    check_names(settings.engine.lora_adapters, name)

    def on_ready(port: int) -> None:
        click.echo(ready_line(settings.transport, port, name, is_chat=is_chat))

    server = run_server(listener, checkpoint, settings.engine, settings.transport, on_ready)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server)
    return 0
