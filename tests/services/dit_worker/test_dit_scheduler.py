"""Scheduler and engine over stepped time: what is planned, what runs, what a late plan changes."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost, StepCurve
from headway.deadline import Budget
from headway.errors import Failed
from headway.planning import plan_queue
from headway.quality import Ladder, Rung, read_wish
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2
from services.dit_worker.encode import Format
from services.dit_worker.engine import DitEngine
from services.dit_worker.model.decoder import Latents, Pixels
from services.dit_worker.model.dit import Dit
from services.dit_worker.model.guidance import UNGUIDED, Guidance
from services.dit_worker.model.vae import VaeDecoder, VaeShape
from services.dit_worker.sample_group import ImagesSpec, Previews, SampleGroup
from services.dit_worker.sampler import finish, start, step
from services.dit_worker.scheduler import DitScheduler, ImageCosts
from services.dit_worker.stepper import CpuStepper

LADDER = Ladder((Rung("4", 1.0, nfe=4), Rung("2", 0.9, nfe=2), Rung("1", 0.8, nfe=1)))
SAME = Cost(1.0)


def flat(ms: float) -> StepCurve:
    return StepCurve(((1, Cost(ms)),))


COSTS = ImageCosts(flat(100.0), flat(3.0), {form: flat(7.0) for form in Format})
SCHEDULER = DitScheduler(COSTS, max_batch=8, rung_quantile=0.9, admission_quantile=0.999, overhead_ms=1.0)


def group(
    count: int = 2,
    budget_s: float = 10.0,
    seed: int = 5,
    exact: str | None = None,
    *,
    guidance: Guidance = UNGUIDED,
    form: Format = Format.FLOAT32,
    previews: bool = False,
) -> SampleGroup:
    budget = Budget(0.0, budget_s, 0.0)
    level = common_pb2.ServiceLevel(exact=exact) if exact else common_pb2.ServiceLevel()
    ticket = Ticket(budget, read_wish(level, LADDER, common_pb2.KIND_IMAGE), budget.due_s)
    return SampleGroup(
        ticket,
        ImagesSpec(tuple((seed + i) % 3 for i in range(count)), seed, guidance, form, 90, previews),
    )


class Rig:
    """Plays the engine loop by hand: plan, step, apply, at times that the test says."""

    def __init__(self, flow, decoder=Pixels()) -> None:  # noqa: B008 - it has no state
        self.now_s = 0.0
        self.engine = DitEngine(flow, CpuStepper(flow, 3), decoder, SCHEDULER, lambda: self.now_s)

    def plan(self, *works: SampleGroup) -> list[SampleGroup]:
        jobs = [SCHEDULER.job(work, self.now_s) for work in works]
        plan = plan_queue(jobs, SCHEDULER.setting(self.now_s, (), SAME))
        by_key = {work.ticket.key: work for work in works}
        for key, choice in plan.items():
            ticket = by_key[key].ticket
            ticket.choice = choice
            if ticket.plan is None:
                steps = choice.option.load.steps_left
                ticket.plan, ticket.started_s = common_pb2.Plan(rung=choice.option.rung.to_proto(), steps=steps), 0.0
        return [by_key[key] for key in plan]

    def step(self, works: list[SampleGroup], scale: Cost = SAME) -> list:
        batch = SCHEDULER.next_batch(works, self.now_s, scale)
        assert batch is not None
        return self.engine.apply(batch, self.engine.run(batch), self.now_s)


def labels(work: SampleGroup) -> list[str]:
    return [option.rung.label for option in SCHEDULER.job(work, 0.0).options]


def test_rungs_already_passed_are_no_longer_options():
    work = group()
    assert labels(work) == ["4", "2", "1"]
    work.ticket.steps_executed, work.job = 1, None
    assert labels(work) == ["4", "2"]
    work.ticket.steps_executed, work.job = 3, None
    options = SCHEDULER.job(work, 0.0).options
    assert [(option.rung.label, option.load.steps_left) for option in options] == [("4", 1)]


def test_noise_is_counted_before_the_first_step_and_encoding_always():
    work = group()
    assert SCHEDULER.job(work, 0.0).options[0].load.setup == Cost(10.0)
    work.begun, work.job = True, None
    assert SCHEDULER.job(work, 0.0).options[0].load.setup == Cost(7.0)


def test_what_is_left_is_kept_until_a_step_changes_it(tiny):
    rig, work = Rig(tiny), group()
    before = SCHEDULER.job(work, 0.0)
    assert SCHEDULER.job(work, 5.0) is before
    rig.step(rig.plan(work))
    after = SCHEDULER.job(work, 0.0)
    assert [option.load.steps_left for option in after.options] == [3, 1]
    assert after.options[0].load.setup == Cost(7.0)


def test_a_step_takes_the_longest_run_that_fits(tiny):
    works = Rig(tiny).plan(group(4), group(3), group(2), group(1))
    batch = SCHEDULER.next_batch(works, 0.0, SAME)
    assert batch is not None
    assert (len(batch.works), batch.items) == (2, 7)
    assert batch.predicted == Cost(100.0 + 2 * 3.0)


def test_the_last_steps_prediction_holds_the_encoding(tiny):
    works = Rig(tiny).plan(group(4, exact="1"))
    batch = SCHEDULER.next_batch(works, 0.0, SAME)
    assert batch is not None
    assert batch.predicted == Cost(110.0)
    assert batch.ends == (0.0,)


def test_mixed_plans_and_ages_give_what_each_gives_alone(tiny):
    rig = Rig(tiny)
    old, young, quick = group(3, seed=1), group(2, seed=2), group(1, seed=3, exact="1")
    events = rig.step(rig.plan(old))
    for _ in range(4):
        works = [work for work in (old, young, quick) if not any(t is work.ticket for t, _ in events)]
        if works:
            events += rig.step(rig.plan(*works))
    results = {ticket.key: event.result for ticket, event in events}
    for work, steps in ((old, 4), (young, 4), (quick, 1)):
        alone = [start(tiny, seed=work.spec.seed, index=i, label=c) for i, c in enumerate(work.spec.labels)]
        for image, sample in zip(results[work.ticket.key], finish(tiny, alone, steps), strict=True):
            pixels = torch.frombuffer(bytearray(image.data), dtype=torch.float32).view(1, 4, 4)
            torch.testing.assert_close(pixels, sample.x.clamp(-1, 1), rtol=0, atol=1e-5)
            assert image.executed == steps


def test_a_late_request_finishes_at_a_lower_rung_and_says_so(tiny):
    rig = Rig(tiny)
    work = group(budget_s=0.45)
    assert rig.step(rig.plan(work)) == []
    assert work.ticket.plan.steps == 4
    rig.now_s = 0.3  # the step took three times as long as predicted
    ((ticket, event),) = rig.step(rig.plan(work))
    assert isinstance(event, Finished)
    assert ticket.steps_executed == 2
    assert ticket.rung.label == "2"
    assert ticket.reason == common_pb2.RUNG_REASON_REPLANNED_LATE


def test_a_plan_made_while_the_last_step_runs_does_not_rename_what_was_served(tiny):
    rig = Rig(tiny)
    work = group(exact="1")
    batch = SCHEDULER.next_batch(rig.plan(work), 0.0, SAME)
    assert batch is not None
    result = rig.engine.run(batch)
    other = group()
    rig.plan(other)
    work.ticket.choice = other.ticket.choice
    rig.engine.apply(batch, result, 0.0)
    assert work.ticket.rung.label == "1"


def test_stages_cover_the_work_and_samples_are_freed(tiny):
    rig = Rig(tiny)
    work = group(exact="1")
    rig.step(rig.plan(work))
    assert [stage.name for stage in work.ticket.stages] == ["queue", "steps", "encode"]
    assert [stage.predicted_ms for stage in work.ticket.stages] == [0.0, 103.0, 7.0]
    rig.engine.release(work)
    assert work.x is None
    slow = group(exact="1")
    rig.step(rig.plan(slow), scale=Cost(2.0))
    assert [stage.predicted_ms for stage in slow.ticket.stages] == [0.0, 206.0, 14.0]


def floats(image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.data), dtype=torch.float32).view(1, 4, 4)


mixes = st.lists(
    st.tuples(
        st.integers(1, 4),  # images
        st.sampled_from(["4", "2", "1"]),
        st.integers(0, 3),  # steps that others take before it comes
        st.floats(1.0, 3.0).map(Guidance.fixed) | st.just(Guidance.by_steps({4: 1.2, 2: 1.7, 1: 2.5})),
        st.integers(0, 2**64 - 1),
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=20, deadline=None)
@given(mix=mixes)
def test_whatever_is_in_a_batch_each_gets_what_it_gets_alone(tiny_network, mix):
    """Classes, times, ends, weights, plans and ages are mixed; batches, and passes in them, are cut anywhere."""
    rig, results = Rig(tiny_network), {}
    coming = [(age, group(n, seed=seed, exact=rung, guidance=w)) for n, rung, age, w, seed in mix]
    for turn in range(40):
        works = [work for age, work in coming if age <= turn and work.ticket.key not in results]
        if works:
            results |= {ticket.key: event.result for ticket, event in rig.step(rig.plan(*works))}
    for (n, rung, _, guidance, seed), (_, work) in zip(mix, coming, strict=True):
        alone = [start(tiny_network, seed=seed, index=i, label=(seed + i) % 3, guidance=guidance) for i in range(n)]
        for image, sample in zip(results[work.ticket.key], finish(tiny_network, alone, int(rung)), strict=True):
            torch.testing.assert_close(floats(image), sample.x.clamp(-1, 1), rtol=0, atol=1e-5)


def test_previews_show_where_each_step_would_have_ended(tiny):
    rig, work = Rig(tiny), group(3, exact="4", previews=True)
    seen = [event for _ in range(4) for _, event in rig.step(rig.plan(work))]
    assert [type(event) for event in seen] == [Previews] * 3 + [Finished]
    samples = [start(tiny, seed=5, index=i, label=label) for i, label in enumerate(work.spec.labels)]
    for executed, previews in enumerate(seen[:3], start=1):
        before, t, s = torch.stack([sample.x for sample in samples]), samples[0].t, 1 - executed / 4
        labels, ones = torch.tensor(work.spec.labels), torch.ones(3)
        with torch.inference_mode():
            velocity = tiny.average_velocity(before, ones * t, ones * s, labels, ones)
        for image, expected in zip(previews.images, before - t * velocity, strict=True):
            torch.testing.assert_close(floats(image), expected.clamp(-1, 1), rtol=0, atol=1e-5)
            assert image.executed == executed
        samples = step(tiny, samples, [s] * 3)


def test_previews_are_paid_for(tiny):
    work = group(previews=True)
    assert [option.load.setup for option in SCHEDULER.job(work, 0.0).options] == [
        Cost(3.0 + 7.0 * encodes) for encodes in (4, 2, 1)
    ]
    batch = SCHEDULER.next_batch(Rig(tiny).plan(work), 0.0, SAME)
    assert batch is not None and batch.predicted == Cost(100.0 + 3.0 + 7.0)


def test_latents_become_images_through_the_models_decoder(tiny):
    torch.manual_seed(3)
    shape = VaeShape(latent_channels=1, out_channels=3, widths=(8, 8), layers=1, groups=4, scaling_factor=0.5)
    decoder = Latents(VaeDecoder(shape).eval())
    work = group(20, exact="1")  # more than are decoded at once
    rig = Rig(tiny, decoder)
    ((_, event),) = rig.step(rig.plan(work))
    alone = [start(tiny, seed=5, index=i, label=label) for i, label in enumerate(work.spec.labels)]
    expected = decoder.decode(torch.stack([sample.x for sample in finish(tiny, alone, 1)])).clamp(-1, 1)
    for image, pixels in zip(event.result, expected, strict=True):
        found = torch.frombuffer(bytearray(image.data), dtype=torch.float32).view(8, 8, 3).permute(2, 0, 1)
        torch.testing.assert_close(found, pixels, rtol=0, atol=1e-4)


class Poisoned:
    """A flow map that gives a number that is none for one class, as fp16 does when it overflows."""

    def __init__(self, flow, label: int) -> None:
        self.flow, self.label, self.topology = flow, label, flow.topology

    def average_velocity(self, x, t, s, labels, guidance):
        velocity = self.flow.average_velocity(x, t, s, labels, guidance)
        velocity[labels == self.label, 0, 0, 0] = float("nan")
        return velocity


def test_numbers_that_are_none_fail_their_request_alone(tiny):
    rig = Rig(Poisoned(tiny, label=2))
    works = [group(1, seed=0, exact="1"), group(2, seed=1, exact="1"), group(2, seed=3, exact="1")]
    ended = dict(rig.step(rig.plan(*works)))
    assert isinstance(ended[works[1].ticket], Failed)  # its second image is of class 2
    for index in (0, 2):
        assert isinstance(ended[works[index].ticket], Finished)
        assert all(bool(torch.isfinite(floats(image)).all()) for image in ended[works[index].ticket].result)


def test_an_encoding_that_fails_fails_its_request_alone(tiny):
    rig = Rig(
        Dit(replace(tiny.topology, channels=2)).eval()
    )  # no picture has two channels; the servicer would refuse it
    picture, raw = group(1, exact="1", form=Format.PNG), group(1, exact="1", form=Format.RAW)
    ended = dict(rig.step(rig.plan(picture, raw)))
    assert isinstance(ended[picture.ticket], Failed)
    assert isinstance(ended[raw.ticket], Finished)


SLOPE = ImageCosts(StepCurve(((1, Cost(20.0)), (8, Cost(160.0)))), flat(0.0), {form: flat(0.0) for form in Format})


def test_a_step_is_no_larger_than_the_tightest_request_in_it_can_bear():
    scheduler = replace(SCHEDULER, costs=SLOPE)
    tight, patient = group(2, budget_s=0.1, exact="2"), group(6, budget_s=5.0, exact="2")
    jobs = [scheduler.job(work, 0.0) for work in (tight, patient)]
    plan = plan_queue(jobs, scheduler.setting(0.0, (), SAME))
    for work in (tight, patient):
        work.ticket.choice = plan[work.ticket.key]
    batch = scheduler.next_batch([tight, patient], 0.0, SAME)  # together a step takes 160 ms, alone 40
    assert batch is not None and batch.works == (tight,)
    tight.ticket.budget, tight.job = (
        Budget(0.0, 0.05, 0.0),
        None,
    )  # too late whatever the others do: they need not wait for it
    batch = scheduler.next_batch([tight, patient], 0.0, SAME)
    assert batch is not None and batch.works == (tight, patient)


def test_a_request_larger_than_a_step_goes_alone(tiny):
    works = Rig(tiny).plan(group(11, budget_s=1.0), group(1))
    batch = SCHEDULER.next_batch(works, 0.0, SAME)
    assert batch is not None and (len(batch.works), batch.items) == (1, 11)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    budgets=st.lists(st.floats(0.05, 5.0), min_size=6, max_size=6),
)
def test_a_step_never_exceeds_the_largest_batch_and_never_skips_the_front(sizes, budgets):
    works = [group(size, budget_s) for size, budget_s in zip(sizes, budgets, strict=False)]
    jobs = [SCHEDULER.job(work, 0.0) for work in works]
    plan = plan_queue(jobs, SCHEDULER.setting(0.0, (), SAME))
    order = sorted(works, key=lambda work: list(plan).index(work.ticket.key))
    for work in works:
        work.ticket.choice = plan[work.ticket.key]
    batch = SCHEDULER.next_batch(order, 0.0, SAME)
    assert batch is not None
    assert list(batch.works) == order[: len(batch.works)]
    assert batch.items <= SCHEDULER.max_batch
    assert all(0 <= end < 1 for end in batch.ends)
