"""The engine process: ``python -m headrace.engine ADDRESS``, settings as JSON on standard input."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback

import msgspec

from headrace.checkpoint.resolve import resolve
from headrace.engine.log_setup import configure_logging
from headrace.engine.settings import EngineSettings
from headrace.link.channel import EngineChannel, remove_socket
from headrace.link.errors import ConfigurationError
from headrace.link.messages import EngineFailed

_CONFIGURATION_STATUS = 2
_COLLECTION_THRESHOLDS = (20_000, 50, 50)


def main() -> int:
    """Warm up and serve until drained; the exit status."""
    # The supervisor decides when this process ends; a signal to the whole group is for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineSettings)
    configure_logging(settings.json_output, settings.log_level)
    address = sys.argv[1]
    threading.Thread(target=_end_with_parent, args=(address,), daemon=True).start()
    channel = EngineChannel(address)
    try:
        return _serve(settings, channel)
    except ConfigurationError as error:
        channel.send(EngineFailed(str(error), permanent=True))
        return _CONFIGURATION_STATUS
    except Exception as error:
        traceback.print_exc()
        channel.send(EngineFailed(f"{type(error).__name__}: {error}", permanent=False))
        return 1
    finally:
        channel.close()


def _serve(settings: EngineSettings, channel: EngineChannel) -> int:
    # Of what is imported and loaded nothing dies; looking for what does takes a tenth of the time.
    gc.disable()
    checkpoint = resolve(settings.model, settings.revision)
    if settings.random_weights_seed is None:
        # Reads headers only: a model that lacks some of its weights is refused here.
        len(checkpoint.tensors)
    # torch takes seconds to import: after all that can be refused without it.
    from headrace.engine.build import build_engine
    from headrace.engine.service import EngineService

    engine, ready = build_engine(checkpoint, settings)
    # Nothing that exists now dies before the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # A step leaves no cycles behind; seldom collections keep their pauses out of its tail.
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    gc.enable()
    # First: whoever finds the server ready finds all its metrics.
    channel.send(engine.stats())
    channel.send(ready)
    EngineService(engine, channel).run()
    return 0


def _end_with_parent(address: str) -> None:
    """Standard input ends when the parent is gone, however it went; it may have left its socket."""
    # Not through sys.stdin: a thread that holds its lock at exit makes the interpreter abort.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    remove_socket(address)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
