"""`llmfleet plan` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from charts.rendering import ROOT, find, of_kind, render
from llmfleet.api.autoscaler import parse_autoscaler
from llmfleet.api.parse import parse_spec
from llmfleet.cli import main

from .shared import CONFIGS, config

USUAL = ("--quantization", "fp8", "--rate", "20", "--mean-rate", "8", "--prompt", "1500", "--output", "250")
REGISTRY = {"global": {"imageRegistry": "registry.example.com"}}
LLAMA = str(CONFIGS / "llama-3.3-70b")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_the_report_says_what_to_run_and_why() -> None:
    found = run(LLAMA, *USUAL, "--gpu-price", "3", "--why")
    assert found.exit_code == 0, found.output
    assert "run       5 instances of TP2 (1 pod of 2 GPUs) at the peak, 2 at the mean" in found.output
    assert "cost      30.00 an hour at the peak, 12.00 at the mean;" in found.output
    assert "KV of a token = 80 layers x 2 x 8 heads x 128 x 2 B = 327680 B" in found.output
    assert "mode      monolithic: " in found.output


def test_the_file_can_be_named_instead_of_its_folder() -> None:
    assert run(f"{LLAMA}/config.json", *USUAL).output == run(LLAMA, *USUAL).output


def test_json_says_the_same() -> None:
    found = json.loads(run(LLAMA, *USUAL, "--json").output)
    assert found["chosen"]["instances"] == {"peak": 5, "mean": 2}
    assert found["chosen"]["gpus"] == 10
    assert found["cost"] is None
    assert [option["tensorParallelSize"] for option in found["options"]] == [1, 2, 4, 8]


def test_the_size_of_the_checkpoint_is_read_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("llama-3.1-8b")))
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 16060522496}}')
    assert "15.0 GiB of bf16 weights (checkpoint's index)" in run(str(tmp_path)).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "write a CONFIG"),
        ((LLAMA, "--gpu", "h900"), "--gpu h900: not known; choose from b200, h200, h100"),
        ((LLAMA, "--mean-rate", "30", "--rate", "20"), "--mean-rate 30 is above --rate 20"),
        ((LLAMA, "--prompt", "9000", "--max-model-len", "8192"), "are 9200 tokens, --max-model-len is 8192"),
        ((LLAMA, "--quantization", "awq"), "can be quantized on load to fp8 or bitsandbytes"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_write(arguments: tuple[str, ...], said: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 2
    assert said in found.output


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}', "\ud800".encode("utf-8", "surrogatepass")])
def test_a_broken_config_is_one_line(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = run(str(file))
    assert found.exit_code == 2
    assert str(file) in found.output
    assert found.exception is None or isinstance(found.exception, SystemExit)


def test_what_cannot_be_carried_ends_with_one() -> None:
    found = run(LLAMA, "--gpu", "l4", "--quantization", "fp8", "--tpot", "0.02")
    assert found.exit_code == 1
    assert "l4 cannot carry this: TP1: " in found.output


def test_the_gpus_are_listed_with_their_figures() -> None:
    found = run("--gpus").output
    assert found.splitlines()[0].split() == ["gpu", "GiB", "GB/s", "bf16", "fp8", "link", "GB/s", "MIG", "slices"]
    assert "mi300x" in found


def test_a_slice_for_each_of_three_models() -> None:
    rest = [f"--beside={CONFIGS / name}" for name in ("qwen2.5-1.5b", "qwen2.5-0.5b")]
    found = run(str(CONFIGS / "mistral-7b"), "--mig", "--max-model-len", "8192", "--rate", "4", *rest)
    assert found.exit_code == 0, found.output
    assert "slice     qwen2.5-0.5b: 1g.10gb" in found.output
    assert "one GPU   holds them all" in found.output


@pytest.mark.parametrize(
    ("context", "rate", "taken"),
    [("8192", "1", "1g.20gb"), ("32768", "1", "3g.40gb"), ("8192", "4", "3g.40gb"), ("131072", "4", "3g.40gb")],
)
def test_a_longer_context_takes_the_next_slice_when_one_request_no_longer_fits(
    context: str, rate: str, taken: str
) -> None:
    page = (ROOT / "docs/plan.md").read_text()
    found = run(str(CONFIGS / "mistral-7b"), "--mig", "--max-model-len", context, "--rate", rate).output
    assert f"slice     mistral-7b: {taken}\n" in found
    if rate == "1":
        assert f"`--max-model-len {context}`" in page
        assert f"`{taken}`" in page


def test_a_gpu_without_slices_says_so() -> None:
    assert "l4 cannot be cut" in run(str(CONFIGS / "qwen2.5-0.5b"), "--mig", "--gpu", "l4").output


@pytest.mark.helm
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((LLAMA, *USUAL), (1, 2, 2, 1)),
        ((LLAMA, *USUAL, "--kv-cache-dtype", "fp8", "--gpu", "h200"), (1, 1, 1, 1)),
        ((str(CONFIGS / "deepseek-v3"),), (2, 8, 8, 2)),
    ],
)
def test_the_chart_takes_the_values_and_the_fleet_has_the_planned_shape(
    arguments: tuple[str, ...], shape: tuple[int, int, int, int]
) -> None:
    values = yaml.safe_load(run(*arguments, "--mode", "monolithic", "--values").output)
    objects = render(values={**values, **REGISTRY})
    [scaler] = of_kind(objects, "LLMClusterAutoscaler")
    spec = parse_autoscaler(scaler["spec"])
    assert spec.instance_template is not None
    made = parse_spec(spec.instance_template.spec)
    planned = (made.replicas, made.gpus_per_pod, made.tensor_parallel_size, made.pipeline_parallel_size)
    assert planned == shape


@pytest.mark.helm
def test_the_chart_takes_the_values_of_a_split_fleet() -> None:
    found = run(LLAMA, *USUAL, "--rate", "60", "--prompt", "6000", "--mode", "disaggregated", "--values")
    assert found.exit_code == 0, found.output
    objects = render(values={**yaml.safe_load(found.output), **REGISTRY})
    spec = parse_autoscaler(find(objects, "LLMClusterAutoscaler", "demo-llama-3-3-70b")["spec"])
    assert spec.prefill is not None and spec.decode is not None
    assert spec.prefill.max_instances > 1 and spec.decode.max_instances > 1
    prefill, decode = (parse_spec(role.instance_template.spec) for role in (spec.prefill, spec.decode))
    assert prefill.inference_args.max_num_batched_tokens == 8192
    assert (decode.inference_args.max_num_batched_tokens or 0) < 8192


def test_the_kubectl_plug_in_is_the_same_program() -> None:
    import tomllib

    scripts = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-llmfleet"] == scripts["llmfleet"]
