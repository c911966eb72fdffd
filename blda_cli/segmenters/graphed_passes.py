"""Forward passes replayed as CUDA graphs, where a network and its inputs repeat.

A network of hundreds of small kernels takes longer to be launched from Python than to run on a GPU. Replaying is exact
only while all that a pass depends on is in the graph's input and in the network's parameters and buffers, where it
finds them; :class:`GraphedPasses` recognises networks and moments of which that is not so, and runs these as they are.
"""

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blda_cli.runtime.graphs import WARM_UP, Graph, GraphMemory, available, make_room

MOST_SHAPES = 8
"""Most shapes of inputs whose passes are captured: ``--preset strong`` has five."""

_MOST_COUNTED = 64
"""Most shapes whose passes are counted: where none of so many came three times, graphs do not pay."""

_CHECKS = 2
"""Replays that are compared with the ordinary pass: on the input that was captured, and on the next one."""

_TOLERANCE = 0.05
"""Largest difference from the ordinary pass, in standard deviations of the scores. Both run the same kernels, so that
half precision in other kernels, should a library choose them, is all that may differ."""

Pass = Callable[[Tensor], Tensor]


@dataclass
class _Repeated:
    """Passes over inputs of one shape.

    Attributes:
        runs: ordinary passes so far.
        graph: what replays them, once captured.
        checks: replays that were compared with the ordinary pass.
    """

    runs: int = 0
    graph: Graph[Tensor] | None = None
    checks: int = 0


