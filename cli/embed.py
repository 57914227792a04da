"""`wsi-dino embed`: tiles of slides through one or several encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import EncodersOption, JsonOption, RunOption, WorkersOption
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from wsi_dino.cli.embed_processes import Worker
    from wsi_dino.cli.embed_request import EmbedRequest
    from wsi_dino.encoders.record import EncoderSpec
    from wsi_dino.pathology.embed_spec import EmbedSpec
    from wsi_dino.pathology.embedding import EmbedOutcome
    from wsi_dino.pathology.stain import StainReference
    from wsi_dino.run_folder import RunFolder

_MODEL, _PIXELS = "Model and weights", "Slides and pixels"
_SHOWN = ["encoder", "slide_id", "status", "tiles", "seconds", "tiles_per_s"]
_LONG_TABLE = 40


class StoreDtype(StrEnum):
    """Number formats of features on disk."""

    float16 = "float16"
    float32 = "float32"


class PrecisionName(StrEnum):
    """Number formats a network runs in."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class RuntimeName(StrEnum):
    """Libraries that run a network."""

    torch = "torch"
    torch_compile = "torch-compile"
    openvino = "openvino"
    onnxruntime = "onnxruntime"


class BackendName(StrEnum):
    """Slide readers."""

    auto = "auto"
    openslide = "openslide"
    tiled_tiff = "tiled-tiff"
    image = "image"


class StainNorm(StrEnum):
    """Stain normalisations of tiatoolbox."""

    macenko = "macenko"
    vahadane = "vahadane"
    reinhard = "reinhard"


