"""A linear probe on the mean feature: logistic regression, fitted to its optimum."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord, masked_mean, towards_positive


class LinearMeanHyperparameters(Hyperparameters):
    """Hyper-parameters of the linear probe.

    Attributes:
        c: inverse strength of the L2 penalty, see `fit_linear`; None = the best of a grid on the validation loss.
    """

    c: float | None = Field(None, gt=0)


class LinearMean(MilModel):
    """``outputs = H mean_i(x_i) + b``; what a tile contributes is ``(H x_i + b) / n``.

    Examples:
        >>> import torch
        >>> model = LinearMean(4, 2, LinearMeanHyperparameters())
        >>> tuple(model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)).outputs.shape)
        (3, 2)
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: LinearMeanHyperparameters) -> None:
        super().__init__()
        self.c = options.c
        self.head = nn.Linear(embed_dim, n_outputs)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        outputs, of_tiles = self.head(masked_mean(bags, mask)), self.head(bags)
        contributions = of_tiles * mask[..., None] / mask.sum(1)[:, None, None]
        return ModelOutput(outputs, towards_positive(of_tiles, outputs, mask), contributions)


RECORD = ModelRecord(
    name="linear-mean",
    title="linear probe on the mean feature (logistic regression)",
    paper="none: the simplest use of frozen features",
    hyperparameters=LinearMeanHyperparameters,
    build=LinearMean,
    tile_score="the probe's output on the tile alone, positive class less negative; every tile weighs the same",
    is_convex=True,
)
