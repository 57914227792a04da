"""How far claims on one shared folder carry: a simulation of workers, a file server, failures and the wait at the end.

    python benchmarks/scale.py                  # 100,000 slides, DINOv3-S and -L, 1 to 1,000 workers
    python benchmarks/scale.py --measure        # what a claim and a row cost on the folder given by --folder

Every number that is not measured here is an option with its default in `--help`, and is printed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.run_folder import RunFolder

_EVENTS = ("open", "os.link", "os.rename", "os.remove", "os.listdir", "os.mkdir", "fcntl.flock")
_NAMES_A_LISTING = 500  # names that one answer of the server holds
_PARALLEL = 16


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        slides, tiles: how many slides, and tiles of a slide on average.
        spread: sigma of the logarithm of a slide's tiles.
        images_per_s: of one worker.
        latency_s: of one operation on the shared folder.
        server_ops_per_s: what the server bears.
        ops_per_item: of claim, row, tile file and feature file.
        ops_per_s_held: of beats and records of a worker at work.
        start_s: of a worker until it asks for work: imports, weights on the device.
        mtbf_h: hours between failures of one worker.
        restart_s: until a lost worker is replaced.
        lease_s: until what a lost worker held is taken over on another machine.
    """

    slides: int
    tiles: float
    spread: float
    images_per_s: float
    latency_s: float
    server_ops_per_s: float
    ops_per_item: float
    ops_per_s_held: float
    start_s: float
    mtbf_h: float
    restart_s: float
    lease_s: float


class _Server:
    """Operations wait for each other here: one line, served at a steady pace."""

    def __init__(self, world: World) -> None:
        self._world, self._free_s, self.n_ops = world, 0.0, 0.0

    def do(self, now: float, n_ops: float, parallel: int = 1) -> float:
        """Return when `n_ops`, `parallel` at a time, are answered."""
        self._free_s = max(self._free_s, now) + n_ops / self._world.server_ops_per_s
        self.n_ops += n_ops
        return max(self._free_s, now + n_ops * self._world.latency_s / parallel)


class _Simulation:
    """Workers that take slides, longest first, their own part before those of others."""

    def __init__(self, world: World, n_workers: int, *, reads_all: bool, seed: int) -> None:
        self.world, self.n_workers, self.chance = world, n_workers, random.Random(seed)
        scale = world.tiles / world.images_per_s
        mu = -(world.spread**2) / 2  # so that the mean is 1
        self.costs = sorted(
            (scale * self.chance.lognormvariate(mu, world.spread) for _ in range(world.slides)), reverse=True
        )
        self.server = _Server(world)
        self.parts = [list(range(number, world.slides, n_workers))[::-1] for number in range(n_workers)]
        self.is_open = [True] * world.slides
        self.again: list[tuple[float, int]] = []  # what lost workers held, and from when on others may take it
        self.first_open, self.helpers = 0, set[int]()
        self.left, self.end_s, self.n_lost = world.slides, 0.0, 0
        # when, which worker, the slide that it finishes then; -1: it comes for work
        self.events: list[tuple[float, int, int]] = []
        first_look = 2 * world.slides if reads_all else world.slides / _NAMES_A_LISTING
        for number in range(n_workers):
            heapq.heappush(self.events, (self.server.do(world.start_s, first_look, _PARALLEL), number, -1))

    def run(self) -> None:
        while self.events and self.left:
            now, worker, slide = heapq.heappop(self.events)
            if slide >= 0:
                self.left -= 1
                self.end_s = max(self.end_s, now)
            found, now = self._next(now, worker)
            if found >= 0:
                self._work(now, worker, found)
            elif self.again:  # it waits for what a lost worker held
                heapq.heappush(self.events, (max(now, self.again[0][0]) + 1.0, worker, -1))

    def _next(self, now: float, worker: int) -> tuple[int, float]:
        own = self.parts[worker]
        while own:
            if self.is_open[candidate := own.pop()]:
                return candidate, now
        if self.again and self.again[0][0] <= now:
            return heapq.heappop(self.again)[1], now
        if worker not in self.helpers:  # one look at all rows, then only at what is left
            self.helpers.add(worker)
            now = self.server.do(now, self.world.slides / _NAMES_A_LISTING)
        while self.first_open < self.world.slides and not self.is_open[self.first_open]:
            self.first_open += 1
        return (self.first_open if self.first_open < self.world.slides else -1), now

    def _work(self, now: float, worker: int, slide: int) -> None:
        world, cost = self.world, self.costs[slide]
        self.is_open[slide] = False
        done = self.server.do(now, world.ops_per_item + cost * world.ops_per_s_held) + cost
        dies = now + self.chance.expovariate(1 / (3600 * world.mtbf_h))
        if dies >= done:
            heapq.heappush(self.events, (done, worker, slide))
            return
        self.n_lost += 1
        heapq.heappush(self.again, (dies + world.lease_s, slide))  # its journal keeps some of it; counted as lost
        heapq.heappush(self.events, (dies + world.restart_s + world.start_s, worker, -1))