def embed(
    ctx: typer.Context,
    encoder: EncodersOption,
    run: RunOption,
    pooling: Annotated[
        list[str] | None,
        _option(
            _MODEL,
            "--pooling",
            help="How tokens become one vector: mean, cls, cls+mean ...; NAME=POOLING for one of several encoders. "
            "The default is in `wsi-dino encoders NAME`.",
        ),
    ] = None,
    input_px: Annotated[
        list[str] | None,
        _option(
            _MODEL,
            "--input-px",
            help="Side of the square the network sees, tiles are resized to it; NAME=PX for one of several encoders. "
            "Which sides are allowed is in `wsi-dino encoders NAME`.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        _option(_MODEL, "--weights", help="Checkpoint file to use; NAME=FILE for one of several encoders."),
    ] = None,
    weights_dir: Annotated[
        Path | None, _option(_MODEL, "--weights-dir", help="Folder of checkpoints, looked at before cache and hub.")
    ] = None,
    random_weights: Annotated[
        int | None,
        _option(
            _MODEL,
            "--random-weights",
            help="Seed of an untrained network, to measure speed without weights. Marked in the files.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        _option(
            _MODEL,
            "--adapter",
            help="Folder of a LoRA adapter (`mil --adapt lora` makes them) to put into the encoder; NAME=DIR for one "
            "of several. Features go to RUN/features/ENCODER+ADAPTER.",
        ),
    ] = None,
    called: Annotated[
        str | None, _option(_MODEL, "--as", help="Name for the encoder with its --adapter, and for its features.")
    ] = None,
    precision: Annotated[
        PrecisionName,
        _option(
            _MODEL,
            "--precision",
            help="Number format of the network; auto: bf16 where it is fast and true to fp32, else fp32. int8 needs "
            "another --runtime.  [default: auto]",
        ),
    ] = PrecisionName.auto,
    runtime: Annotated[
        RuntimeName,
        _option(
            _MODEL,
            "--runtime",
            help="Library that runs the network. openvino and onnxruntime (extras `openvino`, `onnx`; on a CPU) and "
            "torch-compile are taken only if their vectors have a cosine of 0.999 to fp32.  [default: torch]",
        ),
    ] = RuntimeName.torch,
    batch_size: Annotated[
        int, _option(_MODEL, "--batch-size", min=0, help="Tiles at once; 0 chooses.  [default: 0]")
    ] = 0,
    store_dtype: Annotated[
        StoreDtype,
        _option(
            _MODEL,
            "--store-dtype",
            help="Features on disk. float16 has half the size and a cosine of 0.9999999 to float32.  "
            "[default: float32]",
        ),
    ] = StoreDtype.float32,
    slides_folder: Annotated[
        Path | None,
        _option(_PIXELS, "--slides", help="Folder where the slides lie now, if not where `tile` found them."),
    ] = None,
    backend: Annotated[
        BackendName, _option(_PIXELS, "--backend", help="Slide reader; auto takes the fastest that fits.")
    ] = BackendName.auto,
    stain_norm: Annotated[
        StainNorm | None,
        _option(
            _PIXELS,
            "--stain-norm",
            help="Bring the stains of each slide to those of --stain-reference (extra `tiatoolbox`); estimated once "
            "a slide. Vahadane's method is unstable with today's scikit-learn.",
        ),
    ] = None,
    stain_reference: Annotated[
        Path | None, _option(_PIXELS, "--stain-reference", help="Image of H&E tissue whose stains are the aim.")
    ] = None,
    workers: WorkersOption = 0,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="auto|cpu|cuda|cuda:N|mps",
            help="Where models run; auto takes cuda, then mps, then cpu. With several GPUs, auto and cuda start a "
            "process on each; a list such as cuda:0,cuda:2 names them.",
        ),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Turn the tiles of a run into feature vectors.

    Writes RUN/features/ENCODER/SLIDE.h5 and RUN/embed.csv. Killed or interrupted, the same command goes on
    from the last batch; a changed option, weight, tile or slide is never served from old files. Several
    processes may work on one RUN. Exit code 1 when a slide failed or has no tiles.
    """
    from wsi_dino.run_folder import RunFolder

    names = list(dict.fromkeys(encoder))
    if slides_folder is not None and not slides_folder.is_dir() and typed(ctx, "slides_folder"):
        raise ConfigError(f"--slides {slides_folder} is not a folder.")
    folder = RunFolder(run).require()
    _require_tiles(folder)
    stain = _load_stain(stain_norm, stain_reference)
    chosen = encoder_choices(
        names,
        pooling=per_encoder("--pooling", pooling, names),
        input_px=per_encoder("--input-px", input_px, names),
        weights=per_encoder("--weights", weights, names),
        adapter=per_encoder("--adapter", adapter, names),
        weights_dir=weights_dir,
        random_weights=random_weights,
        called=called,
        precision=precision.value,
        runtime=runtime.value,
    )
    encoders = tuple(arguments for _, arguments in chosen)
    spec = _make_spec(store_dtype, backend, precision, runtime, batch_size, stain)
    from wsi_dino.cli.embed_request import EmbedRequest

    request = EmbedRequest(run, encoders, spec, stain_reference, slides_folder, workers)
    outcome, processes = _embed(request, device, len(folder.row_names("tile")))
    if as_json:
        console.print_json(_as_json(run, outcome, processes))
    else:
        _print_summary(outcome, folder)
    console.leave(sum(one.count("failed") + one.count("empty") for one in outcome.encoders))


def _embed(request: EmbedRequest, device: str, n_slides: int) -> tuple[EmbedOutcome, list[Worker]]:
    from wsi_dino.cli.embed_devices import plan_devices
    from wsi_dino.cli.embed_processes import embed_in_processes
    from wsi_dino.cli.embed_request import embed_here

    devices = plan_devices(device, n_slides)
    with console.progress("embed", unit="tiles") as progress:
        if len(devices) > 1:
            console.say(f"one process on each of {', '.join(devices)}")
            return embed_in_processes(request, devices, progress, console.say)
        return embed_here(request, devices[0], progress=progress, notice=console.say), []


def typed(ctx: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line, not only in wsi-dino.yaml."""
    return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _require_tiles(folder: RunFolder) -> None:
    """Fail before torch is imported and weights are read."""
    if not folder.row_names("tile"):
        raise ConfigError(
            f"Embedding {folder.path}: no slide of it is tiled. Run `wsi-dino tile SLIDES --run {folder.path}` first."
        )


def _load_stain(method: StainNorm | None, reference: Path | None) -> StainReference | None:
    if (method is None) != (reference is None):
        raise ConfigError("--stain-norm METHOD and --stain-reference IMAGE need each other: give both or none.")
    if method is None or reference is None:
        return None
    from wsi_dino.pathology.stain import StainReference

    return StainReference(method.value, reference)


def _make_spec(
    store_dtype: StoreDtype,
    backend: BackendName,
    precision: PrecisionName,
    runtime: RuntimeName,
    batch_size: int,
    stain: StainReference | None,
) -> EmbedSpec:
    from wsi_dino.pathology.embed_spec import EmbedSpec

    return EmbedSpec(
        store_dtype=store_dtype.value,
        backend=backend.value,
        precision=precision.value,
        runtime=runtime.value,
        batch_size=batch_size,
        stain_method=None if stain is None else stain.method,
        stain_reference_sha256=None if stain is None else stain.sha256,
    )


def encoder_choices(
    names: Sequence[str],
    *,
    pooling: Mapping[str, str],
    input_px: Mapping[str, str],
    weights: Mapping[str, str],
    adapter: Mapping[str, str],
    random_weights: int | None,
    **settings: Any,
) -> tuple[tuple[EncoderSpec, dict[str, Any]], ...]:
    """Return the record of each encoder and its arguments of `load_encoder`; what is wrong costs no import of torch."""
    _check_adapters(names, adapter, settings["called"])
    if random_weights is not None and weights:
        raise ConfigError("--weights and --random-weights exclude each other: give one of them.")
    for name, file in weights.items():
        if not Path(file).exists():
            raise WeightsError(f"Loading weights for {name}: --weights {file} is not a file.")
    from wsi_dino.encoders.registry import get_record

    sides = {name: _side_px(text) for name, text in input_px.items()}
    return tuple(
        (
            get_record(name, near=[Path(path) for path in (weights.get(name), settings["weights_dir"]) if path]),
            {
                "name": name,
                "pooling": pooling.get(name),
                "input_px": sides.get(name),
                "weights": Path(weights[name]) if name in weights else None,
                "random_weights": random_weights,
                "adapter": Path(adapter[name]) if name in adapter else None,
                **settings,
            },
        )
        for name in names
    )


def _check_adapters(names: Sequence[str], adapter: Mapping[str, str], called: str | None) -> None:
    """Refuse what can be told without torch: a folder that is no adapter, one of another encoder, a wrong --as."""
    from wsi_dino.encoders.adapter import read_adapter

    for name, folder in adapter.items():
        read_adapter(Path(folder)).require_encoder(name)
    if called is None:
        return
    if not called:
        raise ConfigError("--as is empty; leave it out, or name the encoder with its --adapter.")
    if not adapter or len(names) > 1:
        raise ConfigError(f"--as {called} names one encoder with its --adapter: give both, with one --encoder.")
    from wsi_dino.encoders.registry import records

    if called in {*names, *(record.name for record in records())}:
        raise ConfigError(f"--as {called}: that is the name of an encoder without an adapter. Choose another.")


def _side_px(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"--input-px {text}: expected a whole number of pixels, as in --input-px 448.")
    return int(text)


def per_encoder(option: str, values: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Sort ``VALUE`` and ``NAME=VALUE`` by encoder.

    Raises:
        ConfigError: a value without a name is given for several encoders, or two for one encoder.
    """
    result: dict[str, str] = {}
    for text in values or ():
        name, _, value = text.partition("=")
        named = bool(value) and name in names
        if not named and option in ("--weights", "--adapter") and len(names) > 1:
            raise ConfigError(
                f"{option} {text}: with several encoders write NAME=FILE, NAME one of {', '.join(names)}."
            )
        for key in [name] if named else names:
            if key in result:
                raise ConfigError(f"{option} is given twice for {key}: {result[key]} and {value if named else text}.")
            result[key] = value if named else text
    return result


def _as_json(run: Path, outcome: EmbedOutcome, processes: Sequence[Worker]) -> dict[str, Any]:
    several = {"processes": [{"device": one.device, "trouble": one.trouble} for one in processes]}
    return {
        "command": "embed",
        "run": str(run),
        "encoders": {
            one.name: {
                "done": one.count("done"),
                "empty": one.count("empty"),
                "failed": one.count("failed"),
                "slides_kept": one.slides_kept,
                "tiles": sum(int(row.get("tiles") or 0) for row in one.rows),
                "tiles_encoded": one.tiles_encoded,
                "tiles_resumed": one.tiles_resumed,
                "tiles_per_s": round(one.tiles_encoded / outcome.seconds, 2),
                "limited_by": outcome.limited_by if one.tiles_encoded else None,
                "seconds": round(outcome.seconds, 3),
            }
            for one in outcome.encoders
        },
        "load": outcome.load,
        "rows": [row for one in outcome.encoders for row in one.rows],
        **(several if processes else {}),
    }


def _print_summary(outcome: EmbedOutcome, folder: RunFolder) -> None:
    rows = [row for one in outcome.encoders for row in one.rows]
    bad = [row for row in rows if row["status"] != "done"]
    console.print_table(rows if len(rows) <= _LONG_TABLE else bad, _SHOWN)
    for row in bad:
        console.say(f"{row['status']}: {row['slide_id']} ({row['encoder']}): {row['reason']}")
    for one in outcome.encoders:
        console.say(
            f"{one.name}: {one.count('done')} slides done ({one.slides_kept} of them before), "
            f"{one.count('empty')} empty, {one.count('failed')} failed; {one.tiles_encoded} tiles encoded, "
            f"{one.tiles_resumed} resumed, {one.tiles_encoded / outcome.seconds:.1f} tiles/s"
        )
    if any(one.tiles_encoded for one in outcome.encoders):
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in outcome.load.items())
        console.say(f"limited by {outcome.limited_by} (busy: {shares})")
    console.say(f"{folder.path / 'embed.csv'} lists all; features are in {folder.path / 'features'}")
