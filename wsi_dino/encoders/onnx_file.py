"""What an ONNX file says of itself: input, output, preparation of pixels. Reads with onnxruntime; needs no torch."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wsi_dino.encoders.extras import require_extra
from wsi_dino.errors import WeightsError
from wsi_dino.provenance import file_sha256

# A table entry of the format, key "location": a file beside this one that holds tensors.
_EXTERNAL_FILE = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)
_FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16"}
# What is taken where neither the file nor a JSON file beside it says anything.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ASSUMED_INPUT_PX = 224

Triple = tuple[float, float, float]


class OnnxSettings(BaseModel):
    """What ``FILE.json`` beside an ONNX file, or the file's own metadata, may say.

    Attributes:
        mean, std: per channel, on a 0..1 scale.
        interpolation: of the resize to `input_px`.
        input_px: side of the square image, where the file leaves it open; `input_multiple_px` allows others.
        output: name of the output to take, where there are several.
        pooling: of an output of tokens: ``cls`` or ``mean``; `n_prefix_tokens` come before the patches.
        licence, licence_url, training_data, notes: as in a record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    input_px: int | None = Field(default=None, gt=0)
    input_multiple_px: int | None = Field(default=None, gt=0)
    output: str | None = None
    pooling: Literal["cls", "mean"] | None = None
    n_prefix_tokens: int = Field(default=1, ge=0)
    licence: str = "unknown"
    licence_url: str = ""
    training_data: str = ""
    notes: str = ""


class OnnxDescription(BaseModel):
    """An ONNX file that is a network from one image to one embedding.

    Attributes:
        input_name, input_dtype: of the image (batch, 3, height, width).
        batch_size: of a file that takes no other; None where it takes any.
        input_px: the side it takes; None where it takes any.
        output_name: of the embedding; `output_rank` 2 for vectors (batch, dim), 3 for tokens
            (batch, n_tokens, dim), 4 for maps (batch, dim, height, width).
        embed_dim: length of a vector.
        settings: from the JSON file and the metadata.
    """

    model_config = ConfigDict(frozen=True)

    input_name: str
    input_dtype: str
    batch_size: int | None
    input_px: int | None
    output_name: str
    output_rank: int
    embed_dim: int
    settings: OnnxSettings


