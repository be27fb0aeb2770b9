"""The experiments of Headway, with one definition for every benchmark.

- `arrivals`: when requests come (Poisson, a spike, bursts), how large they are, their deadlines and priorities; seeded.
- `capacity`: what a request costs alone, and the rate at which each rung saturates the worker; load 1.0 is the rate
  that the cheapest rung sustains.
- `worker`: the worker under test, a process of its own on a core of its own, under one policy.
- `generator`: sends the arrivals open loop from this process, on another core, and keeps a `Record` of each.
- `records`, `summary`, `intervals`: what came of each request; attainment, goodput and latencies with intervals.
- `bound`, `exhaustive`: the most quality that any clairvoyant schedule could give for the same arrivals.
- `runner`, `plots`: every policy at every load, then one JSON file and one picture.
"""
