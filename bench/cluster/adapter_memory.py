"""Where a simulated replica has its adapters: on the device, in host memory, or in a store that all share."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.cluster.workload import Request

At = Callable[[float, Callable[[float], None]], None]  # has a function called at a time, with that time


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica has. Sizes are in bytes, speeds in bytes a second."""

    adapter_memory: float = 20e9
    host_memory: float = 100e9
    host_speed: float = 12e9  # from host memory to the device
    store_speed: float = 1e9  # from disk or the network to host memory
    store_seconds: float = 0.03  # until the first byte
    loaders: int = 2
    max_num_seqs: int = 256
    max_batch_tokens: int = 2048
    max_stretch: float = 4.0  # of answers' steps by prompts, see PromptBudget


class Tier:
    """Adapters in one memory: least recently used first out, but never one that is held."""

    def __init__(self, capacity: float) -> None:
        self._capacity = capacity
        self._used = 0.0
        self.kept: OrderedDict[str, tuple[int, float]] = OrderedDict()  # adapter -> rank, bytes

    def put(self, adapter: str, rank: int, nbytes: float, held: Counter[str]) -> bool:
        """Make room and take an adapter in; False where what is held leaves none."""
        going, left = [], self._capacity - self._used
        for name, (_, freed) in self.kept.items():
            if left >= nbytes:
                break
            if not held[name]:
                going.append(name)
                left += freed
        if left < nbytes:
            return False
        for name in going:
            self._used -= self.kept.pop(name)[1]
        self.kept[adapter] = (rank, nbytes)
        self._used += nbytes
        return True


@dataclass(slots=True)
class _Load:
    """An adapter on its way to the device."""

    rank: int
    nbytes: float
    waiting: list[Request] = field(default_factory=list)
    begun: bool = False
    read: bool = False  # and finds no room


class AdapterMemory:
    """Brings adapters in and has requests admitted once theirs is there."""

    def __init__(
        self,
        hardware: Hardware,
        nbytes: Callable[[int], int],
        at: At,
        admit: Callable[[Request, float], None],
    ) -> None:
        """``nbytes`` tells the size of an adapter by its rank."""
        self._hardware = hardware
        self._nbytes = nbytes
        self._at = at
        self._admit = admit
        self._device = Tier(hardware.adapter_memory)
        self._host = Tier(hardware.host_memory)
        self._held: Counter[str] = Counter()
        self._loads: OrderedDict[str, _Load] = OrderedDict()
        self._running = 0

    def resident(self) -> dict[str, int]:
        """What answers at once, and its rank."""
        return {adapter: rank for adapter, (rank, _) in self._device.kept.items()}

    def ask(self, request: Request, now: float) -> None:
        """A request needs its adapter."""
        self._held[request.adapter] += 1
        if request.adapter in self._device.kept:
            request.hit = True
            self._device.kept.move_to_end(request.adapter)
            self._admit(request, now)
        else:
            self._load(request.adapter, request.rank, now).waiting.append(request)

    def prefetch(self, adapter: str, rank: int, now: float) -> None:
        """Bring an adapter in that nobody asks for yet."""
        if adapter not in self._device.kept:
            self._load(adapter, rank, now)

    def release(self, request: Request, now: float) -> None:
        """A request is over: what it held may go."""
        self._held[request.adapter] -= 1
        if not self._held[request.adapter]:
            del self._held[request.adapter]
            self._place(now)

    def _load(self, adapter: str, rank: int, now: float) -> _Load:
        load = self._loads.get(adapter)
        if load is None:
            load = self._loads[adapter] = _Load(rank, float(self._nbytes(rank)))
            self._begin(now)
        return load

    def _begin(self, now: float) -> None:
        """Put loaders that are free to work, in order."""
        for adapter, load in self._loads.items():
            if self._running >= self._hardware.loaders:
                return
            if not load.begun:
                load.begun = True
                self._running += 1
                self._at(now + self._seconds(adapter, load), lambda then, a=adapter: self._read(a, then))  # type: ignore[misc]

    def _seconds(self, adapter: str, load: _Load) -> float:
        seconds = load.nbytes / self._hardware.host_speed
        if adapter in self._host.kept:
            self._host.kept.move_to_end(adapter)
            return seconds
        self._host.put(adapter, load.rank, load.nbytes, Counter())
        return seconds + self._hardware.store_seconds + load.nbytes / self._hardware.store_speed

    def _read(self, adapter: str, now: float) -> None:
        self._running -= 1
        self._loads[adapter].read = True
        self._place(now)
        self._begin(now)

    def _place(self, now: float) -> None:
        """Put what is read on the device, as far as there is room."""
        for adapter in [name for name, load in self._loads.items() if load.read]:
            load = self._loads[adapter]
            placed = self._device.put(adapter, load.rank, load.nbytes, self._held)
            if placed or not load.waiting:  # nobody waits for what was only prefetched
                del self._loads[adapter]
            if placed:
                for request in load.waiting:
                    self._admit(request, now)