def simulate(world: World, n_workers: int, *, reads_all: bool = False, seed: int = 0) -> dict[str, float]:
    """Return hours, efficiency and load of `n_workers` on one run.

    Args:
        world: what is simulated.
        n_workers: how many.
        reads_all: every worker reads the row and the tile file of every slide before it begins, as a process without
            a part does.
        seed: of slides and failures.
    """
    simulation = _Simulation(world, n_workers, reads_all=reads_all, seed=seed)
    simulation.run()
    end_s = simulation.end_s
    return {
        "workers": n_workers, "hours": end_s / 3600, "efficiency": sum(simulation.costs) / n_workers / end_s,
        "ops_per_s": simulation.server.n_ops / end_s, "lost": simulation.n_lost,
    }  # fmt: skip


def measure(folder: Path, n_items: int = 200) -> dict[str, float]:
    """Return seconds and file operations that claim, finish and row of one item take on `folder`."""
    counts: Counter[str] = Counter()
    is_counting = [False]

    def hook(event: str, _: object) -> None:
        if is_counting[0] and event in _EVENTS:
            counts[event] += 1

    sys.addaudithook(hook)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        queue = ItemQueue(RunFolder(Path(run)), "s", [Item(f"s{number}", "f") for number in range(n_items)])
        is_counting[0], began, cpu = True, time.perf_counter(), time.process_time()
        while (claimed := queue.take()) is not None:
            queue.finish(claimed, {"status": "done"})
        is_counting[0] = False
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {
        "ms_per_item": 1000 * seconds / n_items, "cpu_ms_per_item": 1000 * cpu_s / n_items,
        "ops_per_item": sum(counts.values()) / n_items,
    }  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=100_000)
    parser.add_argument("--tiles", type=float, default=10_000, help="of a slide on average (an assumption)")
    parser.add_argument("--spread", type=float, default=0.8, help="sigma of the logarithm of tiles (an assumption)")
    parser.add_argument("--images-per-s", type=float, nargs="*", default=[2000.0, 300.0],
                        help="of one worker; `wsi-dino plan embed` measures it (defaults are assumptions)")  # fmt: skip
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 10, 100, 300, 1000])
    parser.add_argument("--latency-ms", type=float, default=1.0, help="of an operation on the shared folder")
    parser.add_argument("--server-ops", type=float, default=20_000, help="operations a second the server bears")
    parser.add_argument("--ops-per-item", type=float, default=30, help="--measure counts those of claim and row")
    parser.add_argument("--start-s", type=float, default=30, help="of a worker until it asks for work")
    parser.add_argument("--mtbf-h", type=float, default=100, help="hours between failures of one worker")
    parser.add_argument("--restart-s", type=float, default=120)
    parser.add_argument("--reads-all", action="store_true", help="as if each worker read every row and tile file")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Print tables."""
    asked = _options()
    if asked.measure:
        print(json.dumps(measure(asked.folder)))
        return
    for rate in asked.images_per_s:
        world = World(
            asked.slides, asked.tiles, asked.spread, rate, asked.latency_ms / 1000, asked.server_ops,
            asked.ops_per_item, 6 / 15, asked.start_s, asked.mtbf_h, asked.restart_s, 120,
        )  # fmt: skip
        rows = [simulate(world, n_workers, reads_all=asked.reads_all) for n_workers in asked.workers]
        if asked.json:
            print(json.dumps({"images_per_s": rate, "rows": rows}))
            continue
        print(f"{asked.slides} slides of {asked.tiles:g} tiles, {rate:g} images/s a worker, {asked.latency_ms:g} ms, "
              f"{asked.server_ops:g} operations/s")  # fmt: skip
        print("workers      hours  efficiency  server ops/s   lost")
        for row in rows:
            print(f"{row['workers']:7d} {row['hours']:10.2f} {row['efficiency']:11.3f} {row['ops_per_s']:13.1f} "
                  f"{row['lost']:6d}")  # fmt: skip


if __name__ == "__main__":
    main()
