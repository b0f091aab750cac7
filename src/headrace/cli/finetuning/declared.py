"""Every setting of ``headrace finetune``, in the order in which ``--help`` shows them."""

from __future__ import annotations

from functools import partial

from headrace.cli.settings.declaration import Part, Section, Setting
from headrace.cli.settings.kinds import Choice, Integer, Listing, Number, Switch, Text
from headrace.finetuning.settings import (
    BASE_PRECISIONS,
    FORMATS,
    LAYOUTS,
    PLACEMENTS,
    SCHEDULES,
    TARGETS_OF_LOSS,
)

_setting = partial(Setting, part=Part.FINETUNE, tgi=False)

DATA = Section(
    "Data",
    (
        _setting(
            name="format",
            kind=Choice(FORMATS),
            help="What a row holds; auto: as its columns say.",
        ),
        _setting(
            name="columns",
            kind=Listing("WANTED=PRESENT,…"),
            help="Columns under other names, such as prompt=instruction,completion=output.",
            default_text="none renamed",
        ),
        _setting(
            name="eval-data",
            kind=Text("DATA"),
            help="Held-out rows, in any form that DATA may take.",
            default_text="a validation split of DATA",
        ),
        _setting(
            name="eval-fraction",
            kind=Number(or_zero=True, maximum=0.9),
            help="Share of DATA held out where there are no held-out rows.",
        ),
        _setting(
            name="train-on",
            kind=Choice(TARGETS_OF_LOSS),
            help="Loss on completions and assistant turns only, or on every token.",
        ),
        _setting(
            name="layout",
            kind=Choice(LAYOUTS),
            help="Pad rows; pack several side by side; or cut the running text into equal rows.",
        ),
        _setting(
            name="max-length",
            kind=Integer(minimum=2),
            help="Tokens in the longest row; longer ones are refused, never cut.",
            default_text="the model's limit",
        ),
        _setting(
            name="skip-bad-rows",
            kind=Switch(),
            help="Train on the good rows where some are bad.",
        ),
    ),
)

LORA = Section(
    "Adapter",
    (
        _setting(name="r", kind=Integer(minimum=1, maximum=4096), help="Rank."),
        _setting(name="alpha", kind=Number(), help="The adapter is scaled by alpha / r."),
        _setting(
            name="dropout",
            kind=Number(or_zero=True, maximum=0.9),
            help="Probability that an input of the adapter is dropped.",
        ),
        _setting(
            name="target-modules",
            kind=Listing("NAME,…"),
            help="Linear modules that get an adapter, or all-linear.",
            default_text="q_proj,v_proj",
        ),
        _setting(
            name="adapter",
            kind=Text("DIR"),
            help="Go on from this adapter with fresh optimizer state; its rank and targets hold.",
            default_text="a fresh one",
        ),
        _setting(
            name="base-precision",
            kind=Choice(BASE_PRECISIONS),
            help="How the frozen base is held.",
        ),
    ),
)

TRAINING = Section(
    "Training",
    (
        _setting(name="epochs", kind=Number(), help="Passes over the data."),
        _setting(
            name="max-steps",
            kind=Integer(minimum=1),
            help="Optimizer steps; wins over --epochs.",
            default_text="as --epochs says",
        ),
        _setting(
            name="batch-size",
            kind=Integer(minimum=1),
            help="Rows in one forward pass of one process.",
        ),
        _setting(
            name="accumulate",
            kind=Integer(minimum=1),
            help="Forward passes in one optimizer step.",
        ),
        _setting(name="learning-rate", kind=Number(), help="Highest of the schedule."),
        _setting(name="schedule", kind=Choice(SCHEDULES), help="How the learning rate falls."),
        _setting(
            name="warmup-steps",
            kind=Integer(),
            help="Steps over which it first rises.",
        ),
        _setting(
            name="weight-decay",
            kind=Number(or_zero=True),
            help="AdamW's.",
        ),
        _setting(
            name="max-grad-norm",
            kind=Number(or_zero=True),
            help="Gradients are scaled down to this norm; 0: never.",
        ),
        _setting(
            name="gradient-checkpointing",
            kind=Switch(),
            help="Recompute activations in the backward pass: less memory, slower.",
        ),
        _setting(name="fused", kind=Switch(), help="Fused norms, rotary, SwiGLU, LoRA and loss."),
        _setting(
            name="seed",
            kind=Integer(maximum=2**32 - 1),
            help="Of initial adapters, dropout and the order of rows.",
        ),
        _setting(
            name="deterministic",
            kind=Switch(),
            help="Repeat bit for bit on one device.",
        ),
    ),
)

RUN = Section(
    "Run",
    (
        _setting(
            name="out",
            kind=Text("DIR"),
            help="Directory for the adapter, checkpoints and logs.",
            default_text="required, but for --dry-run",
        ),
        _setting(
            name="resume",
            kind=Switch(),
            help="Continue the run in --out exactly where its last checkpoint stands.",
        ),
        _setting(
            name="merge",
            kind=Switch(),
            help="Also write a full checkpoint, the adapter merged into the base.",
        ),
        _setting(
            name="dry-run",
            kind=Switch(),
            help="Check the data and plan the memory only.",
        ),
        _setting(name="log-every", kind=Integer(minimum=1), help="Steps between two losses."),
        _setting(
            name="eval-every",
            kind=Integer(minimum=1),
            help="Steps between two evaluations.",
            default_text="once an epoch",
        ),
        _setting(
            name="early-stop",
            kind=Integer(minimum=1),
            help="End after so many evaluations without a better loss; keep the best adapter.",
            default_text="off",
        ),
        _setting(
            name="save-every",
            kind=Integer(minimum=1),
            help="Steps between two checkpoints.",
            default_text="once an epoch",
        ),
        _setting(
            name="keep-checkpoints",
            kind=Integer(minimum=1),
            help="Newest checkpoints that are kept.",
        ),
    ),
)

PLACEMENT = Section(
    "Placement",
    (
        _setting(
            name="device",
            kind=Choice(("auto", "cpu", "cuda")),
            help="What computes; cuda is also the name of an AMD GPU.",
        ),
        _setting(
            name="placement",
            kind=Choice(PLACEMENTS),
            help="auto: one device if it fits, then DDP, FSDP2, DeepSpeed ZeRO-3.",
        ),
        _setting(
            name="processes",
            kind=Integer(minimum=1),
            help="Training processes, one a device.",
            default_text="all GPUs; 1 on a CPU",
        ),
        _setting(
            name="revision",
            kind=Text(),
            help="Branch, tag or commit of a hub id.",
            default_text="main",
        ),
    ),
)

SECTIONS = (DATA, LORA, TRAINING, RUN, PLACEMENT)
