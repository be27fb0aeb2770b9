"""Paths and progressive frames that were cut off: the next worker gives what is missing, and nothing twice."""

from headway.continuing import Frames, Refining
from headway.v1 import common_pb2, splat_pb2

REQUEST = splat_pb2.RenderPathRequest(cameras=[splat_pb2.Camera()] * 3, frames_between=4)


def plan() -> bytes:
    return splat_pb2.RenderPathResponse(plan=common_pb2.Plan(steps=11)).SerializeToString()


def frame(index: int) -> bytes:
    return splat_pb2.RenderPathResponse(frame=splat_pb2.PathFrame(index=index)).SerializeToString()


def cut_off(request: splat_pb2.RenderPathRequest, frames: int) -> Frames:
    answer = Frames(request.SerializeToString(), request)
    for message in (plan(), *(frame(index) for index in range(frames))):
        answer.passed(message)
    return answer


def test_a_path_goes_on_with_the_first_frame_that_was_not_sent() -> None:
    answer = cut_off(REQUEST, 4)
    raw = answer.next()
    assert raw is not None
    again = splat_pb2.RenderPathRequest.FromString(raw)
    assert (again.first_frame, again.frames_between, len(again.cameras)) == (4, 4, 3)
    assert not answer.rest(splat_pb2.RenderPathResponse.FromString(plan()))
    assert answer.rest(splat_pb2.RenderPathResponse.FromString(frame(4)))


def test_a_path_that_was_resumed_is_cut_off_again() -> None:
    resumed = splat_pb2.RenderPathRequest.FromString(cut_off(REQUEST, 4).next() or b"")
    raw = cut_off(resumed, 2).next()
    assert raw is not None and splat_pb2.RenderPathRequest.FromString(raw).first_frame == 6


def test_a_path_of_which_only_the_plan_came_is_sent_as_it_was_and_a_whole_one_is_not() -> None:
    assert cut_off(REQUEST, 0).next() == REQUEST.SerializeToString()
    assert cut_off(REQUEST, 11).next() is None


def test_a_video_that_has_begun_cannot_go_on() -> None:
    video = splat_pb2.RenderPathRequest(cameras=REQUEST.cameras, video=splat_pb2.VIDEO_FORMAT_H264_MP4)
    assert cut_off(video, 0).next() is not None
    assert cut_off(video, 1).next() is None


def better(index: int, quality: float) -> splat_pb2.RenderProgressiveResponse:
    served = common_pb2.Served(quality=quality)
    return splat_pb2.RenderProgressiveResponse(frame=splat_pb2.ProgressiveFrame(index=index, served=served))


def test_a_progressive_answer_goes_on_with_better_frames_alone() -> None:
    request = splat_pb2.RenderRequest(scene="s")
    answer = Refining(request.SerializeToString(), request)
    promise = splat_pb2.RenderProgressiveResponse(plan=common_pb2.Plan(steps=1))
    for message in (promise, better(0, 0.3), better(1, 0.6)):
        answer.passed(message.SerializeToString())
    assert answer.next() == request.SerializeToString()
    assert not answer.rest(promise)
    assert not answer.rest(better(0, 0.3)) and not answer.rest(better(1, 0.6))
    best = better(2, 1.0)
    assert answer.rest(best) and best.frame.index == 2
    answer.passed(splat_pb2.RenderProgressiveResponse(served=common_pb2.Served()).SerializeToString())
    assert answer.next() is None
