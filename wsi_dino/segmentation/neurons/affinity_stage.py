"""The first stage: learn affinities from the training sections, tell them for validation and test. Imports torch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wsi_dino.encoders.devices import resolve_device
from wsi_dino.provenance import write_atomically
from wsi_dino.segmentation.neurons.affinities import widen_borders
from wsi_dino.segmentation.neurons.affinity_learners import N_KEPT, AffinityLearner, epoch_steps, offsets_of
from wsi_dino.segmentation.neurons.affinity_samples import TrainingVolume
from wsi_dino.segmentation.neurons.blending import blend
from wsi_dino.segmentation.neurons.em_volume import EmSource, RawVolume
from wsi_dino.segmentation.neurons.residual_unet import weighted_mse
from wsi_dino.segmentation.neurons.stages import AFFINITIES, Experiment, attributes_of, outputs_of
from wsi_dino.segmentation.neurons.volume_files import writing_volume
from wsi_dino.segmentation.training import Trainer, TrainingHistory, TrainingSpec, learning_precision


def make_affinities(experiment: Experiment, learner: AffinityLearner, key: str) -> dict[str, Any]:
    """Return the row of the stage, done now if it is not."""
    outputs = outputs_of(experiment.layout, AFFINITIES)
    return experiment.rows.do("affinities", key, outputs, lambda: _work(experiment, learner, key))


def _work(experiment: Experiment, learner: AffinityLearner, key: str) -> dict[str, Any]:
    began = time.process_time()
    raws = {source.name: source.read_raw() for source in experiment.dataset.subsets}
    for source in experiment.dataset.subsets:
        source.read_labels()  # what is wrong with them is told now, not after encoding and training
    prepare_sections(experiment, learner, raws)
    encoded = time.process_time()
    trainer, history = _train(experiment, learner, raws["train"], key)
    trained = time.process_time()
    for source in experiment.judged:
        _predict(experiment, learner, trainer, source, raws[source.name].voxels)
    facts = {**learner.facts(), "spec": experiment.request.affinities.model_dump(mode="json"), "fingerprint": key}
    _write_network(outputs_of(experiment.layout, AFFINITIES)[-1], trainer.network, facts)
    return {
        "facts": learner.facts(),
        "history": history.rows,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "precision": trainer.precision,
        "remarks": [text for raw in raws.values() for text in raw.remarks],
        "cpu_s": {
            "encoding": round(encoded - began, 2),
            "training": round(trained - encoded, 2),
            "prediction": round(time.process_time() - trained, 2),
        },
    }


def prepare_sections(experiment: Experiment, learner: AffinityLearner, raws: Mapping[str, RawVolume]) -> None:
    """Encode all sections of all subsets, or find them encoded; other processes may take part."""
    for source in experiment.dataset.subsets:
        experiment.told.begin(f"encoding {source.name}", learner.n_preparations(source.shape[0], source.name))
        learner.prepare(raws[source.name].voxels, source.name, source.fingerprint())


def _train(
    experiment: Experiment, learner: AffinityLearner, raw: RawVolume, key: str
) -> tuple[Trainer, TrainingHistory]:
    spec = experiment.request.affinities
    ids = widen_borders(experiment.dataset.train.read_labels())
    volume = TrainingVolume(raw.voxels, ids, offsets_of(spec))
    n_epochs = math.ceil(spec.steps / epoch_steps(spec))
    experiment.told.begin("learning affinities", n_epochs)
    torch.manual_seed(spec.seed)
    device = resolve_device(experiment.request.device)
    trainer = Trainer(
        learner.network(), learner.samples(volume), weighted_mse,
        TrainingSpec(
            epochs=n_epochs, learning_rate=spec.learning_rate, seed=spec.seed,
            weight_decay=0,  # AdamW without decay is Adam
            precision=learning_precision(device, {min(spec.window_sections, len(ids))}),
        ),
        device=device, checkpoint=experiment.layout.checkpoint, fingerprint=key,
        on_epoch=lambda epoch, network: _told(experiment),
    )  # fmt: skip
    return trainer, trainer.run()


def _told(experiment: Experiment) -> dict[str, float]:
    experiment.told.advance()
    return {}


def _predict(
    experiment: Experiment, learner: AffinityLearner, trainer: Trainer, source: EmSource, grey: npt.NDArray[np.uint8]
) -> None:
    windows = learner.windows(trainer.network, grey, source.name, trainer.device, trainer.precision)
    experiment.told.begin(f"affinities of {source.name}", len(windows))
    path = experiment.layout.affinities(source.name)
    with writing_volume(path, AFFINITIES, (N_KEPT, *source.shape), np.uint8, attributes_of(source)) as write:
        blend(source.shape, N_KEPT, windows, lambda z, values: write(z, as_bytes(values)), experiment.told.advance)


def as_bytes(affinities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return 0..1 as 0..255.

    Examples:
        >>> as_bytes(np.array([0.0, 0.5, 1.0], np.float32))
        array([  0, 128, 255], dtype=uint8)
    """
    return np.rint(np.clip(affinities, 0, 1) * 255).astype(np.uint8)


def _write_network(path: Path, network: nn.Module, facts: dict[str, Any]) -> None:
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = save(state, metadata={"wsi_dino": json.dumps(facts, sort_keys=True, default=str)})
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
