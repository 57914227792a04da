"""Running chunks of images: on CPU threads, or on one accelerator. Imports torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from wsi_dino.encoders.runtimes import NumberFormat

# Larger chunks push activations out of the cache and into memory that is mapped anew each time
# (measured: EfficientNet-Lite0 in fp32 ran 69 images/s a core in chunks of 4, 43 in chunks of 8).
_CPU_CHUNK_AT_224_PX: dict[NumberFormat, int] = {"fp32": 4, "bf16": 8, "fp16": 4, "int8": 4}
_CHUNKS_PER_BATCH = 4
_MAX_DEVICE_CHUNK = 512
# Two batches are with the encoder at a time, and both may hold their activations.
_SHARE_OF_FREE_MEMORY = 0.4


class CpuThreads:
    """One single-threaded worker a core, each with chunks of its own.

    Two such threads outrun one network spread over two cores, and a vector then does not depend on
    the number of cores.

    Args:
        workers: cores that may be used; 0 for all.
        processes: that share these cores, each taking its part. `batch_size` is that of one process
            alone, so that features are cut into the same batches by one process and by several.

    Attributes:
        chunk_size: images that one thread takes at once.
        batch_size: images to give at once to keep all threads busy.
    """

    def __init__(self, input_px: int, precision: NumberFormat, workers: int, processes: int = 1) -> None:
        cores = workers or available_cores()
        self.workers = max(1, cores // processes)
        largest = _CPU_CHUNK_AT_224_PX[precision]
        self.chunk_size = max(1, min(largest, round(largest * (224 / input_px) ** 2)))
        self.batch_size = self.chunk_size * cores * _CHUNKS_PER_BATCH
        self._pool = single_threaded_pool(self.workers)

    def run(self, function: Callable[[Tensor], Any], pixels: Tensor) -> list[Any]:
        """Return what `function` gives for every chunk of `pixels`, in order."""
        return list(self._pool.map(function, padded_chunks(pixels, self.chunk_size)))


def single_threaded_pool(n_workers: int) -> ThreadPoolExecutor:
    """Return a started pool in whose threads torch computes alone; the caller's own setting stays.

    torch holds the number of threads once for the process and once for each thread, and a thread
    takes the former over when it first asks. So each worker asks, then is set to one, and the value
    of the process is put back when all of them are.
    """
    threads_of_process = torch.get_num_threads()
    all_started = threading.Barrier(n_workers + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(n_workers, "encoder", initializer=start)
    for _ in range(n_workers):
        pool.submit(int)
    all_started.wait()
    torch.set_num_threads(threads_of_process)
    return pool


class OneDevice:
    """An accelerator: the next chunk is copied there while the last one is worked on.

    When its memory is full (another program took some, say), the chunks are halved and the images
    in hand are done again; vectors of smaller chunks may differ in their last bits.

    Attributes:
        chunk_size, batch_size: images at once, the largest power of two that memory holds at the start.
    """

    def __init__(self, device: str, function: Callable[[Tensor], Any], input_px: int) -> None:
        self.device = device
        self.chunk_size = self.batch_size = _largest_chunk(device, function, input_px)
        self._copying: Any = torch.cuda.Stream(device) if device.startswith("cuda") else None  # type: ignore[no-untyped-call]
        self._halving = threading.Lock()

    def run(self, function: Callable[[Tensor], Any], pixels: Tensor) -> list[Any]:
        """Return what `function` gives for every chunk of `pixels`, in order.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        while True:
            size = self.chunk_size
            try:
                return [function(self._moved(chunk)) for chunk in padded_chunks(pixels, size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside of the handler: its traceback would keep the activations that did not fit.
            self._halve(size)

    def _halve(self, size: int) -> None:
        with self._halving:  # two batches may find the memory full at once
            self.chunk_size = min(self.chunk_size, size // 2)
        if self._copying is not None:
            torch.cuda.empty_cache()

    def _moved(self, chunk: Tensor) -> Tensor:
        """Return `chunk` on the device; on CUDA copied beside the work on the chunk before."""
        if self._copying is None or chunk.is_cuda:
            return chunk
        with torch.cuda.stream(self._copying):
            moved = chunk.pin_memory().to(self.device, non_blocking=True)
        working = torch.cuda.current_stream(self.device)
        working.wait_stream(self._copying)
        moved.record_stream(working)  # its memory is not given away before the work on it is done
        return moved


def padded_chunks(pixels: Tensor, size: int) -> Iterator[Tensor]:
    """Yield chunks of exactly `size` images; the last is filled up with black ones.

    Examples:
        >>> [len(chunk) for chunk in padded_chunks(torch.zeros(5, 2, 2, 3), 4)]
        [4, 4]
    """
    for start in range(0, len(pixels), size):
        chunk = pixels[start : start + size]
        n_missing = size - len(chunk)
        yield torch.cat([chunk, chunk.new_zeros(n_missing, *chunk.shape[1:])]) if n_missing else chunk


def available_cores() -> int:
    """Return how many cores this process may use, which containers and schedulers limit."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def sharing_processes() -> int:
    """Return how many processes share this machine's cores by the word of the launcher that started this one."""
    text = os.environ.get("WSI_DINO_PROCESSES", "")
    return max(1, int(text)) if text.isdecimal() else 1


def _largest_chunk(device: str, function: Callable[[Tensor], Any], input_px: int) -> int:
    """Return the largest power of two of images whose forward pass fits a share of the free memory."""
    if not device.startswith("cuda"):
        return 16
    size = 8
    while size < _MAX_DEVICE_CHUNK and _peak_share(device, function, input_px, size) * 2 <= _SHARE_OF_FREE_MEMORY:
        size *= 2
    return size


def _peak_share(device: str, function: Callable[[Tensor], Any], input_px: int, size: int) -> float:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        function(torch.zeros(size, input_px, input_px, 3, dtype=torch.uint8))
    except torch.OutOfMemoryError:
        return float("inf")
    finally:
        torch.cuda.empty_cache()
    used = torch.cuda.max_memory_allocated(device) - before
    return used / torch.cuda.mem_get_info(device)[0]