class GraphedPasses:
    """Runs a network's forward passes; on CUDA, from the third pass over inputs of a shape on, by replaying a graph.

    The first two replays are compared with the ordinary pass, whose result is then returned. A network is run without
    graphs for good if it waits for the device, draws random numbers, uses tensors that are neither its parameters nor
    its buffers nor made in the pass, keeps tensors that it made, gives other scores when replayed, or if memory is
    short. While it is in training mode, has hooks or computes gradients it is run as it is, and where any attribute,
    parameter or buffer of its modules is replaced, the graphs are made anew; values that are changed in place they see.

    The memory of one pass, over inputs of the largest shape, stays reserved as long as this object is used.

    Attributes:
        refused: why the network is run without graphs; None: it is not.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self._network: nn.Module | None = None
        self._modules: list[nn.Module] = []
        self._held: list[object] = []
        self._tensors: list[Tensor] = []
        self._places: list[int] = []
        self._stream: int | None = None
        self._memory: GraphMemory | None = None
        self._repeated: dict[Hashable, _Repeated] = {}

    def __call__(self, network: object, images: Tensor, run: Pass, setting: Hashable = ()) -> Tensor:
        """Run a pass.

        Args:
            network: what runs; a graph is for an ``nn.Module`` alone.
            images: its input.
            run: the pass, from the input to the scores.
            setting: what else the scores depend on.

        Returns:
            The scores; later calls leave them as they are.
        """
        if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule) or not available(images):
            return run(images)
        why = ""
        try:
            passes = self._passes(network, images, setting)
            if passes is not None:
                return self._run(passes, images, run)
        except Exception as error:  # whatever a network, the driver or the allocator says
            why = f"{type(error).__name__}: {error}"
        if why:  # now that the error, which refers to graphs, is gone
            self._refuse(why)
        return run(images)

    def close(self) -> None:
        """Give the memory back."""
        self._forget()

    def _passes(self, network: nn.Module, images: Tensor, setting: Hashable) -> _Repeated | None:
        """The passes of which this is one; None where it is run as it is."""
        if network is not self._network:
            self._network, self._modules, self.refused = network, [], None
        if self.refused is not None:
            return None
        stream = torch.cuda.current_stream(images.device).cuda_stream if images.is_cuda else None
        if not self._modules or stream != self._stream or not self._is_as_before():
            self._forget()
            self._stream = stream
            self._modules = list(network.modules())
            self._held = _held(self._modules)
            self._tensors = [one for one in self._held if isinstance(one, Tensor)]
            self._places = [one.data_ptr() for one in self._tensors]
        if torch.is_grad_enabled() or _is_watched(self._modules):
            return None
        amp = torch.is_autocast_enabled(images.device.type) and torch.get_autocast_dtype(images.device.type)
        key = images.shape, images.stride(), images.dtype, amp, setting
        if key not in self._repeated and len(self._repeated) == _MOST_COUNTED:
            if not self._graphs:
                self._refuse("the inputs have too many shapes")
                return None
            self._repeated = {one: passes for one, passes in self._repeated.items() if passes.graph is not None}
        passes = self._repeated.setdefault(key, _Repeated())
        if passes.graph is not None:
            return passes
        passes.runs += 1
        return passes if self._graphs or passes.runs >= WARM_UP else None

    @property
    def _graphs(self) -> int:
        return sum(passes.graph is not None for passes in self._repeated.values())

    def _is_as_before(self) -> bool:
        """Whether the modules hold what they held, and their tensors lie where they lay, when that was last noted."""
        held = _held(self._modules)
        same = len(held) == len(self._held)
        same = same and (all(map(operator.is_, held, self._held)) or all(map(_equal, held, self._held)))
        return same and [one.data_ptr() for one in self._tensors] == self._places

    def _run(self, passes: _Repeated, images: Tensor, run: Pass) -> Tensor:
        # A network may change its input, which is needed once more should this fail.
        if passes.graph is None:
            if passes.runs < WARM_UP or self._graphs == MOST_SHAPES:
                return run(images.clone())
            if passes.runs == WARM_UP:
                return self._watched(images.clone(), run)
            passes.graph = self._capture(images, run)
        scores = passes.graph.replay(images).clone()
        if passes.checks == _CHECKS:
            return scores
        passes.checks += 1
        ordinary = run(images.clone())
        if not _agree(scores, ordinary):
            self._refuse("the network gives other scores when it is replayed")
        elif passes.checks == _CHECKS and images.is_cuda:
            make_room(images.device)  # by what ordinary passes took
        return ordinary

    def _watched(self, images: Tensor, run: Pass) -> Tensor:
        """An ordinary pass; the network is refused where a graph could not replay it."""
        own = self._own(images.device)
        versions = [one._version for one in own]
        with _converting_anew(), _Watch([images, *own]) as watch:
            scores = run(images)
        if versions != [one._version for one in own]:
            watch.found = "the network changes its own parameters or buffers"
        # A later pass would find those of a capture, which computes nothing: they are never computed if it fails.
        if watch.keeps(scores):
            watch.found = watch.found or "the network keeps tensors that it made"
        if watch.found is not None:
            self._refuse(watch.found)
        return scores

    def _own(self, device: torch.device) -> list[Tensor]:
        """The network's parameters and buffers on a device."""
        own = (one for module in self._modules for one in (*module._parameters.values(), *module._buffers.values()))
        return [one for one in own if one is not None and one.device == device]

    def _forget(self) -> None:
        """Drop all graphs and their memory."""
        if self._memory is not None:
            self._memory.wait()
        for passes in self._repeated.values():
            passes.graph = None
        self._repeated = {}
        self._memory = None

    def _refuse(self, why: str) -> None:
        self._forget()
        self.refused = why
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _capture(self, images: Tensor, run: Pass) -> Graph[Tensor]:
        own = self._own(images.device)

        def watched(copy: Tensor) -> Tensor:
            with _converting_anew(), _Watch([copy, *own], raising=True) as watch:
                scores = run(copy)
            if watch.found is not None:  # and the network caught it
                raise NotReplayableError(watch.found)
            return scores

        self._memory = self._memory or GraphMemory(images.device)
        return self._memory.capture(watched, images)


