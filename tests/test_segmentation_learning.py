"""Stacked maps, decoders, losses, windows and training, each against an answer known another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsi_dino.errors import DivergedError
from wsi_dino.segmentation.decoders import DECODERS, at_voxels, make_decoder
from wsi_dino.segmentation.feature_maps import Layer, enlarged, pictures_of
from wsi_dino.segmentation.feature_stack import Box, Crop, FeatureStack, window_boxes
from wsi_dino.segmentation.losses import dice_cross_entropy
from wsi_dino.segmentation.monai_learner import MonaiLearner
from wsi_dino.segmentation.prepared import PreparedCase, write_prepared, write_tensors
from wsi_dino.segmentation.request import SegmentRequest
from wsi_dino.segmentation.slice_geometry import SliceGeometry, plan_slice
from wsi_dino.segmentation.sliding_window import predict_volume
from wsi_dino.segmentation.stack_samples import StackedCase, StackSamples, statistics_of
from wsi_dino.segmentation.training import Sample, Trainer, TrainingSpec, autocast, learning_precision
from wsi_dino.segmentation.views import VIEWS, apply_view, undo_view


def _geometry(height: int = 40, width: int = 28) -> SliceGeometry:
    return plan_slice((height, width), (1.0, 1.0), patch_mm=4.0, patch_px=16, cell_px=16)


def test_a_patch_covers_the_same_mm_whatever_the_spacing() -> None:
    fine = plan_slice((80, 60), (0.5, 0.5), patch_mm=4.0, patch_px=16, cell_px=16)
    coarse = plan_slice((40, 15), (1.0, 2.0), patch_mm=4.0, patch_px=16, cell_px=16)
    assert (fine.height_px, fine.width_px) == (coarse.height_px, coarse.width_px) == (160, 120)


def test_a_bright_voxel_is_shown_where_its_position_says() -> None:
    geometry = _geometry()
    picture = np.zeros((1, 40, 28, 3), np.uint8)
    picture[0, 30, 10] = 255
    shown = enlarged(picture, geometry)[0, :, :, 0].float()
    rows, cols = (shown.sum(axis) for axis in (1, 0))
    centre = [float((line * (torch.arange(len(line)) + 0.5)).sum() / line.sum()) for line in (rows, cols)]
    expected = [geometry.row_positions()[30] * 16, geometry.col_positions()[10] * 16]
    assert centre == pytest.approx(expected, abs=0.1)


def _position_stack(path: Path, geometry: SliceGeometry, n_slices: int, strides: tuple[int, ...]) -> FeatureStack:
    """Write maps whose channels are the row and column of a cell's centre, in px, and the slice."""
    tensors = {}
    for i, stride in enumerate(strides):
        n_rows, n_cols = (n * geometry.cell_px // stride for n in (geometry.rows, geometry.cols))
        rows, cols = ((np.arange(n) + 0.5) * stride for n in (n_rows, n_cols))
        maps = np.zeros((n_slices, 3, n_rows, n_cols), np.float16)
        maps[:, 0], maps[:, 1] = rows[:, None], cols[None]
        maps[:, 2] = np.arange(n_slices)[:, None, None]
        tensors[f"map_{i}"] = maps
    write_tensors(path, tensors, {})
    return FeatureStack(path, n_slices, geometry, tuple(Layer(3, stride) for stride in strides))


@pytest.mark.parametrize("box", [Box((0, 6), (0, 10), (0, 7)), Box((2, 5), (3, 8), (1, 6))])
def test_voxels_are_sampled_where_they_lie(box: Box, tmp_path: Path) -> None:
    """For maps that hold their own coordinates, the answer at a voxel is the voxel's place; also in a crop."""
    geometry = _geometry()
    stack = _position_stack(tmp_path / "s.safetensors", geometry, 6, (16, 8))
    crop = stack.crop(box)
    for maps in crop.maps:
        sampled = at_voxels(maps, crop.row_positions, crop.col_positions)[0].numpy()
        z, y, x = crop.voxels
        inner = (slice(None), slice(4, -4), slice(4, -4))  # beyond the centres of border cells nothing is known
        rows = np.broadcast_to((geometry.row_positions()[y] * 16)[:, None], sampled.shape[2:])
        cols = np.broadcast_to((geometry.col_positions()[x] * 16)[None], sampled.shape[2:])
        assert np.allclose(sampled[0][inner], rows[inner[1:]], atol=0.05)
        assert np.allclose(sampled[1][inner], cols[inner[1:]], atol=0.05)
        assert np.array_equal(sampled[2][:, 0, 0], np.arange(z.start, z.stop))


def test_windows_cover_every_voxel_and_blend_to_the_same_answer(tmp_path: Path) -> None:
    geometry = _geometry()
    stack = _position_stack(tmp_path / "s.safetensors", geometry, 9, (16,))

    def slice_and_rows(crop: Crop) -> torch.Tensor:
        z = torch.arange(crop.voxels[0].start, crop.voxels[0].stop).float()
        y = torch.arange(crop.voxels[1].start, crop.voxels[1].stop).float()
        return (z[:, None] * 100 + y)[None, None, :, :, None].expand(-1, -1, -1, -1, len(crop.col_positions))

    whole = predict_volume(stack, slice_and_rows, n_outputs=1, window_slices=99, window_cells=99)
    blended = predict_volume(stack, slice_and_rows, n_outputs=1, window_slices=4, window_cells=3)
    assert len(window_boxes(stack.whole, 4, 3, 0.5)) > 20
    assert np.allclose(whole, blended, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("strides", [(16, 16, 16, 16), (4, 8, 16, 32), (16,)])
@pytest.mark.parametrize("image_channels", [0, 2])
@pytest.mark.parametrize("is_light", [False, True])
def test_decoders_answer_for_every_voxel(
    name: str, strides: tuple[int, ...], image_channels: int, is_light: bool
) -> None:
    layers = [Layer(6 + i, stride) for i, stride in enumerate(strides)]
    coarsest = max(strides)
    decoder = make_decoder(name, layers, 3, 2, image_channels, is_light=is_light)  # type: ignore[arg-type]
    maps = tuple(
        torch.randn(1, layer.channels, 5, 4 * coarsest // layer.stride_px, 3 * coarsest // layer.stride_px)
        for layer in layers
    )
    rows, cols = torch.linspace(0.05, 0.95, 13), torch.linspace(0.05, 0.95, 11)
    grey = torch.rand(1, image_channels, 5, 13, 11) if image_channels else None
    answer = decoder(maps, rows, cols, grey)
    assert answer.shape == (1, 3, 5, 13, 11)
    answer.sum().backward()
    without = [key for key, value in decoder.named_parameters() if value.grad is None]
    assert without == [], "every weight takes part"


def test_the_last_step_of_a_light_decoder_is_of_sub_pixels_only_where_maps_are_missing() -> None:
    def last(strides: tuple[int, ...], image_channels: int = 0) -> int:
        decoder = make_decoder("conv3d", [Layer(8, stride) for stride in strides], 3, 2, image_channels, is_light=True)
        return decoder.head.last.out_channels  # type: ignore[union-attr, return-value]

    assert last((16, 16)) == 3 * 4, "four answers a cell"
    assert last((4, 8, 16)) == 3, "maps of 4 px are taken"
    assert last((16, 16), image_channels=1) == 3, "the image is taken"


def test_sub_pixels_lie_in_their_cell() -> None:
    """Of a cell's four answers the first is its upper left quarter, the second its upper right."""
    head = make_decoder("conv3d", [Layer(8, 16)], 1, 1, is_light=True).head
    with torch.no_grad():
        head.last.weight.zero_()  # type: ignore[union-attr, operator]
        head.last.bias.copy_(torch.arange(4.0))  # type: ignore[union-attr, operator]
    quarters = torch.tensor([0.25, 0.75])
    answer = head(torch.zeros(1, head.last.in_channels, 1, 1, 1), quarters, quarters, None)  # type: ignore[union-attr, operator, arg-type]
    assert answer[0, 0, 0].tolist() == [[0, 1], [2, 3]]


def test_the_sub_pixels_of_a_fresh_decoder_answer_alike() -> None:
    last = make_decoder("conv3d", [Layer(8, 16)], 3, 1, is_light=True).head.last
    answer = last(torch.randn(1, last.in_channels, 2, 4, 4)).detach().view(3, 4, -1)  # type: ignore[union-attr, operator, arg-type]
    assert torch.allclose(answer, answer[:, :1].expand_as(answer))
    assert not torch.allclose(answer[0], answer[1]), "classes do not"


def test_interpolation_at_voxels_is_that_of_grid_sample() -> None:
    lattice, rows, cols = torch.randn(1, 3, 2, 7, 5), torch.rand(11), torch.rand(9)
    rows[:2] = torch.tensor([0.0, 1.0])
    grid = torch.stack(torch.meshgrid(rows * 2 - 1, cols * 2 - 1, indexing="ij")[::-1], -1).expand(2, -1, -1, -1)
    expected = nn.functional.grid_sample(lattice[0].transpose(0, 1), grid, padding_mode="border", align_corners=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = at_voxels(lattice, rows, cols)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected.transpose(0, 1)[None], atol=1e-5)


def test_the_linear_decoder_is_linear_regression_of_cells(tmp_path: Path) -> None:
    """Its answer at the centre of a cell is the linear map of that cell's standardised features."""
    decoder = make_decoder("linear", [Layer(4, 16)], 2, 1)
    decoder.set_statistics([torch.tensor([1.0, 2, 3, 4])], [torch.tensor([2.0, 2, 2, 2])])
    maps = torch.randn(1, 4, 2, 5, 5)
    centres = (torch.arange(5) + 0.5) / 5
    weight, bias = (p.detach() for p in decoder.heads[0].parameters())  # type: ignore[attr-defined]
    ready = (maps - torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1, 1)) / 2
    expected = torch.einsum("oc,bczyx->bozyx", weight[:, :, 0, 0, 0], ready) + bias.view(1, 2, 1, 1, 1)
    assert torch.allclose(decoder((maps,), centres, centres), expected, atol=1e-5)


@pytest.mark.slow
def test_dice_and_cross_entropy_equal_monais() -> None:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 4, 5, 6), torch.randint(0, 3, (1, 4, 5, 6))
    reference = losses.DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, batch=True)
    reference.dice.smooth_nr = reference.dice.smooth_dr = 1e-5
    assert float(dice_cross_entropy(logits, target)) == pytest.approx(
        float(reference(logits, target[:, None])), rel=1e-5
    )


