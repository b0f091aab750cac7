"""Settings: precedence, bounds, foreign flags, and the reference that is generated from them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from headrace.cli.settings import reference
from headrace.cli.settings.assemble import DECLARED, assemble
from headrace.cli.settings.defaults import default_of
from headrace.cli.settings.foreign import FOREIGN, NOT_BUILT, WITHOUT_MEANING
from headrace.link.errors import ConfigurationError

TGI_FLAGS = """
    model-id revision quantize speculate dtype kv-cache-dtype trust-remote-code
    tokenizer-config-path lora-adapters rope-scaling rope-factor num-shard sharded master-addr
    master-port max-concurrent-requests max-best-of max-stop-sequences max-top-n-tokens
    max-input-tokens max-total-tokens max-client-batch-size payload-limit validation-workers
    waiting-served-ratio max-batch-prefill-tokens max-batch-total-tokens max-waiting-tokens
    max-batch-size cuda-graphs cuda-memory-fraction hostname port prometheus-port
    cors-allow-origin api-key graceful-termination-timeout json-output otlp-endpoint
    otlp-service-name disable-grammar-support
"""


@pytest.fixture
def settings_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "headrace.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("flag", TGI_FLAGS.split())
def test_every_flag_of_tgi_is_known_with_its_variable(flag):
    setting = next(s for s in (*DECLARED, *FOREIGN) if s.name == flag)
    assert flag.replace("-", "_").upper() in setting.variables


def test_names_are_unique():
    flags = [name for s in DECLARED for name in (s.name, *s.aliases)] + [s.name for s in FOREIGN]
    variables = [variable for s in (*DECLARED, *FOREIGN) for variable in s.variables]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)


def test_every_declared_setting_fills_a_field_and_accepts_its_own_default():
    for setting in DECLARED:
        default = default_of(setting)
        if default not in (None, ()):
            raw = list(default) if isinstance(default, tuple) else default
            assert setting.kind.read(raw) == default
        else:
            assert setting.default_text, f"{setting.flag} does not say what its absence means"


def test_flag_wins_over_environment_over_file_over_default(settings_file):
    path = settings_file("port = 4001\nmax_batch_size = 4\nmax-best-of = 7\n")
    environment = {"PORT": "4002", "MAX_BATCH_SIZE": "5"}
    settings = assemble({"port": "4003"}, environment, path)
    assert settings.transport.port == 4003
    assert settings.engine.max_batch_size == 5
    assert settings.transport.max_best_of == 7
    assert settings.transport.max_stop_sequences == 4


def test_absent_and_empty_values_leave_the_default(settings_file):
    settings = assemble(
        {"port": None, "api_key": ()}, {"PORT": "  ", "MODEL_ID": ""}, settings_file("")
    )
    assert settings.transport.port == 3000
    assert settings.transport.api_keys == ()
    assert settings.engine.model is None


def test_the_environment_may_name_the_file(settings_file):
    path = settings_file('kv_cache_bytes = "512MiB"\nprefix_cache = false\n')
    settings = assemble({}, {"HEADRACE_CONFIG": str(path)})
    assert settings.engine.kv_cache_bytes == 512 * 1024**2
    assert settings.engine.prefix_cache is False


def test_own_settings_have_a_prefix_in_the_environment():
    settings = assemble({}, {"HEADRACE_DEVICE": "cpu", "DEVICE": "cuda", "DTYPE": "float32"})
    assert settings.engine.device == "cpu"
    assert settings.engine.dtype == "float32"


def test_hostname_of_the_machine_is_not_an_address_to_listen_on():
    assert assemble({}, {"HOSTNAME": socket.gethostname()}).transport.hostname == "0.0.0.0"
    assert assemble({}, {"HOSTNAME": "127.0.0.1"}).transport.hostname == "127.0.0.1"


def test_tgi_name_of_older_releases():
    assert assemble({}, {"MAX_INPUT_LENGTH": "77"}).engine.max_input_tokens == 77


def test_lists_repeat_and_separate_by_comma(settings_file):
    assert assemble({"api_key": ("a, b", "c")}, {}).transport.api_keys == ("a", "b", "c")
    assert assemble({}, {"API_KEY": "a,b"}).transport.api_keys == ("a", "b")
    path = settings_file('cors_allow_origin = ["http://a", "http://b"]')
    assert assemble({}, {}, path).transport.cors_allow_origin == ("http://a", "http://b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", 10), ("2kB", 2000), ("2KiB", 2048), ("2k", 2048), ("1.5 MiB", 1572864), ("1gb", 10**9)],
)
def test_sizes(text, expected):
    assert assemble({"payload_limit": text}, {}).transport.payload_limit == expected


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("port", "65536", "from 0 to 65535"),
        ("port", "-1", "from 0 to 65535"),
        ("port", "http", "from 0 to 65535"),
        ("port", "3000.5", "from 0 to 65535"),
        ("max_batch_size", "0", "from 1"),
        ("max_total_tokens", "1", "at least 2"),
        ("device", "tpu", "one of auto, cpu, cuda"),
        ("dtype", "int4", "one of auto, bfloat16, float16, float32"),
        ("payload_limit", "-2MB", "a number of bytes"),
        ("payload_limit", "2XB", "a number of bytes"),
        ("kv_cache_bytes", "0", "a number of bytes"),
        ("request_timeout", "nan", "greater than 0"),
        ("request_timeout", "inf", "greater than 0"),
        ("graceful_termination_timeout", "0", "greater than 0"),
        ("api_key", (",",), "texts separated by commas"),
        ("hostname", " ", "not empty"),
    ],
)
def test_values_out_of_bounds_name_flag_value_and_bound(key, value, bound):
    with pytest.raises(ConfigurationError) as caught:
        assemble({key: value}, {})
    message = str(caught.value)
    assert f"`--{key.replace('_', '-')}`" in message
    assert bound in message
    assert repr(value) in message


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("port = true", "port"),
        ('port = "80a"', "port"),
        ("device = 3", "device"),
        ("payload_limit = 1.5", "payload_limit"),
        ("api_key = [1]", "api_key"),
        ('prefix_cache = "perhaps"', "prefix_cache"),
        ("[port]\na = 1", "port"),
    ],
)
def test_wrong_types_in_a_file_name_key_and_file(settings_file, line, culprit):
    path = settings_file(line)
    with pytest.raises(ConfigurationError, match=f"`{culprit}` in .*headrace.toml must be"):
        assemble({}, {}, path)


def test_the_message_names_the_environment_where_the_value_came_from_it():
    with pytest.raises(ConfigurationError, match="`PORT` in the environment must be"):
        assemble({}, {"PORT": "abc"})


def test_unknown_key_in_a_file_suggests_a_near_one(settings_file):
    with pytest.raises(ConfigurationError, match=r"unknown key `max_bath_size`.*`max_batch_size`"):
        assemble({}, {}, settings_file("max_bath_size = 3"))


def test_unusable_files(settings_file, tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        assemble({}, {}, tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        assemble({}, {}, settings_file("port = = 3"))
    with pytest.raises(ConfigurationError, match="Is a directory"):
        assemble({}, {}, tmp_path)


@pytest.mark.parametrize("setting", NOT_BUILT, ids=lambda s: s.name)
def test_what_is_not_built_is_refused_by_name_from_every_source(setting, settings_file):
    path = settings_file(f'{setting.key} = "something"')
    for sources in (
        ({setting.key: "something"}, {}, None),
        ({}, {setting.variables[0]: "something"}, None),
        ({}, {}, path),
    ):
        with pytest.raises(ConfigurationError, match=setting.why) as caught:
            assemble(*sources)
        assert "something" in str(caught.value)


@pytest.mark.parametrize("setting", WITHOUT_MEANING, ids=lambda s: s.name)
def test_what_has_no_meaning_warns_once(setting):
    value: object = True if setting.switch else "1.2"
    settings = assemble({setting.key: value}, {setting.variables[0]: "1.2"})
    assert len(settings.warnings) == 1
    assert setting.flag in settings.warnings[0]


@pytest.mark.parametrize("setting", FOREIGN, ids=lambda s: s.name)
def test_values_that_ask_for_nothing_are_accepted_in_silence(setting):
    for value in setting.harmless:
        assert assemble({setting.key: value}, {}).warnings == []


def test_the_reference_is_up_to_date():
    document = Path(__file__).parents[2] / "docs" / "settings.md"
    assert document.read_text(encoding="utf-8") == reference.render(), (
        "run: python -m headrace.cli.settings.reference > docs/settings.md"
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("poet=/a, law/yer=b", {"poet": "/a", "law/yer": "b"}),
        (("poet=/a=b", "owner/name"), {"poet": "/a=b", "owner/name": "owner/name"}),
        ({"poet": "/a"}, {"poet": "/a"}),
    ],
    ids=["one text", "flag repeated", "table"],
)
def test_adapters_are_named(raw, expected):
    assert assemble({"lora_adapters": raw}, {}).engine.lora_adapters == expected


@pytest.mark.parametrize("raw", ["poet=a,poet=b", "=a", "po et=a", "poet=", {"poet": 1}])
def test_adapters_without_a_name_of_their_own_are_refused(raw):
    with pytest.raises(ConfigurationError, match="NAME=DIR"):
        assemble({"lora_adapters": raw}, {})
