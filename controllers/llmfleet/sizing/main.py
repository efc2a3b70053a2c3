"""`llmfleet plan`: how many GPUs a model and a workload need, and how to cut them.

In: a `config.json`, a GPU's name, a workload, objectives. Out: a report, one JSON object, or values for the chart. Exit
status 1 when no cut meets the objectives, 2 with one line that says what to write for wrong input. It asks no cluster
and no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import yaml

from llmfleet.sizing import mig, report
from llmfleet.sizing.advice import Advice, advise
from llmfleet.sizing.cost import cost_of
from llmfleet.sizing.gpus import GPUS, Gpu, find_gpu
from llmfleet.sizing.memory import Cut, Engine
from llmfleet.sizing.model import Model, read_model
from llmfleet.sizing.plan import CannotPlan, Plan, Workload, make_plan
from llmfleet.sizing.quantization import ConfigError
from llmfleet.sizing.values import build_values

LONGEST: Final = 32768
"""Longest request that is planned for when nobody says: some models could do more than anybody asks of them."""
POSITIVE: Final = click.FloatRange(0, min_open=True)


def config_file(path: Path) -> Path:
    """A `config.json`, or the folder it lies in."""
    return path / "config.json" if path.is_dir() else path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--gpu", "gpu_name", default="h100", show_default=True, help="GPU type; --gpus lists them.")
@click.option("--gpus", "list_gpus", is_flag=True, help="List the GPU types with their figures and leave.")
@click.option("--gpus-per-node", type=click.IntRange(1, 72), help="GPUs of one node. Default: the type's.")
@click.option("--rate", type=POSITIVE, default=10.0, show_default=True, help="Requests per second at the peak.")
@click.option("--mean-rate", type=POSITIVE, help="Requests per second on average. Default: the peak's.")
@click.option("--prompt", type=POSITIVE, default=1000.0, show_default=True, help="Tokens of a prompt.")
@click.option("--output", type=POSITIVE, default=200.0, show_default=True, help="Tokens of an answer.")
@click.option(
    "--cached",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of prompt tokens that the prefix cache knows, 0 to 1.",
)
@click.option("--ttft", type=POSITIVE, default=2.0, show_default=True, help="Objective: seconds to the first token.")
@click.option("--tpot", type=POSITIVE, default=0.05, show_default=True, help="Objective: seconds per token after it.")
@click.option(
    "--efficiency",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.85,
    show_default=True,
    help="What a real fleet reaches of what its engines could, 0 to 1.",
)
@click.option(
    "--max-model-len",
    type=click.IntRange(1),
    help=f"Tokens of the longest request. Default: the model's, at most {LONGEST}.",
)
@click.option("--max-num-seqs", type=click.IntRange(1), default=256, show_default=True, help="Requests in one step.")
@click.option(
    "--max-num-batched-tokens",
    type=click.IntRange(1),
    help="Tokens in one step. Default: so many that no step with a prompt in it outlasts --tpot, at most 8192.",
)
@click.option(
    "--gpu-memory-utilization",
    "utilization",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of a GPU's memory that vLLM takes, 0 to 1.",
)
@click.option("--quantization", default="", help="What vLLM does to a 16-bit checkpoint on load: fp8 or bitsandbytes.")
@click.option(
    "--kv-cache-dtype",
    type=click.Choice(["auto", "fp8"]),
    default="auto",
    show_default=True,
    help="Values in the KV cache.",
)
@click.option("--tp", type=click.IntRange(1), help="Use this tensor parallel size. Default: the cheapest.")
@click.option("--pp", type=click.IntRange(1), help="Use this pipeline parallel size. Default: 1, or what fits.")
@click.option("--gpu-price", type=POSITIVE, help="Price of one GPU for one hour; without it no cost is shown.")
@click.option(
    "--network", type=POSITIVE, default=400.0, show_default=True, help="Gbit/s between prefill and decode engines."
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "monolithic", "disaggregated"]),
    default="auto",
    show_default=True,
    help="Shape of the values; auto follows the advice.",
)
@click.option("--mig", "show_mig", is_flag=True, help="Say which MIG slice of one GPU is enough.")
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="With --mig: another model's config.json for the same GPU, idle but for one request a second; repeat it.",
)
@click.option("--name", default="", help="Name clients ask for, in the values. Default: the config's folder.")
@click.option(
    "--model",
    "model_id",
    default="",
    help="Model id or path in the values. Default: the config's own, or /models/NAME.",
)
@click.option("--image-tag", default="v0.33.0", show_default=True, help="Version of vLLM in the values.")
@click.option("--why", is_flag=True, help="Every figure with its arithmetic.")
@click.option("--values", "as_values", is_flag=True, help="Print values for the chart instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(config: Path | None, list_gpus: bool, **options: Any) -> None:
    """Plan the GPUs for a model: CONFIG is its Hugging Face config.json, or the folder with it.

    Beside it, model.safetensors.index.json gives the exact size of the weights.
    """
    if list_gpus:
        click.echo("\n".join(report.gpu_table(list(GPUS.values()))))
        return
    if config is None:
        raise click.UsageError("write a CONFIG: the model's config.json, or the folder it lies in")
    gpu = gpu_named(options["gpu_name"], options["gpus_per_node"])
    model = load(config_file(config), options["quantization"])
    engine = engine_of(model, options)
    work = workload_of(options)
    if options["show_mig"] or options["beside"]:
        say_mig(config, gpu, model, engine, work, options)
        return
    try:
        plan = make_plan(model, gpu, engine, work, cuts(options))
    except CannotPlan as error:
        raise click.ClickException(f"{gpu.name} cannot carry this: {error}") from error
    say(plan, advise(plan, network_gbit=options["network"]), config_file(config), options)


def say(plan: Plan, advice: Advice, config: Path, options: dict[str, Any]) -> None:
    """The report in the form that was asked for."""
    cost = cost_of(plan.chosen, plan.work, options["gpu_price"]) if options["gpu_price"] else None
    if options["as_json"]:
        click.echo(json.dumps(report.as_json(plan, advice, cost), indent=2))
    elif options["as_values"]:
        click.echo(yaml.safe_dump(values(plan, advice, config, options), sort_keys=False), nl=False)
    else:
        click.echo("\n".join(report.text(plan, advice, cost)))
        if options["why"]:
            click.echo("\n" + "\n".join(report.why(plan, advice)))


def values(plan: Plan, advice: Advice, config: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Values in the mode that was asked for."""
    mode = options["mode"] if options["mode"] != "auto" else advice.mode
    if mode == "disaggregated" and not (advice.prefill and advice.decode):
        raise click.ClickException(f"cannot split: {advice.reasons[0]}")
    name = options["name"] or config.resolve().parent.name
    model = options["model_id"] or name_in(config) or f"/models/{name}"
    shown = replace(advice, mode=mode)
    return build_values(
        plan, shown, name=name, model=model, image_tag=options["image_tag"], told=options["quantization"]
    )


