import pytest

from benchmarks.faults.report import figures_of
from benchmarks.faults.requests import IMAGES, Answer, Asked, References, apart_of
from benchmarks.faults.schedule import KILL, STALL, Event, Fault
from benchmarks.faults.traffic import Call
from headway.v1 import common_pb2, image_pb2, text_pb2

REFERENCES = References(
    texts=(((5, 6, 7), "abc"),),
    images=(tuple(bytes([index] * 4) for index in range(IMAGES)),),
    frames={(0, "top"): b"frame"},
)
TEXT, IMAGE, FRAME = Asked("text", 0, kept=False), Asked("image", 0, kept=False), Asked("splat", 0, kept=True)


def text(*chunks: tuple[int, list[int], str], told: int = 3) -> Answer:
    answer = Answer()
    TEXT.note(text_pb2.GenerateResponse(plan=common_pb2.Plan()), answer)
    for offset, tokens, part in chunks:
        chunk = text_pb2.TokenChunk(offset=offset, token_ids=tokens, text=part)
        TEXT.note(text_pb2.GenerateResponse(chunk=chunk), answer)
    summary = text_pb2.GenerateSummary(usage=text_pb2.Usage(completion_tokens=told))
    TEXT.note(text_pb2.GenerateResponse(summary=summary), answer)
    return answer


WHOLE = [(0, [5], "a"), (1, [6, 7], "bc")]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (text(*WHOLE), True),
        (text(WHOLE[0]), False),
        (text(WHOLE[0], *WHOLE), False),
        (text(*WHOLE, told=4), False),
        (text((0, [5], "a"), (0, [6, 7], "bc")), False),
        (text((0, [5], "a"), (1, [6, 7], "b")), False),
        (text((0, [5, 6, 8], "abc")), False),
    ],
)
def test_a_text_is_right_when_every_token_came_once(answer: Answer, is_right: bool) -> None:
    assert (REFERENCES.fault_of(TEXT, answer) is None) == is_right


def images(change: int = 0, left_out: int = 0, twice: bool = False) -> Answer:
    answer, indices = Answer(), range(IMAGES - left_out)
    found = [image_pb2.Image(index=index, data=bytes([index + change] * 4)) for index in indices]
    found.append(image_pb2.Image(index=0, data=b"----", preview=True))
    found += found[:1] if twice else []
    IMAGE.note(image_pb2.GenerateImagesResponse(batch=image_pb2.ImageBatch(images=found)), answer)
    return answer


def test_images_may_be_rounded_and_not_more() -> None:
    assert REFERENCES.fault_of(IMAGE, images()) is None
    assert REFERENCES.same_images(IMAGE, images()) == IMAGES
    assert REFERENCES.fault_of(IMAGE, images(change=2)) is None
    assert REFERENCES.same_images(IMAGE, images(change=2)) == 0
    assert REFERENCES.fault_of(IMAGE, images(change=3)) is not None
    assert REFERENCES.fault_of(IMAGE, images(left_out=1)) is not None
    assert REFERENCES.fault_of(IMAGE, images(twice=True)) is not None
    assert apart_of(b"12", b"1") == 255


def test_a_frame_is_held_against_its_rung() -> None:
    assert REFERENCES.fault_of(FRAME, Answer(frames=[(0, "top", b"frame")])) is None
    assert REFERENCES.fault_of(FRAME, Answer(frames=[(0, "top", b"other")])) is not None
    assert REFERENCES.fault_of(FRAME, Answer()) is not None


def call(sent_s: float, ended_s: float, error: str | None = None, *, admitted: bool = True) -> Call:
    return Call(TEXT, sent_s, ended_s, admitted, error, None, attempts=1, same_images=0)


def test_calls_are_counted_by_the_fault_that_met_them() -> None:
    events = [
        Event(Fault(KILL, "text-a-worker"), 10.0, 14.0),
        Event(Fault(KILL, "text-b-worker"), 30.0, 32.0),
        Event(Fault(STALL, "one-router"), 50.0, 53.0),
    ]
    calls = [
        call(9.0, 11.0),
        call(9.5, 12.0, "WORKER_LOST"),
        call(11.0, 13.0, "SHED", admitted=False),
        call(29.0, 31.0),
        call(40.0, 41.0),
        call(51.0, 51.5),
    ]
    figures = figures_of(calls, events)
    assert figures["availability_of_admitted"] == pytest.approx(4 / 5)
    assert figures["failed"] == {"WORKER_LOST": 1}
    assert figures["refused"] == {"SHED": 1}
    kill, stall = figures["by_fault"]
    assert (kill["fault"], kill["part"], kill["times"], kill["whole_again_s"]) == (KILL, "text worker", 2, 2.0)
    assert kill["whole_again_most_s"] == 4.0
    assert kill["in_flight"]["calls"] == 3
    assert (kill["in_flight"]["right"], kill["in_flight"]["failed"]) == (2, 1)
    assert kill["sent_meanwhile"]["refused"] == 1
    assert (stall["part"], stall["in_flight"]["calls"], stall["sent_meanwhile"]["right"]) == ("router", 0, 1)
