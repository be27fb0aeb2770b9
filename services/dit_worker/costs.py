"""Measures what steps, noise and encoding cost on this host, on the code that serves."""

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from headway.calibration import Curves, Probe, quiet_cost
from headway.cost import Cost, StepCurve
from headway.engine import Device, Pulse
from services.dit_worker.encode import DECODED_AT_ONCE, Format, finish_all, supports
from services.dit_worker.model.decoder import Decoder
from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.sampler import Rows, noises
from services.dit_worker.scheduler import ENCODE, NOISE, STEPS, ImageCosts
from services.dit_worker.stepper import CpuStepper, Stepper

STEP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HOST_SIZES = (1, DECODED_AT_ONCE)
PROBE_SIZE = 16
THREADS = "threads"
AS_GOOD = 1.03
"""A batch is as efficient as the best one when an image costs at most so much more in it."""
REPEATS = 9
FEW_REPEATS, LONG_MS = 3, 150.0


def measure(flow: FlowMap, stepper: Stepper, decoder: Decoder, device: Device, max_batch: int | None) -> Curves:
    """Curves by stage name; a few seconds for the shipped models. Every timed run holds the device.

    `stepper` must take whatever it is given in one pass. Without `max_batch` larger steps are tried until they no
    longer pay.
    """
    samples = noises(flow, 0, max(HOST_SIZES)).to(stepper.device)
    channels, _, _ = decoder.image_shape(flow.topology.image_shape)
    curves = {
        STEPS: _steps(flow, stepper, device, max_batch),
        NOISE: _curve(HOST_SIZES, partial(noises, flow, 0), device),
    }
    for form in Format:
        if supports(form, channels):
            curves[_name(form)] = _curve(HOST_SIZES, partial(_encode, decoder, samples, form), device)
    return curves


def image_costs(curves: Curves, pass_size: int, most: int) -> ImageCosts:
    """Raises KeyError when `curves` are not those of `measure`."""
    forms = {form: curves[_name(form)] for form in Format if _name(form) in curves}
    return ImageCosts(in_passes(curves[STEPS], pass_size, most), curves[NOISE], forms)


def efficient_size(curve: StepCurve) -> int:
    """The smallest measured batch in which an image costs as good as least: a larger one only makes others wait.

    It is at least `PROBE_SIZE` where so many were measured, because between two steps there is host work.
    """
    points = [point for point in curve.points if point[0] >= PROBE_SIZE] or curve.points[-1:]
    least_ms = min(cost.mean_ms / size for size, cost in points)
    return next(size for size, cost in points if cost.mean_ms / size <= AS_GOOD * least_ms)


def in_passes(curve: StepCurve, pass_size: int, most: int) -> StepCurve:
    """What steps cost that are taken in passes of at most `pass_size`, up to `most` images."""
    one_pass = tuple(point for point in curve.points if point[0] <= pass_size)
    size, cost = one_pass[-1]
    return StepCurve((*one_pass, (size * -(-most // size), cost.times(-(-most // size))))) if most > size else curve


def measure_threads(flow: FlowMap, device: Device) -> Curves:
    """What a step of a few images costs by the number of threads, from 1 to all cores. Changes torch's threads."""
    cores, counts = usable_cores(), [1]
    while counts[-1] < cores:
        counts.append(min(cores, 2 * counts[-1]))
    points = []
    for count in counts:
        torch.set_num_threads(count)
        points.append((count, quiet_cost(_taking(flow, CpuStepper(flow, PROBE_SIZE)), device)))
    return {THREADS: StepCurve(tuple(points))}


def fastest_threads(curves: Curves) -> int:
    """Of what `measure_threads` found."""
    return min(curves[THREADS].points, key=lambda point: point[1].mean_ms)[0]


def probe_threads(flow: FlowMap, device: Device) -> Probe:
    """What a step costs on one thread now. Changes torch's threads."""
    torch.set_num_threads(1)
    return THREADS, 1, quiet_cost(_taking(flow, CpuStepper(flow, PROBE_SIZE)), device, repeats=5)


def usable_cores() -> int:
    """Cores that this process may run on, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probe(flow: FlowMap, stepper: Stepper, device: Device) -> Probe:
    """What a step of one batch size costs now."""
    return STEPS, PROBE_SIZE, quiet_cost(_taking(flow, stepper), device, repeats=5)


def pulse(flow: FlowMap, stepper: Stepper, costs: ImageCosts) -> Pulse:
    """A small step for a worker at rest."""
    return Pulse(costs.step.at(PROBE_SIZE), _taking(flow, stepper))


def _steps(flow: FlowMap, stepper: Stepper, device: Device, max_batch: int | None) -> StepCurve:
    points, sizes = [], [size for size in STEP_SIZES if max_batch is None or size < max_batch]
    for size in sizes if max_batch is None else [*sizes, max_batch]:
        points.append((size, _step_cost(flow, stepper, size, device)))
        per_image_ms = [cost.mean_ms / count for count, cost in points]
        if max_batch is None and size >= PROBE_SIZE and min(per_image_ms[-2:]) * AS_GOOD > min(per_image_ms[:-2]):
            break
    return StepCurve(tuple(points))


def _step_cost(flow: FlowMap, stepper: Stepper, size: int, device: Device) -> Cost:
    action = _taking(flow, stepper, size)
    once = quiet_cost(action, device, repeats=1)
    return quiet_cost(action, device, repeats=FEW_REPEATS if once.mean_ms > LONG_MS else REPEATS)


def _curve(sizes: Sequence[int], action: Callable[[int], object], device: Device) -> StepCurve:
    return StepCurve(tuple((size, quiet_cost(partial(action, size), device)) for size in sizes))


def _taking(flow: FlowMap, stepper: Stepper, size: int = PROBE_SIZE) -> Callable[[], object]:
    """Takes the same step whenever it is called, over samples of the null class from noise to the middle."""
    x = noises(flow, 0, size).to(stepper.device)
    labels = torch.full((size,), flow.topology.null_class)
    return partial(stepper, Rows(x, torch.ones(size), torch.full((size,), 0.5), labels, torch.ones(size)))


def _encode(decoder: Decoder, samples: Tensor, form: Format, size: int) -> object:
    return finish_all(decoder, samples[:size], form)


def _name(form: Format) -> str:
    return f"{ENCODE} {form.value}"
