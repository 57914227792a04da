"""Image towers of open_clip behind the face of a backbone. Imports torch and open_clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wsi_dino.encoders.backbone import Backbone, TimmCnn, TimmVit
from wsi_dino.encoders.record import Pooling


def make_tower(embed_dim: int, vision: Mapping[str, Any], quick_gelu: bool) -> Any:
    """Return open_clip's image tower for the ``vision_cfg`` of a configuration, without weights or downloads."""
    # The whole model would want the text tower too, whose configuration may have to be fetched.
    from open_clip.model import _build_vision_tower

    settings = dict(vision)
    if settings.get("timm_model_name"):
        settings["timm_model_pretrained"] = False
    return _build_vision_tower(embed_dim, settings, quick_gelu)


def backbone_of(tower: Any) -> OpenClipTower:
    """Return the backbone for a tower: a ViT of open_clip's own, a network of timm, or a ResNet."""
    if hasattr(tower, "trunk"):
        return TimmTower(tower)
    return OwnVit(tower) if hasattr(tower, "transformer") else OwnResNet(tower)


class OpenClipTower(Backbone):
    """What all towers share: ``projected`` is what open_clip's `encode_image` gives, not normalised to length one.

    Attributes:
        model: the tower.
        patch_size: side of a token in px; None for convolutional towers.
        n_prefix_tokens: tokens before the patches.
        token_dim: length of a token, or channels of the last map.
        depth: blocks or stages.
        poolings: what it can give.
    """

    patch_size: int | None = None
    n_prefix_tokens = 0
    token_dim: int
    depth: int
    poolings: tuple[Pooling, ...]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def takes_other_sizes(self) -> bool:
        """Return whether the position table can be resampled to another grid."""
        return False

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Return (batch, dim) for normalised `pixels` (batch, 3, height, width)."""
        if pooling == "projected":
            result = self.model(pixels)
            vectors: Tensor = result[0] if isinstance(result, tuple) else result  # CoCa gives its tokens too
            return vectors.float()
        return self._before_projection(pixels, pooling)

    def _before_projection(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        raise NotImplementedError


class OwnVit(OpenClipTower):
    """open_clip's own ViT: one CLS token; tokens are those after its last norm where it has one for tokens."""

    n_prefix_tokens = 1
    poolings = ("projected", "cls", "mean", "cls+mean")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.patch_size = int(model.patch_size[0])
        self.token_dim, self.depth = int(model.conv1.out_channels), len(model.transformer.resblocks)

    @property
    def takes_other_sizes(self) -> bool:
        """Return whether the position table can be resampled to another grid."""
        return True

    def fit_to(self, input_px: int) -> None:
        """Resample the position table as open_clip does when a model is made for another size."""
        rows = input_px // int(self.patch_size or 1)
        table = self.model.positional_embedding
        side = round((len(table) - 1) ** 0.5)
        if rows == side:
            return
        grid = table[1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = interpolate(grid, size=(rows, rows), mode="bicubic", antialias=True, align_corners=False)
        resampled = torch.cat([table[:1].float(), grid.flatten(2).transpose(1, 2)[0]]).to(table.dtype)
        self.model.positional_embedding = nn.Parameter(resampled, requires_grad=False)

    def _before_projection(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        tokens = self.model.transformer(self.model._embeds(pixels))
        # With an attentional pooler the norm is for what it gives.
        tokens = self.model.ln_post(tokens) if self.model.attn_pool is None else tokens
        return torch.cat([self._pooled(tokens, part) for part in pooling.split("+")], dim=1)

    def _pooled(self, tokens: Tensor, part: str) -> Tensor:
        return tokens[:, 0].float() if part == "cls" else tokens[:, self.n_prefix_tokens :].float().mean(1)

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the patch tokens after each of `layers` (block numbers from 0), before the last norm."""
        return _intermediates(self.model, pixels, layers)


class TimmTower(OpenClipTower):
    """A network of timm with a head of open_clip's."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        trunk = model.trunk
        patch_embed: Any = getattr(trunk, "patch_embed", None)
        is_vit = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks") and patch_embed is not None
        self.token_dim = int(trunk.num_features)
        if is_vit:
            # A stem of convolutions has a grid too, but its patch size is not that of a token.
            self.patch_size = int(model.image_size[0]) // int(patch_embed.grid_size[0])
            self.n_prefix_tokens = int(trunk.num_prefix_tokens)
            self.depth = len(trunk.blocks)
            tokens: tuple[Pooling, ...] = ("cls", "mean", "cls+mean") if self.n_prefix_tokens else ("mean",)
            self.poolings = ("projected", *tokens)
        else:
            self.depth, self.poolings = len(trunk.feature_info), ("projected", "avg")

    @property
    def takes_other_sizes(self) -> bool:
        """Return whether the position table can be resampled to another grid."""
        return self.patch_size is not None and hasattr(self.model.trunk, "set_input_size")

    def fit_to(self, input_px: int) -> None:
        """Resample the position table as timm does."""
        if self.takes_other_sizes:
            self.model.trunk.set_input_size(img_size=input_px)

    def _before_projection(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        trunk: Any = self.model.trunk
        plain = TimmVit(trunk, self.n_prefix_tokens) if self.patch_size else TimmCnn(trunk)
        return plain.vectors(pixels, pooling)

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the maps after each of `layers`: block numbers of a ViT, stages of another network."""
        return _intermediates(self.model, pixels, layers)


class OwnResNet(OpenClipTower):
    """CLIP's ResNet, which ends in an attentional pooler."""

    depth = 5
    poolings = ("projected", "avg")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.token_dim = int(model.attnpool.k_proj.in_features)

    def _before_projection(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        (last,) = self.maps(pixels, [4])
        return last.float().mean((2, 3))

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the maps after each of `layers`: 0 the stem, 1 to 4 the stages."""
        return _intermediates(self.model, pixels, layers)


def _intermediates(tower: Any, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    distinct = sorted(set(layers))
    taken = tower.forward_intermediates(pixels, indices=distinct, intermediates_only=True)["image_intermediates"]
    by_layer = dict(zip(distinct, taken, strict=True))
    return [by_layer[layer] for layer in layers]
