"""The settings of TGI's launcher that headrace does not honour, each with the reason."""

from __future__ import annotations

from headrace.cli.settings.declaration import ForeignSetting

_OWN_SCHEDULER = "headrace mixes prompt and decode tokens in every step"

WITHOUT_MEANING: tuple[ForeignSetting, ...] = (
    ForeignSetting(name="waiting-served-ratio", why=_OWN_SCHEDULER),
    ForeignSetting(name="max-waiting-tokens", why=_OWN_SCHEDULER),
    ForeignSetting(name="prometheus-port", why="metrics are served at /metrics on the same port"),
    ForeignSetting(name="cuda-graphs", why="graph sizes are chosen at warmup"),
    ForeignSetting(name="sharded", why="--num-shard alone decides", harmless=("false",)),
    ForeignSetting(name="master-addr", why="the engine runs on this machine only"),
    ForeignSetting(name="master-port", why="the engine runs on this machine only"),
    ForeignSetting(name="shard-uds-path", why="the link between the processes is private"),
    ForeignSetting(
        name="trust-remote-code",
        why="code in a checkpoint is never executed",
        harmless=("false",),
        switch=True,
    ),
    ForeignSetting(
        name="disable-grammar-support",
        why="grammars are not built yet and always refused",
        harmless=("false",),
        switch=True,
    ),
    ForeignSetting(
        name="disable-custom-kernels",
        why="--backend torch chooses the plain path",
        harmless=("false",),
        switch=True,
    ),
    ForeignSetting(name="usage-stats", why="headrace sends none", harmless=("off",)),
    ForeignSetting(
        name="otlp-service-name",
        why="it names a service for --otlp-endpoint",
        harmless=("text-generation-inference.router",),
    ),
)

NOT_BUILT: tuple[ForeignSetting, ...] = (
    ForeignSetting(name="quantize", why="quantization at load is not built yet", refused=True),
    ForeignSetting(
        name="speculate", why="speculation is not built yet", harmless=("0",), refused=True
    ),
    ForeignSetting(
        name="num-shard", why="tensor parallelism is not built yet", harmless=("1",), refused=True
    ),
    ForeignSetting(
        name="tokenizer-config-path",
        why="a tokenizer configuration apart from the model is not built yet",
        refused=True,
    ),
    ForeignSetting(
        name="rope-scaling",
        why="rope scaling other than the checkpoint's is not built yet",
        refused=True,
    ),
    ForeignSetting(
        name="rope-factor",
        why="rope scaling other than the checkpoint's is not built yet",
        refused=True,
    ),
    ForeignSetting(
        name="cuda-memory-fraction",
        why="use --kv-cache-bytes or --max-batch-total-tokens",
        harmless=("1", "1.0"),
        refused=True,
    ),
    ForeignSetting(name="otlp-endpoint", why="tracing is not built yet", refused=True),
)

FOREIGN = (*WITHOUT_MEANING, *NOT_BUILT)