def say_mig(config: Path, gpu: Gpu, model: Model, engine: Engine, work: Workload, options: dict[str, Any]) -> None:
    """Slices for one model, or one GPU for several."""
    rows = mig.fits(model, gpu, engine, work)
    names, all_rows = [title(config)], [rows]
    for other in options["beside"]:
        guest = load(config_file(other), "")
        calm = Workload(rate=1, mean_rate=1, prompt=work.prompt, output=work.output, ttft=work.ttft, tpot=work.tpot)
        names.append(title(other))
        all_rows.append(mig.fits(guest, gpu, engine_of(guest, options), calm))
    parts = mig.partition(names, all_rows) if gpu.mig else None
    if options["as_json"]:
        shared = None if parts is None else {"problem": parts.problem, "slices": chosen_slices(parts)}
        click.echo(json.dumps({"gpu": gpu.name, "profiles": report.mig_json(rows), "partition": shared}, indent=2))
        return
    lines: list[str] = [*report.mig_text(gpu, rows)]
    click.echo("\n".join([*lines, *(report.partition_text(parts) if parts else ())]))


def chosen_slices(parts: mig.Partition) -> dict[str, str | None]:
    return {name: one.profile.name if one else None for name, one in zip(parts.names, parts.fits, strict=True)}


def title(path: Path) -> str:
    return config_file(path).resolve().parent.name


def gpu_named(name: str, per_node: int | None) -> Gpu:
    gpu = find_gpu(name)
    if gpu is None:
        raise click.UsageError(f"--gpu {name}: not known; choose from {', '.join(GPUS)}")
    return gpu if per_node is None else replace(gpu, per_node=per_node)


def load(path: Path, quantization: str) -> Model:
    """Read one model; a fault names the file and the field."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return read_model(config, quantization=quantization, checkpoint_bytes=checkpoint_bytes(path.parent))
    except (OSError, ValueError, RecursionError) as error:
        said = error if isinstance(error, ConfigError) else f"cannot be read: {error}"
        raise click.UsageError(f"{path}: {said}") from error


def checkpoint_bytes(folder: Path) -> int:
    """Size of the weights, when the checkpoint's index lies beside its config."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return int(index["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def name_in(path: Path) -> str:
    """The id that Hugging Face tools leave in a config."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("_name_or_path") or "")
    except (OSError, ValueError):
        return ""


def engine_of(model: Model, options: dict[str, Any]) -> Engine:
    longest = options["max_model_len"] or min(model.max_length, LONGEST)
    need = options["prompt"] + options["output"]
    if need > longest:
        raise click.UsageError(f"prompt and answer are {need:g} tokens, --max-model-len is {longest}")
    return Engine(
        max_model_len=longest,
        max_num_seqs=options["max_num_seqs"],
        max_num_batched_tokens=options["max_num_batched_tokens"] or 0,
        utilization=options["utilization"],
        kv_element=1 if options["kv_cache_dtype"] == "fp8" else 2,
    )


def workload_of(options: dict[str, Any]) -> Workload:
    mean = options["mean_rate"] or options["rate"]
    if mean > options["rate"]:
        raise click.UsageError(f"--mean-rate {mean:g} is above --rate {options['rate']:g}, the peak")
    names = ("rate", "prompt", "output", "cached", "ttft", "tpot", "efficiency")
    return Workload(mean_rate=mean, **{name: options[name] for name in names})


def cuts(options: dict[str, Any]) -> Sequence[Cut]:
    """The one that was asked for; none: look at all."""
    return tuple(asked(options["tp"], options["pp"]))


def asked(tensor: int | None, pipeline: int | None) -> Iterator[Cut]:
    if tensor or pipeline:
        yield Cut(tensor=tensor or 1, pipeline=pipeline or 1)
