"""The command line takes what vLLM's takes and refuses what it refuses."""

import pytest

from llmfleet_sim.config import EngineConfig, build_config
from llmfleet_sim.flags import config_flags, human_readable_int, parse_command_line, table_rows, with_config_file
from llmfleet_sim.settings import read_environment


def config(*args: str, **env: str) -> EngineConfig:
    return build_config(parse_command_line(args), read_environment(env), new_id="engine-1")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["m", "--foo"], "vllm: error: unrecognized arguments: --foo"),
        (["m", "--swap-space", "4"], "vllm: error: unrecognized arguments: --swap-space 4"),
        (["m", "extra"], "vllm: error: unrecognized arguments: extra"),
        (["m", "--port", "x"], "vllm serve: error: argument --port: invalid int value: 'x'"),
        (["m", "--port"], "vllm serve: error: argument --port: expected one argument"),
        (["m", "--max-num-seqs", "1.5"], "argument --max-num-seqs: invalid int value: '1.5'"),
        (["m", "--dtype", "zz"], "argument --dtype: invalid choice: 'zz' (choose from 'auto', 'bfloat16', 'float', "),
        (["m", "--max-num", "3"], "error: ambiguous option: --max-num could match --max-num-batched-tokens, "),
        (["m", "--max-model-len", "1x"], "invalid human_readable_int_or_auto value: '1x'"),
        (["m", "--kv-transfer-config", "{bad"], "argument --kv-transfer-config: "),
    ],
)
def test_what_vllm_refuses_is_refused_with_status_2(args, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_command_line(args)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--max-model-len", "512"],
        ["--max_model_len", "512"],
        ["--max-model", "512"],
        ["--max_model_len=512"],
        ["--max-model-len", "0.512k"],
    ],
)
def test_underscores_prefixes_and_sizes_mean_the_same_flag(args):
    assert config("m", *args).max_model_len == 512


def test_dotted_flags_become_one_json_value():
    flags = parse_command_line(
        ["m", "--kv-transfer-config.kv_connector", "NixlConnector", "--kv-transfer-config.extra.sizes+", "1,2"]
    )
    assert flags.kv_transfer_config == {"kv_connector": "NixlConnector", "extra": {"sizes": ["1", "2"]}}


def test_a_dot_in_a_value_is_no_dotted_flag():
    assert parse_command_line(["m", "--watermark=0.5", "--host", "10.0.0.1"]).host == "10.0.0.1"


def test_the_model_flag_moves_to_the_front():
    assert config("--tensor-parallel-size", "2", "--model", "some/model").model == "some/model"


def test_booleans_have_a_no_form_and_switches_have_not():
    assert config("m", "--no-enable-prefix-caching").prefix_caching is False
    with pytest.raises(SystemExit):
        parse_command_line(["m", "--no-headless"])


def test_optimization_levels_take_both_spellings():
    assert parse_command_line(["m", "-O3"]).optimization_level == "3"
    assert parse_command_line(["m", "-O", "2"]).optimization_level == "2"


def test_several_served_names_are_aliases_and_the_first_one_leads():
    assert config("m", "--served-model-name", "a", "b").names == ("a", "b")


@pytest.mark.parametrize(("text", "value"), [("1k", 1000), ("1K", 1024), ("25.6k", 25600), ("2M", 2 * 2**20), ("7", 7)])
def test_sizes_are_decimal_in_small_and_binary_in_large_letters(text, value):
    assert human_readable_int(text) == value


def test_a_config_file_stands_before_the_command_line():
    values = {"port": 9000, "enforce-eager": True, "headless": False, "served-model-name": ["x", "y"]}
    args = with_config_file(["m", "--config", "f.yaml", "--port", "1"], lambda path: values)
    assert args == ["m", "--port", "9000", "--enforce-eager", "--served-model-name", "x", "y", "--port", "1"]
    assert config_flags({"a": {"b": 1}}) == ["--a", '{"b": 1}']


def test_wrong_simulator_values_name_what_to_write():
    with pytest.raises(ValueError, match="--sim-profile: nope is not one of"):
        config("m", "--sim-profile", "nope")
    with pytest.raises(ValueError, match=r"--sim-vllm-version: 0\.1 is not one of 0\.32, 0\.33"):
        config("m", "--sim-vllm-version", "0.1")
    with pytest.raises(ValueError, match="VLLM_NIXL_SIDE_CHANNEL_PORT: 'x' is not a number"):
        config("m", VLLM_NIXL_SIDE_CHANNEL_PORT="x")


def test_every_flag_of_the_table_is_named_once():
    names = [name for _, row, _ in table_rows() for name in row]
    assert len(names) == len(set(names)) > 300


def test_the_fingerprint_says_version_and_shape_and_can_be_hidden():
    assert config("m", "--tensor-parallel-size", "4").fingerprint.startswith("vllm-0.32.0-tp4-")
    assert config("m", "--fingerprint-mode", "none").fingerprint is None
