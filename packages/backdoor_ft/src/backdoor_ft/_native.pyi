from typing import Any

def fused(
    images: Any,
    draws: Any,
    stamped: Any,
    pattern: Any,
    alpha: Any,
    table: Any,
    out: Any,
    pad: int,
    threads: int,
    instructions: str,
) -> None: ...
def available(name: str) -> bool: ...