def open_session(path: Path, encoder: str, *, n_threads: int, on_gpu: bool = False, quickly: bool = False) -> Any:
    """Return an onnxruntime session of a file.

    Args:
        path: the file.
        encoder: name for messages.
        n_threads: that one run may use.
        on_gpu: with CUDA, where this onnxruntime has it.
        quickly: leave out optimisation, for reading shapes alone.

    Raises:
        WeightsError: the file is not one that onnxruntime can run.
        EncoderError: onnxruntime is not installed.
    """
    runtime = require_extra("onnxruntime", "onnx", encoder)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
    options.log_severity_level = 3
    if quickly:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    gpu = ["CUDAExecutionProvider"] if on_gpu else []
    try:
        return runtime.InferenceSession(str(path), options, providers=[*gpu, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type of its own for every cause
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(
            f"Encoder {encoder}: {path} is not an ONNX file that onnxruntime {runtime.__version__} can run ({reason})."
        ) from error


def describe(path: Path, encoder: str) -> OnnxDescription:
    """Return what a file and the JSON file beside it say; remembered while neither changes.

    Raises:
        WeightsError: there is no such file, it cannot be run, it is no network from one image to an
            embedding, or the JSON file is wrong.
    """
    if not path.is_file():
        raise WeightsError(
            f"Encoder {encoder}: there is no file {path}. After onnx/ comes its path, as seen from {Path.cwd()}."
        )
    beside = path.with_name(f"{path.name}.json")
    stamps = tuple((item.stat().st_mtime_ns, item.stat().st_size) for item in (path, beside) if item.is_file())
    return _described(path, encoder, stamps)


@lru_cache(maxsize=8)
def _described(path: Path, encoder: str, stamps: tuple[tuple[int, int], ...]) -> OnnxDescription:
    session = open_session(path, encoder, n_threads=1, quickly=True)
    settings = _settings(path, encoder, session.get_modelmeta().custom_metadata_map)
    image = _image_input(session, encoder)
    output = _chosen_output(session, settings, encoder)
    input_px = image.shape[2] if isinstance(image.shape[2], int) else None
    batch_size = image.shape[0] if isinstance(image.shape[0], int) else None
    shape = _run_once(session, image, output, input_px or settings.input_px or ASSUMED_INPUT_PX, batch_size, encoder)
    if len(shape) not in (2, 3, 4):
        raise WeightsError(
            f"Encoder {encoder}: expected an output of shape (batch, dim), (batch, tokens, dim) or "
            f"(batch, dim, height, width), got {output.name} of shape {shape}."
        )
    if len(shape) == 3 and settings.pooling is None:
        raise WeightsError(
            f"Encoder {encoder}: {output.name} is a row of tokens {shape}. Say how they become one vector: "
            f'{{"pooling": "cls"}} or "mean" in {path}.json.'
        )
    return OnnxDescription(
        input_name=image.name,
        input_dtype=_FLOATS[image.type],
        batch_size=batch_size,
        input_px=input_px,
        output_name=output.name,
        output_rank=len(shape),
        embed_dim=shape[1] if len(shape) == 4 else shape[-1],
        settings=settings,
    )


def _settings(path: Path, encoder: str, metadata: dict[str, str]) -> OnnxSettings:
    """Join the metadata of the file with the JSON file beside it, which has the last word."""
    beside = path.with_name(f"{path.name}.json")
    stated = {key: _plain(metadata[key]) for key in OnnxSettings.model_fields if key in metadata}
    place = "its metadata"
    try:
        if beside.is_file():
            place = str(beside)
            stated |= json.loads(beside.read_text(encoding="utf-8"))
        return OnnxSettings.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise WeightsError(
            f"Encoder {encoder}: {place}: {key}: {first['msg']}, got {first['input']!r}. "
            f"Known are {', '.join(OnnxSettings.model_fields)}."
        ) from error
    except (ValueError, TypeError, OSError) as error:
        raise WeightsError(f"Encoder {encoder}: {beside} is not a JSON object ({error}).") from error


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _image_input(session: Any, encoder: str) -> Any:
    inputs = session.get_inputs()
    listed = ", ".join(f"{item.name} {_shape(item)} {item.type}" for item in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _FLOATS:
        raise WeightsError(
            f"Encoder {encoder}: expected one float input (batch, 3, height, width), got {listed or 'none'}."
        )
    channels, height, width = inputs[0].shape[1:]
    if channels == 3 or (not isinstance(channels, int) and width != 3):
        if isinstance(height, int) and isinstance(width, int) and height != width:
            raise WeightsError(f"Encoder {encoder}: expected a square image, got an input {_shape(inputs[0])}.")
        return inputs[0]
    raise WeightsError(
        f"Encoder {encoder}: expected an input (batch, 3, height, width), got {listed}. "
        "Export the network with channels first."
    )


def _shape(item: Any) -> str:
    return f"({', '.join(map(str, item.shape))})"


def _chosen_output(session: Any, settings: OnnxSettings, encoder: str) -> Any:
    outputs = session.get_outputs()
    listed = ", ".join(f"{item.name} {_shape(item)}" for item in outputs)
    wanted = [item for item in outputs if item.name == settings.output] if settings.output else outputs
    if len(wanted) > 1:
        wanted = [item for item in outputs if len(item.shape) == 2]
    if len(wanted) != 1:
        raise WeightsError(
            f"Encoder {encoder}: expected one output of vectors"
            + (f" named {settings.output!r}" if settings.output else "")
            + f', got {listed}. Name the one to take: {{"output": "NAME"}} in FILE.onnx.json.'
        )
    return wanted[0]


def _run_once(
    session: Any, image: Any, output: Any, side_px: int, batch_size: int | None, encoder: str
) -> tuple[int, ...]:
    """Return the shape of the output; what the file declares is not always what it gives."""
    if all(isinstance(length, int) for length in output.shape[1:]):
        return (batch_size or 1, *output.shape[1:])
    import numpy as np

    zeros = np.zeros((batch_size or 1, 3, side_px, side_px), _FLOATS[image.type])
    try:
        (result,) = session.run([output.name], {image.name: zeros})
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(
            f"Encoder {encoder}: it does not run on an image of {side_px} px ({reason}). "
            'Say which side it takes: {"input_px": N} in FILE.onnx.json.'
        ) from error
    return tuple(result.shape)


def file_sha256_with_external(path: Path) -> str:
    """Return the SHA-256 of an ONNX file; of one with tensors in other files, that of the digests of all of them.

    Raises:
        WeightsError: a file with tensors is missing.
    """
    beside = external_files(path)
    if not beside:
        return file_sha256(path)
    missing = [item for item in beside if not item.is_file()]
    if missing:
        raise WeightsError(f"Encoder onnx/{path}: its tensors lie in {missing[0]}, which is not there.")
    digests = "".join(file_sha256(item) for item in (path, *beside))
    return hashlib.sha256(digests.encode()).hexdigest()


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside `path` that hold tensors of it, by name; most ONNX files have none."""
    if path.stat().st_size == 0:
        return ()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        spans = [(found.end(), found[1][0]) for found in _EXTERNAL_FILE.finditer(content)]
        names = {content[start : start + length].decode("utf-8", "replace") for start, length in spans}
    return tuple(path.parent / name for name in sorted(names))
