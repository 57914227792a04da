"""A trained model applied to slides, by the readable definition of the model in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wsi_dino.mil.abmil import attention_weights
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.lanes import open_lanes
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.packed import Workspace


@dataclass(frozen=True)
class SlideScore:
    """What a model says of one slide.

    Attributes:
        slide_id: the slide.
        outputs: float64 ``(n_outputs,)``, which the model's objective understands.
        attention: raw score float32 ``(n,)`` of its tiles, in the order of the feature file; see
            `ModelRecord.tile_score` for what it means.
        contributions: float32 ``(n, n_outputs)`` whose sum over the tiles is `outputs`, of models that have them.
    """

    slide_id: str
    outputs: np.ndarray
    attention: np.ndarray
    contributions: np.ndarray | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """float64 ``(n_classes,)``, summing to one, where the outputs are logits of classes."""
        return torch.softmax(torch.from_numpy(self.outputs), 0).numpy()

    @property
    def attention_weights(self) -> np.ndarray:
        """float32 ``(n,)``, summing to one."""
        return attention_weights(torch.from_numpy(self.attention)).numpy()

    @property
    def standard_weights(self) -> np.ndarray:
        """float32 ``(n,)``, summing to one: softmax of the scores less their mean, over their standard deviation.

        For scores that no softmax of the model's own keeps within bounds: of raw ones that lie hundreds apart all
        but a few would be 0 and none of the others above another.

        Examples:
            >>> weights = SlideScore("s", np.zeros(2), np.array([-900.0, 0.0, 900.0])).standard_weights
            >>> [f"{weight:.2f}" for weight in weights]
            ['0.06', '0.21', '0.72']
        """
        raw = self.attention.astype(np.float64)
        standard = torch.from_numpy((raw - raw.mean()) / (raw.std() or 1.0))
        return attention_weights(standard).numpy().astype(np.float32)


def score_slides(
    model: MilModel,
    bags: BagStore,
    slide_ids: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    on_slide: Callable[[str], None] | None = None,
) -> list[SlideScore]:
    """Score slides that have at least one tile, one at a time, in order.

    Raises:
        FeatureFileError: a slide has no feature file, or a broken one.
    """
    device = torch.device(device)
    model = model.to(device).eval()

    def work(slide_id: str, space: Workspace) -> SlideScore:
        score = _score(model, bags, slide_id, device)
        if on_slide is not None:
            on_slide(slide_id)
        return score

    with open_lanes(device, threads) as lanes:
        return lanes.map(work, list(slide_ids))


@torch.no_grad()
def _score(model: MilModel, bags: BagStore, slide_id: str, device: torch.device) -> SlideScore:
    features = torch.from_numpy(bags.features(slide_id)).to(device).float()[None]
    seen = model(features, torch.ones(features.shape[:2], dtype=torch.bool, device=device))
    added = None if seen.contributions is None else seen.contributions[0].cpu().numpy()
    return SlideScore(slide_id, seen.outputs[0].double().cpu().numpy(), seen.attention[0].cpu().numpy(), added)
