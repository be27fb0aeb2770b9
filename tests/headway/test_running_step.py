from dataclasses import replace

from headway.cost import Cost, Load
from headway.engine import Batch
from headway.jobs import Choice, Job, Option
from headway.quality import Rung
from headway.running_step import RunningStep

LONG, SHORT = Rung("long", 1.0), Rung("short", 0.5)


def job(key: int) -> Job:
    return Job(key, 2, 9.0, 9.0, (Option(LONG, Load(9.0, 1, 3)), Option(SHORT, Load(9.0, 1, 1))))


def running(*jobs: Job) -> RunningStep:
    return RunningStep(Batch("step", (), len(jobs), Cost(500.0)), {each.key: each for each in jobs}, end_s=2.0)


def test_what_is_in_the_step_has_a_step_less_and_what_is_not_is_as_it_was() -> None:
    stepping, waiting = job(1), job(2)
    after, same = running(stepping).jobs([stepping, waiting])
    assert [(option.rung, option.load.steps_left) for option in after.options] == [(LONG, 2)]
    assert same is waiting


def test_what_the_step_ends_is_gone() -> None:
    last = replace(job(1), options=job(1).options[1:])
    assert running(last).jobs([last]) == []


def test_what_was_planned_while_it_ran_is_not_taken_a_step_further_twice() -> None:
    stepping = job(1)
    step = running(stepping)
    once = step.jobs([stepping])
    assert step.jobs([Choice(each, 0, Cost(0.0)).job for each in once]) == once


def test_it_is_busy_until_it_should_end_and_no_longer() -> None:
    step = running()
    assert step.busy_ms(1.25) == 750.0
    assert step.busy_ms(3.0) == 0.0
