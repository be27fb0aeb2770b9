"""What goes wrong, on purpose, in a mesh of real processes, and what its callers see of it.

- `proxy`: a TCP proxy between two parts, which can swallow bytes for a while or cut every connection.
- `cluster`: the processes: two routers, Redis, the cache, two devices with a worker of each kind on each.
- `requests`: what is asked, and the reference that every answer is held against.
- `traffic`: sends requests open loop through both routers and keeps what came of each.
- `schedule`: which fault comes when, seeded, and how each is made.
- `report`: calls in flight, answered and failed, by kind of fault.
"""
