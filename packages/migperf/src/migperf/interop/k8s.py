"""Names under which Kubernetes' device plugin offers MIG devices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ..profiles import ProfileName

__all__ = ["pod_resources", "resource_name"]


def resource_name(profile: str) -> str:
    """Name the extended resource of a profile under the device plugin's strategy ``mixed``.

    Examples
    --------
    >>> resource_name("3g.40gb"), resource_name("1g.10gb+me"), resource_name("1c.3g.40gb")
    ('nvidia.com/mig-3g.40gb', 'nvidia.com/mig-1g.10gb.me', 'nvidia.com/mig-1c.3g.40gb')
    """
    name = str(ProfileName.parse(profile))
    return "nvidia.com/mig-" + re.sub(r"[+,]", ".", name)


def pod_resources(profiles: Iterable[str]) -> dict[str, dict[str, int]]:
    """``resources`` of a container that wants these profiles.

    Examples
    --------
    >>> pod_resources(["2g.20gb", "2g.20gb"])
    {'limits': {'nvidia.com/mig-2g.20gb': 2}}
    """
    return {"limits": dict(Counter(resource_name(p) for p in profiles))}
