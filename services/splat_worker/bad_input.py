"""The one way this worker's parsers and validators refuse what they are given."""


class BadInput(ValueError):
    """A field that came from outside is wrong: `field` names it, `problem` says what and which limit
    holds."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
