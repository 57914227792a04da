"""Self-attention over long sequences by Nystrom's approximation; exact where the sequence is short."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi_dino.mil.layers.seeded_dropout import SeededDropout


class NystromAttention(nn.Module):
    """Multi-head self-attention of one sequence (Xiong et al. 2021, equation 13).

    ``softmax(Q K~') pinv(softmax(Q~ K~')) softmax(Q~ K') V``, where ``Q~`` and ``K~`` are the means of as many
    segments of neighbours as there are landmarks; the segments' lengths differ by one at most, so nothing is padded.
    With no more tokens than landmarks attention is exact. A depthwise convolution of the values over neighbours is
    added, as in that paper.

    Args:
        width: length of a token.
        n_heads: divides `width`.
        n_landmarks: segments.
        n_iterations: of the pseudo-inverse, see `iterative_pinv`.
        kernel: of the convolution, odd; 0 = none.
        dropout: on what comes out.
    """

    def __init__(
        self, width: int, n_heads: int, n_landmarks: int, n_iterations: int = 6, kernel: int = 33, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.n_heads, self.n_landmarks, self.n_iterations = n_heads, n_landmarks, n_iterations
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.neighbours = (
            nn.Conv2d(n_heads, n_heads, (kernel, 1), padding=(kernel // 2, 0), groups=n_heads, bias=False)
            if kernel
            else None
        )
        self.dropout = SeededDropout(dropout)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from every token to every token.

        Args:
            tokens: ``(n, width)``.

        Returns:
            ``(n, width)``, and how the first token attends to all, mean over heads, ``(n,)``: sums to one, and with
            Nystrom's approximation may fall slightly below zero.
        """
        n = len(tokens)
        q, k, v = self.to_qkv(tokens).view(n, 3, self.n_heads, -1).permute(1, 2, 0, 3)
        q = q * q.shape[-1] ** -0.5
        mixed, first = _exact(q, k, v) if n <= self.n_landmarks else self._nystrom(q, k, v)
        if self.neighbours is not None:
            mixed = mixed + self.neighbours(v)
        return self.dropout(self.to_out(mixed.transpose(0, 1).reshape(n, -1))), first

    def _nystrom(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q_mean, k_mean = (segment_means(each, self.n_landmarks) for each in (q, k))
        left = torch.softmax(q @ k_mean.transpose(1, 2), -1)
        middle = iterative_pinv(torch.softmax(q_mean @ k_mean.transpose(1, 2), -1), self.n_iterations)
        right = torch.softmax(q_mean @ k.transpose(1, 2), -1)
        first = ((left[:, :1] @ middle) @ right)[:, 0].mean(0)
        return left @ (middle @ (right @ v)), first


def _exact(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(q @ k.transpose(1, 2), -1)
    return weights @ v, weights[:, 0].mean(0)


def segment_means(values: Tensor, n_segments: int) -> Tensor:
    """Return the means of consecutive segments whose lengths differ by one at most.

    Args:
        values: ``(n_heads, n, d)``.
        n_segments: at most `n`.

    Returns:
        ``(n_heads, n_segments, d)``.

    Examples:
        >>> segment_means(torch.arange(5.0)[None, :, None], 2)[0, :, 0].tolist()
        [0.5, 3.0]
    """
    n = values.shape[1]
    ends = torch.arange(1, n_segments + 1, device=values.device) * n // n_segments
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    owner = torch.repeat_interleave(torch.arange(n_segments, device=values.device), lengths)
    sums = values.new_zeros(values.shape[0], n_segments, values.shape[2]).index_add(1, owner, values)
    return sums / lengths[:, None]


def iterative_pinv(matrices: Tensor, n_iterations: int) -> Tensor:
    """Return approximate Moore-Penrose inverses (Razavi et al. 2014, as Xiong et al. 2021, equation 11).

    Args:
        matrices: ``(n_heads, m, m)``.
        n_iterations: six are usually enough.
    """
    size = matrices.abs()
    scale = size.sum(-1).amax(-1) * size.sum(-2).amax(-1)
    inverse = matrices.transpose(1, 2) / scale[:, None, None]
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(n_iterations):
        product = matrices @ inverse
        inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    return inverse
