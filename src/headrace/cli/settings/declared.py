"""Every setting that headrace honours, in the order in which ``--help`` shows them."""

from __future__ import annotations

from headrace.cli.settings.declaration import Part, Section, Setting
from headrace.cli.settings.kinds import (
    Choice,
    Integer,
    Listing,
    NamedAdapters,
    Number,
    Size,
    Switch,
    Text,
)

_MAX_PORT = 65535

MODEL = Section(
    "Model",
    (
        Setting(
            name="model-id",
            kind=Text("MODEL"),
            part=Part.ENGINE,
            field="model",
            help="Directory (safetensors), GGUF file or hub id; the same as the argument MODEL.",
            default_text="the built-in SmolLM2-135M-Instruct",
        ),
        Setting(
            name="revision",
            kind=Text(),
            part=Part.ENGINE,
            help="Branch, tag or commit of a hub id.",
            default_text="main",
        ),
        Setting(
            name="dtype",
            kind=Choice(("auto", "bfloat16", "float16", "float32")),
            part=Part.ENGINE,
            help="Type that weights and activations are computed in.",
        ),
        Setting(
            name="packed-weights",
            kind=Switch(),
            part=Part.ENGINE,
            tgi=False,
            help="Compute with quantized weights as they are packed: faster, slightly less exact.",
            default_text="on, unless --dtype names a type",
        ),
        Setting(
            name="lora-adapters",
            kind=NamedAdapters(),
            part=Part.ENGINE,
            help="LoRA adapters (PEFT directories or hub ids) that requests may choose by name.",
            default_text="none",
        ),
        Setting(
            name="max-lora-rank",
            kind=Integer(minimum=1, maximum=1024),
            part=Part.ENGINE,
            tgi=False,
            help="Largest rank of an adapter that is accepted.",
        ),
    ),
)

DEVICE = Section(
    "Device",
    (
        Setting(
            name="device",
            kind=Choice(("auto", "cpu", "cuda")),
            part=Part.ENGINE,
            tgi=False,
            help="What computes; cuda is also the name of an AMD GPU.",
        ),
        Setting(
            name="backend",
            kind=Text("NAME"),
            part=Part.ENGINE,
            tgi=False,
            help="Use this backend or none: torch, native, triton.",
        ),
        Setting(
            name="threads",
            kind=Integer(minimum=1, maximum=1024),
            part=Part.ENGINE,
            tgi=False,
            help="CPU threads of the engine.",
            default_text="one a physical core",
        ),
    ),
)

BATCHING = Section(
    "Batching and memory",
    (
        Setting(
            name="max-input-tokens",
            kind=Integer(minimum=1),
            part=Part.ENGINE,
            help="Longest prompt of a request.",
            default_text="what fits",
            aliases=("max-input-length",),
        ),
        Setting(
            name="max-total-tokens",
            kind=Integer(minimum=2),
            part=Part.ENGINE,
            help="Longest prompt plus output of a request.",
            default_text="the model's context, as far as it fits",
        ),
        Setting(
            name="max-batch-size",
            kind=Integer(minimum=1, maximum=65536),
            part=Part.ENGINE,
            help="Most requests that run at once.",
            default_text="chosen at warmup",
        ),
        Setting(
            name="max-batch-prefill-tokens",
            kind=Integer(minimum=1),
            part=Part.ENGINE,
            help="Most tokens computed in one step; longer prompts are taken in chunks.",
            default_text="chosen at warmup",
        ),
        Setting(
            name="max-batch-total-tokens",
            kind=Integer(minimum=1),
            part=Part.ENGINE,
            help="KV cache in tokens, over all requests: honoured or refused.",
            default_text="what --kv-cache-bytes holds",
        ),
        Setting(
            name="kv-cache-dtype",
            kind=Choice(("auto", "int8")),
            part=Part.ENGINE,
            help="Type of the KV cache: as activations are, or int8 (CPU): half of bfloat16.",
        ),
        Setting(
            name="kv-cache-bytes",
            kind=Size(),
            part=Part.ENGINE,
            tgi=False,
            help="KV cache in bytes at most, such as 512MiB.",
            default_text="from the memory left after warmup; at most 2GiB on a CPU",
        ),
        Setting(
            name="block-size",
            kind=Integer(minimum=1, maximum=1024),
            part=Part.ENGINE,
            tgi=False,
            help="Tokens in one block of the KV cache.",
        ),
        Setting(
            name="prefix-cache",
            kind=Switch(),
            part=Part.ENGINE,
            tgi=False,
            help="Reuse the KV blocks of equal prefixes, finished requests' included.",
        ),
        Setting(
            name="max-queue-size",
            kind=Integer(minimum=1),
            part=Part.ENGINE,
            field="max_waiting",
            tgi=False,
            help="Most requests that wait for a place in the batch.",
        ),
    ),
)