@contextmanager
def _converting_anew() -> Iterator[None]:
    """Weights that autocast converted in an earlier pass are gone when a graph is replayed."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


class NotReplayableError(Exception):
    """A network does what a graph cannot replay."""


class _Watch(TorchDispatchMode):
    """Within ``with``, finds the first operation that a graph could not replay.

    Args:
        known: tensors whose memory stays where it is, and whose values a replay may find changed.
        raising: raise a `NotReplayableError` before the operation is done, as one that waits makes a capture invalid.

    Attributes:
        found: what was found; None: nothing.
    """

    def __init__(self, known: Iterable[Tensor], *, raising: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None
        self._raising = raising
        self._known = {0, *map(_place, known)}  # 0: of tensors without values
        self._made: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self._note(_obstacle(func, given, args, kwargs) or self._foreign(func, given))
        result = func(*args, **kwargs)
        results = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        before = {*map(_place, given)}
        self._made += [StorageWeakRef(one.untyped_storage()) for one in results if _place(one) not in before]
        self._known.update(map(_place, results))
        return result

    def keeps(self, result: Tensor) -> bool:
        """Whether anything that was made is still in memory, but for the result."""
        own = StorageWeakRef(result.untyped_storage())
        return any(one != own and not one.expired() for one in self._made)

    def _foreign(self, func: Any, given: Sequence[Tensor]) -> str | None:
        fresh = func is torch.ops.aten.lift_fresh.default  # of what torch.tensor has just made
        foreign = not fresh and any(_place(one) not in self._known for one in given)
        return f"{func} uses a tensor that is neither a parameter nor a buffer" if foreign else None

    def _note(self, found: str | None) -> None:
        self.found = self.found or found
        if found is not None and self._raising:
            raise NotReplayableError(found)


def _obstacle(func: Any, given: Sequence[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """Why an operation cannot be replayed, by what it is."""
    devices = {one.device.type for one in given if one.ndim or one.device.type != "cpu"}  # not of numbers
    if "device" in kwargs and kwargs["device"] is not None:
        devices.add(torch.device(kwargs["device"]).type)
    if len(devices) > 1:
        return f"{func} copies between devices"
    if func is torch.ops.aten.lift_fresh.default and given[0].device.type != "cpu":
        return f"{func} brings numbers to the device"
    name = func.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        masked = any(one.dtype in (torch.bool, torch.uint8) for one in tree_leaves(args[1]) if isinstance(one, Tensor))
        return f"{func} waits for the device, to count what a mask holds" if masked else None
    if {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & {*func.tags}:
        return f"{func} waits for the device"
    if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
        return f"{func} draws random numbers"
    return None


def _draws(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation that may draw random numbers does: attention does where it drops some."""
    names = [argument.name for argument in func._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    given = args[place] if place < len(args) else kwargs.get("dropout_p", 0.0)
    return bool(given)


def _place(values: Tensor) -> int:
    return values.untyped_storage().data_ptr()


_PARTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


def _held(modules: Sequence[nn.Module]) -> list[object]:
    """What modules hold: what a pass of theirs depends on, but for the values of tensors."""
    found: list[object] = []
    for module in modules:
        attributes = vars(module)
        found += attributes.values()
        for name in _PARTS:
            found += attributes[name].values()
    return found


def _equal(one: object, other: object) -> bool:
    """Whether both are one object, or equal numbers, words or tuples of such."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return isinstance(one, int | float | str) and one == other


def _is_watched(modules: Sequence[nn.Module]) -> bool:
    """Whether modules are in training mode, or have hooks other than those of transformers."""
    for module in modules:
        if module.training:
            return True
        if module._forward_hooks or module._forward_pre_hooks:
            hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            if not all(map(_is_of_transformers, hooks)):
                return True
    return bool(_has_any_global_hook())


def _is_of_transformers(hook: object) -> bool:
    """Whether a hook is one of those by which transformers finds its networks' outputs."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "transformers"


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= _TOLERANCE * other.std(correction=0))
