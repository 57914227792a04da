"""From the facts of a model to a network with fresh weights. Imports torch."""

from __future__ import annotations

from torch import nn

from wsi_dino.segmentation.decoders import make_decoder
from wsi_dino.segmentation.feature_maps import Layer
from wsi_dino.segmentation.model_file import SegmentationModel


def build_network(facts: SegmentationModel) -> nn.Module:
    """Return the decoder or network that `facts` describe.

    Raises:
        ConfigError: a network of MONAI is wanted, which is not installed.
    """
    n_outputs = len(facts.label_values)
    if facts.kind != "decoder":
        from wsi_dino.segmentation.monai_networks import make_network

        window = (facts.window_slices, facts.window_cells, facts.window_cells)
        return make_network(facts.kind, len(facts.channels), n_outputs, window)
    name = next(known for known in ("conv3d", "linear", "unetr") if known == facts.decoder)
    return make_decoder(
        name,  # type: ignore[arg-type]
        [Layer(*layer) for layer in facts.layers],
        n_outputs,
        facts.n_up,
        len(facts.channels) if facts.image_skip else 0,
        is_light=facts.is_light,
    )