def test_views_are_eight_and_each_has_its_own_features() -> None:
    volume = np.arange(12).reshape(1, 3, 4)
    seen = {apply_view(volume, view).tobytes() + bytes(apply_view(volume, view).shape) for view in VIEWS}
    assert len(seen) == 8


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_undone(view: str) -> None:
    volume = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    assert np.array_equal(undo_view(apply_view(volume, view), view), volume)


def test_channels_meet_early_or_late() -> None:
    grey = np.stack([np.full((2, 3, 3), value, np.uint8) for value in (10, 21)])
    (early,) = pictures_of(grey, "early")
    assert early[0, 0, 0].tolist() == [10, 21, 16]
    late = pictures_of(grey, "late")
    assert [picture[0, 0, 0].tolist() for picture in late] == [[10] * 3, [21] * 3]


def _stacked_case(folder: Path, views: tuple[str, ...]) -> StackedCase:
    """A case whose features are the image itself, shrunk to cells, in every view."""
    rng = np.random.default_rng(3)
    labels = (rng.random((6, 40, 28)) < 0.02).astype(np.uint8)
    row = write_prepared(folder / "c.safetensors", "c", (labels * 200)[None], labels, (2.0, 1.0, 1.0))
    prepared = PreparedCase.of_row(folder / "c.safetensors", {**row, "fingerprint": ""})
    stacks = {}
    for view in views:
        seen = apply_view(labels, view)
        geometry = plan_slice(seen.shape[1:], (1.0, 1.0), patch_mm=1.0, patch_px=16, cell_px=16)
        write_tensors(folder / f"{view}.safetensors", {"map_0": seen[:, None].astype(np.float16)}, {})
        stacks[view] = FeatureStack(folder / f"{view}.safetensors", 6, geometry, (Layer(1, 16),))
    return StackedCase(prepared, stacks)


