from collections.abc import Mapping, Sequence
from typing import Any


class Authenticator:
    @classmethod
    def from_config(cls, config: Any) -> "Authenticator":
        return cls()

    def tenant(self, metadata: Sequence[tuple[str, str | bytes]], auth_context: Mapping[str, Any]) -> str:
        return "default"
