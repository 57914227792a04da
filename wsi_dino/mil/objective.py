"""What a model of slides is trained towards: from outputs and truth to a loss, and from outputs to what is reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import logsigmoid


class Objective(BaseModel, ABC):
    """A loss, and the meaning of the outputs; what it learnt of the training truth (scales, cuts) is in its fields.

    Attributes:
        couples_bags: the loss of a bag depends on the others of its step, so that they must be seen together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    couples_bags: ClassVar[bool] = False

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Numbers that a model gives for a bag."""

    @property
    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """What the columns of `scores` are."""

    @abstractmethod
    def loss(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return the sum over bags of weight times loss, a scalar.

        Args:
            outputs: float ``(n_bags, n_outputs)``.
            truth: float32 ``(n_bags, k)``; NaN = not known.
            weights: float32 ``(n_bags,)``.
        """

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """Return what is reported, ``(n_bags, len(score_names))``: probabilities, values or risks."""

    def bag_weights(self, truth: Tensor) -> Tensor:
        """Return float32 ``(n_bags,)``: how much each bag counts beside the others."""
        return torch.ones(len(truth))

    def after_training(self, outputs: Tensor, truth: Tensor) -> Objective:
        """Return the objective with what only the outputs of the trained model on the training bags tell."""
        return self

    def loss_and_gradient(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient at the outputs, by autograd."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            loss = self.loss(leaf, truth, weights)
            (slope,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), slope


class CrossEntropy(Objective):
    """One of several classes; truth is ``(n_bags, 1)`` class indices.

    Attributes:
        class_weights: one a class.

    Examples:
        >>> CrossEntropy.of([0, 0, 0, 1], n_classes=2).class_weights
        (0.6666666666666666, 2.0)
    """

    kind: Literal["cross-entropy"] = "cross-entropy"
    class_weights: tuple[float, ...]

    @classmethod
    def of(cls, labels: Sequence[int], n_classes: int, *, balanced: bool = True) -> CrossEntropy:
        """Return it with classes weighted by their inverse frequency among `labels`, or alike."""
        if not balanced:
            return cls(class_weights=(1.0,) * n_classes)
        counts = np.maximum(np.bincount(labels, minlength=n_classes), 1)
        return cls(class_weights=tuple((len(labels) / (n_classes * counts)).tolist()))

    @property
    def n_outputs(self) -> int:
        """The classes."""
        return len(self.class_weights)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The classes by number."""
        return tuple(map(str, range(self.n_outputs)))

    def bag_weights(self, truth: Tensor) -> Tensor:
        """Return the weight of each bag's class."""
        return torch.tensor(self.class_weights, dtype=torch.float32)[truth[:, 0].long()]

    def loss(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of minus the log-probability of the true class."""
        log_p = torch.log_softmax(outputs, 1)
        return -(log_p.gather(1, truth[:, :1].long())[:, 0] * weights).sum()

    def loss_and_gradient(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return both by hand: (p - one-hot) * weight."""
        log_p, chosen = torch.log_softmax(outputs, 1), truth[:, :1].long()
        loss = -(log_p.gather(1, chosen)[:, 0] * weights).sum()
        return loss, log_p.exp().scatter_add(1, chosen, -torch.ones_like(log_p[:, :1])) * weights[:, None]

    def scores(self, outputs: Tensor) -> Tensor:
        """Return probabilities that sum to one."""
        return torch.softmax(outputs, 1)


class BinaryPerLabel(Objective):
    """Several labels that may each be true; truth is ``(n_bags, n_labels)`` of 0, 1 and NaN (not known).

    Attributes:
        negative_weights, positive_weights: of each label.
        thresholds: the cut of each label on its probability, chosen on validation slides after training.
    """

    kind: Literal["binary-per-label"] = "binary-per-label"
    negative_weights: tuple[float, ...]
    positive_weights: tuple[float, ...]
    thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, truth: np.ndarray, *, balanced: bool = True) -> BinaryPerLabel:
        """Return it with both values of each label weighted by their inverse frequency, or alike.

        Examples:
            >>> BinaryPerLabel.of(np.array([[0], [0], [0], [1], [np.nan]])).positive_weights
            (2.0,)
        """
        if not balanced:
            return cls(negative_weights=(1.0,) * truth.shape[1], positive_weights=(1.0,) * truth.shape[1])
        known = np.maximum(np.isfinite(truth).sum(0), 1)
        negative, positive = ((known / (2 * np.maximum((truth == v).sum(0), 1))).tolist() for v in (0, 1))
        return cls(negative_weights=tuple(negative), positive_weights=tuple(positive))

    @property
    def n_outputs(self) -> int:
        """The labels."""
        return len(self.positive_weights)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The labels by number."""
        return tuple(map(str, range(self.n_outputs)))

    def loss(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return the cross-entropy of known labels, summed over bags and divided by the number of labels."""
        known = torch.isfinite(truth)
        is_true = (truth == 1).to(outputs.dtype)
        positive, negative = (outputs.new_tensor(each) for each in (self.positive_weights, self.negative_weights))
        each = positive * is_true * logsigmoid(outputs) + negative * (1 - is_true) * logsigmoid(-outputs)
        return -(torch.where(known, each, 0).sum(1) * weights).sum() / self.n_outputs

    def scores(self, outputs: Tensor) -> Tensor:
        """Return the probability of each label."""
        return torch.sigmoid(outputs)


class SquaredError(Objective):
    """A number; truth is ``(n_bags, 1)`` in the unit of its column.

    Attributes:
        mean, scale: mean and standard deviation of the training values; outputs are in these terms.

    Examples:
        >>> objective = SquaredError.of(np.array([10.0, 30.0]))
        >>> objective.scores(torch.tensor([[0.0], [1.0]])).tolist()
        [[20.0], [30.0]]
    """

    kind: Literal["squared-error"] = "squared-error"
    mean: float
    scale: float = Field(gt=0)

    @classmethod
    def of(cls, values: np.ndarray) -> SquaredError:
        """Return it with mean and scale of these training values."""
        return cls(mean=float(np.mean(values)), scale=float(np.std(values)) or 1.0)

    @property
    def n_outputs(self) -> int:
        """One."""
        return 1

    @property
    def score_names(self) -> tuple[str, ...]:
        """The value."""
        return ("value",)

    def loss(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of squared errors, in units of the variance of training."""
        return ((outputs[:, 0] - (truth[:, 0] - self.mean) / self.scale) ** 2 * weights).sum()

    def scores(self, outputs: Tensor) -> Tensor:
        """Return values in the unit of the column."""
        return outputs * self.scale + self.mean


class DiscreteTimeHazard(Objective):
    """Survival over intervals of time; truth is ``(n_bags, 2)``: time, and event (1) or censored (0).

    Output ``k`` is the logit of the hazard ``h_k``: the probability of the event in interval ``k`` of those who
    came to it without. The loss is minus the log-likelihood: an event in interval ``k`` gives ``h_k`` times all
    ``1 - h_j`` before; a censored patient all ``1 - h_j`` before his interval and the root of that of his own,
    as if he had been watched for half of it. That is the rule of the actuarial life table: with one hazard for
    all, the maximum is events / (at risk - censored / 2).

    Attributes:
        cuts: where an interval ends and the next begins; a time on a cut belongs to the earlier one.
        end: longest time of training, where the last interval is taken to end.
        horizon: time for which survival is reported.
    """

    kind: Literal["discrete-time-hazard"] = "discrete-time-hazard"
    cuts: tuple[float, ...]
    end: float
    horizon: float

    @classmethod
    def of(cls, truth: np.ndarray, *, n_intervals: int, horizon: float) -> DiscreteTimeHazard:
        """Return it with cuts at even quantiles of the event times of training ``(n, 2)``.

        Examples:
            >>> truth = np.array([[1, 1], [2, 1], [3, 1], [4, 1], [9, 0]])
            >>> DiscreteTimeHazard.of(truth, n_intervals=2, horizon=3.0).cuts
            (2.5,)
        """
        times, end = truth[truth[:, 1] == 1, 0], float(truth[:, 0].max())
        cuts = np.unique(np.quantile(times, np.arange(1, n_intervals) / n_intervals)) if len(times) else np.empty(0)
        return cls(cuts=tuple(cuts[(cuts > 0) & (cuts < end)].tolist()), end=end, horizon=horizon)

    @property
    def n_outputs(self) -> int:
        """The intervals."""
        return len(self.cuts) + 1

    @property
    def score_names(self) -> tuple[str, ...]:
        """Risk, and survival at the horizon."""
        return ("risk", "survival")

    def loss(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of minus the log-likelihood."""
        time, event = truth[:, 0].contiguous(), truth[:, 1:] == 1
        interval = torch.bucketize(time, torch.tensor(self.cuts, dtype=time.dtype, device=time.device))[:, None]
        place = torch.arange(self.n_outputs, device=outputs.device)[None]
        here = place == interval
        survived = (place < interval) + 0.5 * (here & ~event)
        each = torch.where(here & event, logsigmoid(outputs), 0) + survived * logsigmoid(-outputs)
        return -(each.sum(1) * weights).sum()

    def survival_at(self, outputs: Tensor, time: float) -> Tensor:
        """Return ``(n_bags,)`` probabilities to be without event at `time`; hazards are even inside an interval."""
        ends = outputs.new_tensor([*self.cuts, self.end])
        starts = outputs.new_tensor([0.0, *self.cuts])
        passed = ((time - starts) / (ends - starts)).clamp(0, 1)
        return (logsigmoid(-outputs) * passed).sum(1).exp()

    def scores(self, outputs: Tensor) -> Tensor:
        """Return risk (one less the mean of survival over the ends of the intervals) and survival at the horizon."""
        survival = logsigmoid(-outputs).cumsum(1).exp()
        return torch.stack([1 - survival.mean(1), self.survival_at(outputs, self.horizon)], 1)


class CoxPartialLikelihood(Objective):
    """Survival by Cox's partial likelihood, ties as Efron's; truth is ``(n_bags, 2)``: time, and event or censored.

    The output is a log hazard, known but for a constant. Those at risk are the bags of the same step.

    Attributes:
        horizon: time for which survival is reported.
        centre: mean output of training, taken off so that risks are against the mean training slide.
        cumulative_hazard: Breslow's estimate for such a slide at the horizon; None before `after_training`.
    """

    couples_bags: ClassVar[bool] = True
    kind: Literal["cox-partial-likelihood"] = "cox-partial-likelihood"
    horizon: float
    centre: float = 0.0
    cumulative_hazard: float | None = None

    @property
    def n_outputs(self) -> int:
        """One."""
        return 1

    @property
    def score_names(self) -> tuple[str, ...]:
        """Risk, and survival at the horizon."""
        return ("risk", "survival")

    def loss(self, outputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return minus the weighted log partial likelihood; 0 without an event.

        Inside the logarithm bags are weighted by their share of the mean weight.
        """
        eta, (time, event) = outputs[:, 0].double(), truth.double().T
        happened = torch.nonzero(event == 1)[:, 0]
        if not len(happened):
            return (outputs * 0).sum()
        weight = weights.double()
        tied = time[happened, None] == time[happened]
        n_tied = tied.sum(1)
        share = tied.tril(-1).sum(1) / n_tied  # Efron: 0, 1/d ... of the d tied ones are thought gone
        top = eta.detach().max()
        hazard = (eta - top).exp() * weight / weight.mean()
        at_risk = (time[None] >= time[happened, None]).double() @ hazard
        left = at_risk - share * (tied.double() @ hazard[happened])
        mean_weight = tied.double() @ weight[happened] / n_tied
        loss = (mean_weight * (left.log() + top) - weight[happened] * eta[happened]).sum()
        return loss.to(outputs.dtype)

    def after_training(self, outputs: Tensor, truth: Tensor) -> CoxPartialLikelihood:
        """Return it with the centre and Breslow's cumulative hazard at the horizon."""
        eta, (time, event) = outputs[:, 0].double(), truth.double().T
        centre = eta.mean()
        hazard = (eta - centre).exp()
        counted = time[(event == 1) & (time <= self.horizon)]
        steps = 1 / ((time[None] >= counted[:, None]).double() @ hazard)
        return self.model_copy(update={"centre": float(centre), "cumulative_hazard": float(steps.sum())})

    def scores(self, outputs: Tensor) -> Tensor:
        """Return risk (log hazard ratio against the mean training slide) and survival at the horizon."""
        risk = outputs[:, 0] - self.centre
        base = float("nan") if self.cumulative_hazard is None else self.cumulative_hazard
        return torch.stack([risk, (-base * risk.exp()).exp()], 1)


AnyObjective = Annotated[
    CrossEntropy | BinaryPerLabel | SquaredError | DiscreteTimeHazard | CoxPartialLikelihood,
    Field(discriminator="kind"),
]
