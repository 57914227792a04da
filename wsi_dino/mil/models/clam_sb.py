"""CLAM with a single attention branch: gated attention, and tiles of high and low attention told apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi_dino.mil.layers.gated_attention import GatedAttention
from wsi_dino.mil.layers.seeded_dropout import SeededDropout
from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord
from wsi_dino.mil.search_range import Between, OneOf


class ClamHyperparameters(Hyperparameters):
    """Hyper-parameters of CLAM-SB; the defaults are those of the paper.

    Attributes:
        hidden_dim: length of ``h``.
        attention_dim: length inside the attention.
        dropout: on ``h`` and on both branches of the attention.
        bag_weight: share of the slide's loss; the rest is that of the clustering.
        k_sample: tiles of highest and lowest attention that are clustered; at most half of the slide.
        instance_loss: ``svm`` = smooth top-1 SVM with margin 1 and temperature 1, ``ce`` = cross-entropy.
        subtyping: classes exclude each other, so that tiles of high attention are no evidence of the others.
    """

    hidden_dim: Annotated[int, OneOf((128, 256, 512))] = Field(512, ge=1)
    attention_dim: Annotated[int, OneOf((64, 128, 256))] = Field(256, ge=1)
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.25, ge=0, lt=1)
    bag_weight: Annotated[float, Between(0.5, 1.0)] = Field(0.7, gt=0, le=1)
    k_sample: Annotated[int, OneOf((4, 8, 16, 32))] = Field(8, ge=1)
    instance_loss: Literal["svm", "ce"] = "svm"
    subtyping: bool = False


class ClamSb(MilModel):
    """CLAM-SB (Lu et al. 2021, Methods).

    With ``h_i = relu(W_1 x_i)`` and gated attention ``a``, the outputs are ``W_c sum_i a_i h_i``. In training, the
    classifier of clusters of the slide's class learns to tell its ``k`` tiles of highest attention (label 1) from
    the ``k`` of lowest (label 0); with `subtyping`, those of all other classes learn that the ``k`` highest are not
    theirs (label 0). The loss is ``bag_weight`` times that of the slide plus the rest times the mean over tiles and
    classifiers. A slide of one tile has no clusters.

    Examples:
        >>> model = ClamSb(4, 2, ClamHyperparameters())
        >>> tuple(model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)).outputs.shape)
        (3, 2)
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: ClamHyperparameters) -> None:
        super().__init__()
        self.options = options
        self.projection = nn.Linear(embed_dim, options.hidden_dim)
        self.dropout = SeededDropout(options.dropout)
        self.attention = GatedAttention(options.hidden_dim, options.attention_dim, options.dropout)
        self.head = nn.Linear(options.hidden_dim, n_outputs)
        self.clusters = nn.ModuleList(nn.Linear(options.hidden_dim, 2) for _ in range(n_outputs))

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        hidden = self.dropout(torch.relu(self.projection(bags)))
        raw = self.attention(hidden, mask)
        outputs = self.head((torch.softmax(raw, 1)[:, None] @ hidden)[:, 0])
        if not self.training:
            return ModelOutput(outputs, raw)
        clustering = partial(self._clustering, hidden, raw, mask)
        return ModelOutput(outputs, raw, None, ((self.options.bag_weight, outputs),), (clustering,))

    def _clustering(self, hidden: Tensor, raw: Tensor, mask: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        each = [
            self._of_bag(hidden[bag][mask[bag]], raw[bag][mask[bag]], int(truth[bag, 0])) for bag in range(len(hidden))
        ]
        return (1 - self.options.bag_weight) * (torch.stack(each) * weights).sum()

    def _of_bag(self, hidden: Tensor, raw: Tensor, label: int) -> Tensor:
        k = min(self.options.k_sample, len(raw) // 2)
        if k == 0:
            return hidden.sum() * 0
        order = torch.argsort(raw, stable=True)
        lowest, highest = hidden[order[:k]], hidden[order[-k:]]
        ones = torch.ones(k, dtype=torch.int64, device=hidden.device)
        tell = _INSTANCE_LOSSES[self.options.instance_loss]
        own = tell(self.clusters[label](torch.cat([highest, lowest])), torch.cat([ones, ones * 0]))
        if not self.options.subtyping:
            return own
        others = [tell(cluster(highest), ones * 0) for at, cluster in enumerate(self.clusters) if at != label]
        return torch.stack([own, *others]).mean()


def smooth_svm(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the smooth top-1 SVM loss with margin 1 and temperature 1 (Berrada et al. 2018, equation 10).

    Args:
        scores: ``(n, n_classes)``.
        labels: int64 ``(n,)``.

    Returns:
        The mean of ``log sum_j exp(s_j + [j is wrong]) - s_y``, a scalar.
    """
    margin = torch.ones_like(scores).scatter(1, labels[:, None], 0)
    return (torch.logsumexp(scores + margin, 1) - scores.gather(1, labels[:, None])[:, 0]).mean()


_INSTANCE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "svm": smooth_svm,
    "ce": nn.functional.cross_entropy,
}

RECORD = ModelRecord(
    name="clam-sb",
    title="CLAM, single branch: gated attention with clustering of tiles",
    paper="Lu et al. 2021, https://doi.org/10.1038/s41551-020-00682-w",
    hyperparameters=ClamHyperparameters,
    build=ClamSb,
    tile_score="attention",
    needs_classes=True,
)
