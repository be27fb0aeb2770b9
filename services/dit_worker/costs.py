"""Measures what steps, noise and encoding cost on this host, on the code that serves."""

from collections.abc import Callable, Sequence
from functools import partial

from headway.calibration import Curves, Probe, quiet_cost
from headway.cost import StepCurve
from headway.engine import Device, Pulse
from services.dit_worker.encode import Format, encode, supports
from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.sampler import Sample, start, step
from services.dit_worker.scheduler import ENCODE, NOISE, STEPS, ImageCosts

STEP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
HOST_SIZES = (1, 128)
PROBE_SIZE = 16


def measure(flow: FlowMap, max_batch: int, device: Device) -> Curves:
    """Curves by stage name; a second or two for the shipped model. Every timed run holds the device."""
    samples = _noise(flow, max(*HOST_SIZES, max_batch))
    sizes = (*(size for size in STEP_SIZES if size < max_batch), max_batch)
    curves = {
        STEPS: _curve(sizes, partial(_step, flow, samples), device),
        NOISE: _curve(HOST_SIZES, partial(_noise, flow), device),
    }
    for form in Format:
        if supports(form, flow.topology.channels):
            curves[_name(form)] = _curve(HOST_SIZES, partial(_encode, samples, form), device)
    return curves


def image_costs(curves: Curves) -> ImageCosts:
    """Raises KeyError when `curves` are not those of `measure`."""
    forms = {form: curves[_name(form)] for form in Format if _name(form) in curves}
    return ImageCosts(curves[STEPS], curves[NOISE], forms)


def probe(flow: FlowMap, device: Device) -> Probe:
    """What a step of one batch size costs now."""
    samples = _noise(flow, PROBE_SIZE)
    return STEPS, PROBE_SIZE, quiet_cost(partial(_step, flow, samples, PROBE_SIZE), device, repeats=5)


def pulse(flow: FlowMap, costs: ImageCosts) -> Pulse:
    """A small step for a worker at rest."""
    return Pulse(costs.step.at(PROBE_SIZE), partial(_step, flow, _noise(flow, PROBE_SIZE), PROBE_SIZE))


def _curve(sizes: Sequence[int], action: Callable[[int], object], device: Device) -> StepCurve:
    return StepCurve(tuple((size, quiet_cost(partial(action, size), device)) for size in sizes))


def _step(flow: FlowMap, samples: Sequence[Sample], size: int) -> object:
    return step(flow, samples[:size], [0.5] * size)


def _noise(flow: FlowMap, size: int) -> list[Sample]:
    return [start(flow, seed=0, index=index, label=0) for index in range(size)]


def _encode(samples: Sequence[Sample], form: Format, size: int) -> object:
    return [encode(sample.x, form) for sample in samples[:size]]


def _name(form: Format) -> str:
    return f"{ENCODE} {form.value}"