@pytest.mark.parametrize("crop", [(99, 99), (3, 12)])
def test_samples_keep_features_grey_and_labels_together(crop: tuple[int, int], tmp_path: Path) -> None:
    """Where a cell is one voxel and the feature is the label, all three agree in every view, flip and crop."""
    case = _stacked_case(tmp_path, VIEWS)
    samples = StackSamples([case], crop_slices=crop[0], crop_cells=crop[1], with_grey=True)
    for seed in range(24):
        sample = samples.sample(0, np.random.default_rng(seed))
        maps, rows, cols, grey = sample.inputs
        assert torch.equal(at_voxels(maps[0], rows, cols)[0, 0].round().long(), sample.target[0])
        assert torch.equal((grey[0, 0] * 255 / 200).round().long(), sample.target[0])


def test_crops_find_foreground_far_more_often_than_chance(tmp_path: Path) -> None:
    labels = np.zeros((8, 40, 40), np.uint8)
    labels[1, 2, 3] = 1
    row = write_prepared(tmp_path / "c.safetensors", "c", labels[None], labels, (1.0, 1.0, 1.0))
    prepared = PreparedCase.of_row(tmp_path / "c.safetensors", {**row, "fingerprint": ""})
    write_tensors(tmp_path / "s.safetensors", {"map_0": labels[:, None].astype(np.float16)}, {})
    geometry = plan_slice((40, 40), (1.0, 1.0), patch_mm=1.0, patch_px=16, cell_px=16)
    stack = FeatureStack(tmp_path / "s.safetensors", 8, geometry, (Layer(1, 16),))
    samples = StackSamples([StackedCase(prepared, {"as-is": stack})], crop_slices=3, crop_cells=8)
    hits = [int(samples.sample(0, np.random.default_rng(seed)).target.sum()) for seed in range(60)]
    assert sum(hits) >= 25