SERVER = Section(
    "Server",
    (
        Setting(
            name="hostname",
            kind=Text("ADDRESS"),
            part=Part.TRANSPORT,
            help="Address to listen on.",
        ),
        Setting(
            name="port",
            kind=Integer(minimum=0, maximum=_MAX_PORT, metavar="PORT"),
            part=Part.TRANSPORT,
            help="Port to listen on; 0 takes a free one.",
            letter="p",
        ),
        Setting(
            name="served-model-name",
            kind=Text("NAME"),
            part=Part.TRANSPORT,
            tgi=False,
            help="Name that clients see in replies and /v1/models.",
            default_text="the model's own",
        ),
        Setting(
            name="api-key",
            kind=Listing("KEY,…"),
            part=Part.TRANSPORT,
            field="api_keys",
            help="Require one of these keys as a bearer token.",
            default_text="none required",
        ),
        Setting(
            name="cors-allow-origin",
            kind=Listing("ORIGIN,…"),
            part=Part.TRANSPORT,
            help="Origins whose pages may call the server.",
            default_text="none",
        ),
        Setting(
            name="validation-workers",
            kind=Integer(minimum=1, maximum=256),
            part=Part.TRANSPORT,
            help="Threads that tokenize and render chat templates.",
        ),
        Setting(
            name="keep-alive-timeout",
            kind=Number(metavar="SECONDS"),
            part=Part.TRANSPORT,
            tgi=False,
            help="Time that an idle connection is kept open.",
        ),
        Setting(
            name="graceful-termination-timeout",
            kind=Number(metavar="SECONDS"),
            part=Part.TRANSPORT,
            help="Time that running requests get to finish after SIGTERM.",
        ),
        Setting(
            name="json-output",
            kind=Switch(),
            part=Part.TRANSPORT,
            help="Write logs as JSON lines.",
        ),
    ),
)

LIMITS = Section(
    "Limits of a request",
    (
        Setting(
            name="max-concurrent-requests",
            kind=Integer(minimum=1),
            part=Part.TRANSPORT,
            help="Most requests at once, waiting ones included; more are told 429.",
        ),
        Setting(
            name="max-best-of",
            kind=Integer(minimum=1),
            part=Part.TRANSPORT,
            help="Largest best_of and n.",
        ),
        Setting(
            name="max-stop-sequences",
            kind=Integer(minimum=0),
            part=Part.TRANSPORT,
            help="Most stop strings.",
        ),
        Setting(
            name="max-stop-length",
            kind=Integer(minimum=1),
            part=Part.TRANSPORT,
            tgi=False,
            help="Most characters of one stop string.",
        ),
        Setting(
            name="max-top-n-tokens",
            kind=Integer(minimum=0),
            part=Part.TRANSPORT,
            help="Largest top_n_tokens and top_logprobs.",
        ),
        Setting(
            name="max-client-batch-size",
            kind=Integer(minimum=1),
            part=Part.TRANSPORT,
            help="Most prompts in one request.",
        ),
        Setting(
            name="max-messages",
            kind=Integer(minimum=1),
            part=Part.TRANSPORT,
            tgi=False,
            help="Most messages in one chat.",
        ),
        Setting(
            name="payload-limit",
            kind=Size(),
            part=Part.TRANSPORT,
            help="Largest request body.",
        ),
        Setting(
            name="header-limit",
            kind=Size(),
            part=Part.TRANSPORT,
            tgi=False,
            help="Largest request line and headers together.",
        ),
        Setting(
            name="request-timeout",
            kind=Number(metavar="SECONDS"),
            part=Part.TRANSPORT,
            tgi=False,
            help="Longest time from arrival to last token.",
            default_text="none",
        ),
        Setting(
            name="header-timeout",
            kind=Number(metavar="SECONDS"),
            part=Part.TRANSPORT,
            tgi=False,
            help="Longest time for a client to send a request's headers.",
        ),
        Setting(
            name="body-timeout",
            kind=Number(metavar="SECONDS"),
            part=Part.TRANSPORT,
            tgi=False,
            help="Longest time for a client to send a request's body.",
        ),
    ),
)

SECTIONS = (MODEL, DEVICE, BATCHING, SERVER, LIMITS)
