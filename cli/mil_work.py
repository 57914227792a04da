"""The tasks, encoders and models of one `wsi-dino mil`, worked off one by one or, where that is faster, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino import share
from wsi_dino.cli import adapting, console
from wsi_dino.cli.mil_outcome import Done, say_exclusions
from wsi_dino.cli.run_pictures import RunPictures

if TYPE_CHECKING:
    from wsi_dino.mil.material import Material
    from wsi_dino.mil.run import Bars, MilRequest, OpenTask
    from wsi_dino.mil.tasks import Task
    from wsi_dino.run_folder import RunFolder


@dataclass(frozen=True)
class Order:
    """One task on one encoder's features, with one request for each model."""

    task: Task
    encoder: str
    requests: Sequence[MilRequest]


def work_off(run: RunFolder, labels: Path, orders: Sequence[Order], given: dict[str, Any]) -> list[Done]:
    """Run every order.

    Args:
        run: the run folder.
        labels: the label table.
        orders: what is to be done.
        given: every option of the command line by its Python name.

    Returns:
        What came of it, in the order of `orders` and their requests.
    """
    work = _Work(run, labels, given, several=sum(len(order.requests) for order in orders) > 1)
    if given["adapt"]:
        return work.all_adapted(orders)
    return work.together(orders) if _are_trained_together(orders) else work.one_by_one(orders)


def _are_trained_together(orders: Sequence[Order]) -> bool:
    from wsi_dino.mil.joint_work import trains_together

    return any(trains_together(request.learning) for order in orders for request in order.requests)


@dataclass(frozen=True)
class _Work:
    """What all orders share."""

    run: RunFolder
    labels: Path
    given: dict[str, Any]
    several: bool

    def one_by_one(self, orders: Sequence[Order]) -> list[Done]:
        done = []
        for order in orders:
            material = self._material(order)
            for request in order.requests:
                with share.one_part():
                    done.append(self._alone(order, material, request))
        share.end_all_parts()
        return done

    def together(self, orders: Sequence[Order]) -> list[Done]:
        """Learn all folds of all tasks over one encoder's features as one computation; other models one by one."""
        by_encoder: dict[str, list[Order]] = {}
        for order in orders:
            by_encoder.setdefault(order.encoder, []).append(order)
        done = {name: self._over_one_encoder(name, those) for name, those in by_encoder.items()}
        share.end_all_parts()
        return [each for order in orders for each in done[order.encoder][order.task.name]]

    def _over_one_encoder(self, encoder: str, orders: Sequence[Order]) -> dict[str, list[Done]]:
        from wsi_dino.mil.joint_work import trains_together, work_together
        from wsi_dino.mil.run import finish_task, open_task

        materials = {order.task.name: self._material(order) for order in orders}
        opened = {
            (order.task.name, place): open_task(
                self.run, materials[order.task.name], request, bars=self._bars(order, request), say=console.say
            )
            for order in orders
            for place, request in enumerate(order.requests)
            if trains_together(request.learning)
        }
        with console.progress(f"mil {encoder}: models trained together", unit="epochs") as progress:
            work_together(list(opened.values()), progress)
        if share.current() is not None:
            return self._parts(orders, materials, list(opened.values()))

        def finish(order: Order, place: int, request: MilRequest) -> Done:
            material = materials[order.task.name]
            if (order.task.name, place) not in opened:
                return self._alone(order, material, request)
            task, bars = opened[order.task.name, place], self._bars(order, request)
            return Done(material, finish_task(task, pictures=self._pictures(order.task), bars=bars))

        return {
            order.task.name: [finish(order, place, request) for place, request in enumerate(order.requests)]
            for order in orders
        }

    def _parts(
        self, orders: Sequence[Order], materials: Mapping[str, Material], opened: Sequence[OpenTask]
    ) -> dict[str, list[Done]]:
        """Work on this process's part of what is not trained together, and say that nothing is finished here."""
        from wsi_dino.mil.joint_work import trains_together
        from wsi_dino.mil.run import finish_task

        for task in opened:
            with share.one_part():
                finish_task(task)
        for order in orders:
            for request in order.requests:
                with share.one_part():
                    if not trains_together(request.learning):
                        self._alone(order, materials[order.task.name], request)
        return {}

    def all_adapted(self, orders: Sequence[Order]) -> list[Done]:
        """Learn and judge an adapter a fold; a process with a part of the work stops once the features are there."""
        done = []
        for order in orders:
            with share.one_part():
                done.append(self.adapted(order))
        share.end_all_parts()
        return done

    def adapted(self, order: Order) -> Done:
        bars = self._bars(order, order.requests[0])
        adapted = adapting.run_adapted_task(
            self.run, order.task, self.labels, self.given, order.encoder, order.requests[0], bars
        )
        say_exclusions(adapted.material)
        return Done(adapted.material, adapted.outcome, adapted.n_unread)

    def _alone(self, order: Order, material: Material, request: MilRequest) -> Done:
        from wsi_dino.mil.run import run_mil

        pictures, bars = self._pictures(order.task), self._bars(order, request)
        return Done(material, run_mil(self.run, material, request, pictures=pictures, bars=bars, say=console.say))

    def _material(self, order: Order) -> Material:
        """Read labels and features, and tell which slides take no part."""
        from wsi_dino.mil.material import gather_material
        from wsi_dino.mil.permuted_labels import permute_labels

        console.say(f"mil: reading labels and features of {order.encoder} for {order.task.name}")
        allowed = self.given["allow_random_weights"]
        material = gather_material(self.run, order.task, order.encoder, self.labels, allow_random_weights=allowed)
        if self.given["permute_labels"] is not None:
            material = permute_labels(material, self.given["permute_labels"])
        say_exclusions(material)
        return material

    def _bars(self, order: Order, request: MilRequest) -> Bars:
        name = request.learning.result_name(order.encoder)
        title = f"mil {order.task.name} {name}: " if self.several else "mil: "
        return lambda what, unit: console.progress(title + what, unit=unit)

    def _pictures(self, task: Task) -> RunPictures:
        from wsi_dino.run_folder import RunFolder

        return RunPictures(self.run, *([RunFolder(task.scheme.test_run)] if task.scheme.test_run else []))
