"""One device, many workers: each step runs under a lease that is granted by deadline (docs/decisions/0002).

`python -m headway.device --socket PATH` is the arbiter; a worker's engine thread uses `DeviceClient`.
"""

from headway.device.arbiter import ArbiterError, DeviceArbiter
from headway.device.client import DeviceClient, Lease
from headway.device.wire import MAX_BUCKETS, Demand

__all__ = ["MAX_BUCKETS", "ArbiterError", "Demand", "DeviceArbiter", "DeviceClient", "Lease"]
