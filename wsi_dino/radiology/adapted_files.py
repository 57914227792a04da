"""Where the adapters of all folds lie, what is told of them, and that none has seen what it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.encoders.adapter import Adapter, read_adapter
from wsi_dino.errors import CohortError, WsiDinoError
from wsi_dino.evaluation.label_folds import FoldRows
from wsi_dino.item_queue import Item
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder

SUFFIX = "+lora"


@dataclass(frozen=True)
class FoldAdapters:
    """The adapters of one result.

    Attributes:
        run: the run folder.
        folder: that of a fold is ``fold-K`` in it.
        name: of the data set, and of the task where it has a name.
    """

    run: RunFolder
    folder: Path
    name: str

    @property
    def stage(self) -> str:
        """Stage of the run's rows and claims."""
        return f"adapt-{self.name}-{self.folder.parent.name}-{self.folder.name}"

    def folder_of(self, number: int) -> Path:
        """Return the folder of the adapter of one fold."""
        return self.folder / f"fold-{number}"

    def is_intact(self, item: Item, row: Mapping[str, Any]) -> bool:
        """Return whether the adapter that a finished row promises is there."""
        try:
            adapter = read_adapter(self.folder_of(int(item.key.rpartition("-")[2])))
        except WsiDinoError:
            return False
        return adapter.sha256 == row.get("sha256")

    def read(self, n_folds: int) -> tuple[Adapter, ...]:
        """Return the adapters of all folds."""
        return tuple(read_adapter(self.folder_of(number)) for number in range(n_folds))


def told_of(adapters: Sequence[Adapter], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `protocol` says of the adapters of all folds.

    Args:
        adapters: one a fold.
        recipe: see `adaptation.BagSource`.
    """
    first = adapters[0].record
    trained = first.trained_on.recipe
    return {
        "how": "LoRA, anew in each fold: learnt from its training patients alone, the epoch chosen by the loss on its "
        "validation patients; then everything is encoded with it and the probe is trained as on frozen features",
        "layers": list(first.spec.targets),
        "rank": first.spec.rank,
        "alpha": first.spec.alpha,
        "dropout": first.spec.dropout,
        "head": "one linear layer on normalised vectors, binary cross-entropy, dropped afterwards",
        "augmentation": "none",
        "learning_rate": trained["learning_rate"],
        "head_learning_rate": trained["head_learning_rate"],
        "epochs_at_most": trained["epochs"],
        "epochs_kept": [one.record.trained_on.best_epoch + 1 for one in adapters],
        "validation_loss": [
            round(one.record.trained_on.history[one.record.trained_on.best_epoch]["val_loss"], 6) for one in adapters
        ],
        **recipe,
        "sha256": [one.sha256 for one in adapters],
    }


def adaptation_facts(told: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a report says of the adapters."""
    if told is None:
        return {}
    plain = {key: value for key, value in told.items() if key not in ("how", "sha256", "view", "slice_view")}
    parts = [f"{key.replace('_', ' ')} {', '.join(map(str, value)) if isinstance(value, list) else value}"
             for key, value in plain.items()]  # fmt: skip
    return {"encoder adapted": f"{told['how']}. {'; '.join(parts)}"}


def identity_of_all(identities: Sequence[Mapping[str, Any]], base: str) -> dict[str, Any]:
    """Return the identity that stands for the encoders of all folds together."""
    first = identities[0]
    record = {**first["record"], "name": f"{base}{SUFFIX}"}
    adapters = fingerprint([identity["adapter"] for identity in identities])
    return {**first, "encoder": f"{base}{SUFFIX}", "adapter": adapters, "record": record}


def require_unseen(
    adapter: Adapter | None, item_ids: Sequence[str], contents: Sequence[str], tested: np.ndarray
) -> None:
    """Refuse to judge an adapter by what it has learnt from.

    Args:
        adapter: of the encoder, or None.
        item_ids: of all images or volumes.
        contents: hashes of what they hold.
        tested: rows that are tested.

    Raises:
        CohortError: naming some.
    """
    if adapter is None:
        return
    seen = [item_ids[row] for row in tested.tolist() if adapter.has_learnt_from(contents[row])]
    if seen:
        raise CohortError(
            f"Judging the adapter {adapter.folder}: it has learnt from {len(seen)} of the tested items, e.g. "
            f"{', '.join(seen[:3])}. Judge it by others, or use --adapt lora, which learns anew in each fold."
        )


def tested_rows(folds: Sequence[FoldRows]) -> np.ndarray:
    """Return every row that some fold tests."""
    return np.unique(np.concatenate([rows.test for rows in folds]))
