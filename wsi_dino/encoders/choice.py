"""From what was asked (device, precision, runtime) to an encoder that runs so, and faithfully. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.devices import candidate_formats, resolve_device
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.faithfulness import MakeEncoder, first_faithful
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.runtimes import COMPILED, Runtime, parse_runtime
from wsi_dino.errors import EncoderError


@dataclass(frozen=True)
class RunningChoice:
    """Where and how a network is to run.

    Attributes:
        device: that is there.
        precision: as asked.
        runtime: as asked.
    """

    device: str
    precision: str
    runtime: Runtime

    @classmethod
    def of(cls, record: EncoderSpec, device: str, precision: str, runtime: str) -> Self:
        """Check what can be told before weights are read.

        Raises:
            EncoderError: device, precision or runtime are unknown, not there, or do not go together.
        """
        known = parse_runtime(runtime)
        resolved = "cpu" if known in COMPILED and device == "auto" else resolve_device(device)
        if known in COMPILED and resolved != "cpu":
            raise EncoderError(f"Choosing a runtime: {known} runs on a CPU here, not on {device}. Use --device cpu.")
        candidate_formats(precision, resolved, record.precisions, runtime=known)
        return cls(resolved, precision, known)

    def encoder(self, record: EncoderSpec, backbone: Backbone, **settings: Any) -> Encoder:
        """Return an encoder of `backbone`, which it consumes.

        Formats that torch runs on request, or that bf16 vision transformers were measured to bear, are taken as
        they are; other runtimes, and bf16 chosen by ``auto`` for convolutions on a CPU, only if they are faithful.

        Raises:
            EncoderError: the network cannot be exported, or gives other vectors than in fp32.
        """
        formats = candidate_formats(
            self.precision,
            self.device,
            record.precisions,
            runtime=self.runtime,
            is_convolutional=backbone.is_convolutional,
        )
        make: MakeEncoder = partial(Encoder, record, device=self.device, **settings)
        is_sure = self.runtime == "torch" and (len(formats) == 1 or not backbone.is_convolutional)
        if is_sure:
            return make(backbone, precision=formats[0], runtime=self.runtime)
        return first_faithful(make, backbone, formats, self.runtime)
