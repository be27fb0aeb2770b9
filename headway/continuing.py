"""How an answer that was cut off goes on with another worker: none of it lost, none of it twice.

What was passed on is kept as bytes and parsed only when a worker is lost. A seed that the caller left open is drawn
here, so that the next worker draws the same noise.
"""

import secrets
from typing import Any, Protocol

from headway.v1 import image_pb2, splat_pb2, text_pb2


class Continuation(Protocol):
    """One answer on its way to the caller. Every method mutates it."""

    def first(self) -> bytes:
        """The request for the first worker."""

    def passed(self, message: bytes) -> None:
        """Takes note of a message that the caller got."""

    def next(self) -> bytes | None:
        """The request for the next worker, after one was lost; None when it cannot go on."""

    def rest(self, message: Any) -> bool:
        """Changes a later worker's parsed message into what the caller is still to get; False when he has it all."""


class Again:
    """A unary answer, which is whole or not there: the request is sent again as it was."""

    def __init__(self, raw: bytes, request: Any) -> None:
        self._raw = raw

    def first(self) -> bytes:
        return self._raw

    def passed(self, message: bytes) -> None:
        """Nothing is to be remembered."""

    def next(self) -> bytes | None:
        return self._raw

    def rest(self, message: Any) -> bool:
        return True


class Text:
    """Tokens: the next worker resumes after those that were sent."""

    def __init__(self, raw: bytes, request: text_pb2.GenerateRequest) -> None:
        self._raw, self._request, self._messages = raw, request, list[bytes]()
        self._before = 0
        if request.HasField("resume"):
            self._seed = request.resume.seed
        elif request.sampling.HasField("seed"):
            self._seed = request.sampling.seed
        else:
            self._seed = secrets.randbits(63)
            # Merged by its reader into what is there: appending is how protobuf adds to bytes that are not parsed.
            addition = text_pb2.GenerateRequest(sampling=text_pb2.Sampling(seed=self._seed))
            self._raw = raw + addition.SerializeToString()

    def first(self) -> bytes:
        return self._raw

    def passed(self, message: bytes) -> None:
        self._messages.append(message)

    def next(self) -> bytes | None:
        """None when the end was sent too."""
        request, resumed = text_pb2.GenerateRequest(), list(self._request.resume.token_ids)
        own = len(resumed)
        for message in self._messages:
            response = text_pb2.GenerateResponse.FromString(message)
            if response.HasField("summary"):
                return None
            resumed.extend(response.chunk.token_ids)
        self._before = len(resumed) - own
        if not resumed:
            return self._raw
        request.CopyFrom(self._request)
        request.sampling.seed = self._seed
        request.resume.CopyFrom(text_pb2.Resume(token_ids=resumed, seed=self._seed, sampler_position=len(resumed)))
        return request.SerializeToString()

    def rest(self, message: text_pb2.GenerateResponse) -> bool:
        """Without a second plan; what an earlier worker gave is added to the last one's usage."""
        if message.HasField("summary"):
            message.summary.usage.completion_tokens += self._before
        return not (message.HasField("plan") and self._messages)


class Images:
    """Images: the next worker makes all of them again from the same seed, and those that were sent are left out."""

    def __init__(self, raw: bytes, request: image_pb2.GenerateImagesRequest) -> None:
        self._raw, self._messages, self._sent = raw, list[bytes](), set[int]()
        self._begun = False
        if not request.HasField("seed"):
            self._raw = raw + image_pb2.GenerateImagesRequest(seed=secrets.randbits(63)).SerializeToString()

    def first(self) -> bytes:
        return self._raw

    def passed(self, message: bytes) -> None:
        self._begun = True
        self._messages.append(message)

    def next(self) -> bytes | None:
        """None when the end was sent too."""
        for message in self._messages:
            response = image_pb2.GenerateImagesResponse.FromString(message)
            if response.HasField("summary"):
                return None
            self._sent.update(image.index for image in response.batch.images if not image.preview)
        self._messages.clear()
        return self._raw

    def rest(self, message: image_pb2.GenerateImagesResponse) -> bool:
        """Without a second plan, and without the images that were sent."""
        if message.HasField("batch"):
            left = [image for image in message.batch.images if image.index not in self._sent]
            del message.batch.images[:]
            message.batch.images.extend(left)
            return bool(left)
        return not (message.HasField("plan") and self._begun)


class Frames:
    """A path: the next worker begins with the first frame that was not sent. A video cannot go on in another file."""

    def __init__(self, raw: bytes, request: splat_pb2.RenderPathRequest) -> None:
        self._raw, self._request, self._sent = raw, request, 0

    def first(self) -> bytes:
        return self._raw

    def passed(self, message: bytes) -> None:
        """Messages are counted, not kept: after the plan each is one frame."""
        self._sent += 1

    def next(self) -> bytes | None:
        """None for a video that has begun, and when all frames were sent."""
        if self._sent <= 1:
            return self._raw
        frames = (len(self._request.cameras) - 1) * (self._request.frames_between + 1) + 1
        begin = self._request.first_frame + self._sent - 1
        if self._request.video or begin >= frames:
            return None
        rest = splat_pb2.RenderPathRequest()
        rest.CopyFrom(self._request)
        rest.first_frame = begin
        return rest.SerializeToString()

    def rest(self, message: splat_pb2.RenderPathResponse) -> bool:
        """Without a second plan; what was served is told of the last worker's frames."""
        return not (message.HasField("plan") and self._sent)


class Refining:
    """A progressive answer: the next worker begins again, and only frames better than the last one are sent."""

    def __init__(self, raw: bytes, request: splat_pb2.RenderRequest) -> None:
        self._raw, self._last, self._sent = raw, b"", 0

    def first(self) -> bytes:
        return self._raw

    def passed(self, message: bytes) -> None:
        self._last, self._sent = message, self._sent + 1

    def next(self) -> bytes | None:
        """None when the end was sent too."""
        return None if splat_pb2.RenderProgressiveResponse.FromString(self._last).HasField("served") else self._raw

    def rest(self, message: splat_pb2.RenderProgressiveResponse) -> bool:
        """Without a second plan, and without frames that are no better than what the caller has."""
        if message.HasField("frame"):
            message.frame.index = max(0, self._sent - 1)
            best = splat_pb2.RenderProgressiveResponse.FromString(self._last).frame.served.quality
            return message.frame.served.quality > best or self._sent <= 1
        return not (message.HasField("plan") and self._sent)