def test_statistics_are_those_of_the_features(tmp_path: Path) -> None:
    case = _stacked_case(tmp_path, ("as-is",))
    (mean,), (std,) = statistics_of([case])
    labels = case.prepared.labels()
    assert float(mean[0]) == pytest.approx(labels.mean(), abs=1e-4)
    assert float(std[0]) == pytest.approx(labels.std(), abs=1e-4)


class _Numbers:
    """Samples of a regression with noise drawn from the generator that training hands over."""

    def __len__(self) -> int:
        return 5

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        x = torch.from_numpy(rng.standard_normal((4, 3)).astype(np.float32))
        return Sample((x,), x.sum(1, keepdim=True) * index)


def _network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def _trainer(checkpoint: Path, network: nn.Module, on_epoch: object = None, key: str = "k") -> Trainer:
    spec = TrainingSpec(epochs=5, learning_rate=0.01, warmup_epochs=1, precision="fp32")
    extra = {} if on_epoch is None else {"on_epoch": on_epoch}
    return Trainer(
        network, _Numbers(), nn.functional.mse_loss, spec, device="cpu", checkpoint=checkpoint, fingerprint=key,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    straight = _network()
    history = _trainer(tmp_path / "a.safetensors", straight).run()

    def stop(epoch: int, network: nn.Module) -> dict[str, float]:
        if epoch == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        _trainer(tmp_path / "b.safetensors", _network(), stop).run()
    resumed = _network()
    again = _trainer(tmp_path / "b.safetensors", resumed).run()
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in history.rows]
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


class _OneBroken(_Numbers):
    def __init__(self, broken: set[int]) -> None:
        self.broken = broken

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().sample(index, rng)
        return Sample(sample.inputs, sample.target * float("inf")) if index in self.broken else sample


def test_a_gradient_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    network = _network()
    trainer = _trainer(tmp_path / "a.safetensors", network)
    trainer.source = _OneBroken({2})
    history = trainer.run()
    assert [row["skipped_steps"] for row in history.rows] == [1] * 5
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    trainer = _trainer(tmp_path / "b.safetensors", _network())
    trainer.source = _OneBroken(set(range(5)))
    with pytest.raises(DivergedError, match="Lower --lr"):
        trainer.run()


def test_a_checkpoint_of_another_request_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _trainer(path, _network(), key="one").run()
    seen: list[int] = []
    _trainer(path, _network(), lambda epoch, network: seen.append(epoch) or {}, key="two").run()
    assert seen == [0, 1, 2, 3, 4]


def test_a_checkpoint_cut_short_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _trainer(path, _network()).run()
    path.write_bytes(path.read_bytes()[:100])
    assert len(_trainer(path, _network()).run().rows) == 5


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
def test_gradients_are_right_in_the_format_that_is_learned_in(depth: int) -> None:
    """Two slices in bf16 gave the weights' gradient of whatever memory held."""
    torch.manual_seed(0)
    layer, volume = nn.Conv3d(16, 16, 3, padding=1), torch.randn(1, 16, depth, 6, 6)

    def gradient(precision: str) -> torch.Tensor:
        layer.zero_grad()
        with autocast("cpu", precision):
            answer = layer(volume)
        (answer.float() ** 2).sum().backward()
        return layer.weight.grad.clone()

    chosen = learning_precision("cpu", {depth, 64})
    right = gradient("fp32")
    for _ in range(5):
        torch.full((300_000,), float("nan"))  # what memory may hold
        found = gradient("bf16" if chosen == "auto" else chosen)
        assert float((found - right).norm() / right.norm()) < 0.03
    assert learning_precision("cuda", {2}) == "auto"


@pytest.mark.parametrize("kind", ["monai-unet", "monai-vnet", "monai-swinunetr"])
def test_the_depths_of_a_network_are_those_its_convolutions_see(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="MONAI is not installed")
    labels = np.zeros((30, 40, 20), np.uint8)
    row = write_prepared(tmp_path / "c.safetensors", "c", labels[None], labels, (1.0, 1.0, 1.0))
    case = PreparedCase.of_row(tmp_path / "c.safetensors", {**row, "fingerprint": ""})
    request = SegmentRequest(tmp_path, "d", tmp_path, kind)
    base = {"dataset": "d", "classes": {1: "a"}, "channels": ({"name": "mri"},)}
    learner = MonaiLearner(request, base, {"c": case})
    network = learner.network(learner.facts(0), ["c"])
    seen: set[int] = set()
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape[2]))
    with torch.inference_mode():
        network(*learner.samples(["c"]).sample(0, np.random.default_rng(0)).inputs)
    assert seen <= learner.depths()
    assert 2 in learner.depths()
